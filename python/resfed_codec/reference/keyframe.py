"""Section 10 of docs/format.md as NumPy: keyframes, slow and readable.

Written from the specification, and held to the same bytes as the native code by tests.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from resfed_codec.errors import PayloadError, StateMismatchError
from resfed_codec.reference.bits import BitReader, BitWriter
from resfed_codec.reference.frame import Reader, crc32c, varint
from resfed_codec.reference.rans import FREQUENCY_BITS, Decoder, Encoder, Row
from resfed_codec.reference.tables import code_lengths
from resfed_codec.reference.values import State, as_model, layout_digest, tensors_of

CHUNK_ELEMS = 65536
MANTISSA_BITS = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}
RAW, CONSTANT = 0, 1

U64 = np.uint64
Bits = NDArray[np.uint64]


def mask(n_bits: int) -> np.uint64:
    n: np.uint64 = U64(2**n_bits - 1)
    return n


# ---- 10.2 Elements


def round_mantissa(bits: Bits, width: int, mantissa_bits: int, keep: int) -> Bits:
    if keep >= mantissa_bits:
        return bits
    dropped = U64(mantissa_bits - keep)
    magnitude = bits & mask(width - 1)
    infinity = mask(width - 1) & ~mask(mantissa_bits)
    odd = magnitude >> dropped & U64(1)
    rounded = magnitude + mask(int(dropped) - 1) + odd & ~mask(int(dropped))
    rounded = np.minimum(rounded, infinity - (U64(1) << dropped))
    return np.where(magnitude >= infinity, bits, bits - magnitude + rounded)


def exponent_first(bits: Bits, width: int, mantissa_bits: int) -> Bits:
    m = U64(mantissa_bits)
    sign, mantissa = bits >> U64(width - 1), bits & mask(mantissa_bits)
    exponent = (bits & mask(width - 1)) >> m
    ordered: Bits = exponent << m + U64(1) | sign << m | mantissa
    return ordered


def sign_first(bits: Bits, width: int, mantissa_bits: int) -> Bits:
    m = U64(mantissa_bits)
    sign, mantissa = bits >> m & U64(1), bits & mask(mantissa_bits)
    exponent = bits >> m + U64(1)
    ordered: Bits = sign << U64(width - 1) | exponent << m | mantissa
    return ordered


# ---- 10.3 Byte planes


def count_lanes(n: int) -> int:
    return min(max(n // 2048, 1), 32)


def frequencies_of(plane: bytes) -> Row:
    """In proportion to how often each byte occurs, at least 1 where it does."""
    counts = [plane.count(byte) for byte in range(256)]
    left = 2**FREQUENCY_BITS - sum(count > 0 for count in counts)
    row = [1 + count * left // len(plane) if count else 0 for count in counts]
    row[row.index(max(row))] += 2**FREQUENCY_BITS - sum(row)
    return tuple(row)


def write_frequencies(row: Row) -> bytes:
    used = [byte for byte, f in enumerate(row) if f]
    first, last = used[0], used[-1]
    out = BitWriter()
    out.put(first, 8)
    out.put(last, 8)
    for f in row[first : last + 1]:
        out.put_gamma(f + 1)
    return out.finish()


def read_frequencies(data: bytes) -> tuple[Row, int]:
    """The frequencies of all bytes, and how many bytes they take."""
    reader = BitReader(data)
    first, last = reader.get(8), reader.get(8)
    some = [reader.get_gamma(2**FREQUENCY_BITS) - 1 for _ in range(first, last + 1)]
    if last <= first or not some[0] or not some[-1] or sum(some) != 2**FREQUENCY_BITS:
        raise PayloadError("payload: frequencies that cannot be")
    return (*[0] * first, *some, *[0] * (255 - last)), reader.align()


def cost(plane: bytes, row: Row, n_header: int) -> int:
    """What a slice takes, about, in 1/32 bit."""
    lengths = code_lengths()[list(row)]
    return int(lengths[np.frombuffer(plane, np.uint8)].sum()) + 32 * 8 * n_header


def encode_plane(plane: bytes) -> tuple[int, bytes]:
    """The mode of a byte plane, and its bytes in the payload."""
    n, n_lanes = len(plane), count_lanes(len(plane))
    if plane == plane[:1] * n:
        return CONSTANT, plane[:1]
    row = frequencies_of(plane)
    written = write_frequencies(row)
    if 64 * cost(plane, row, len(written) + 4 * n_lanes) < 63 * 32 * 8 * n:
        encoder = Encoder(n_lanes)
        for i, byte in enumerate(plane):
            encoder.symbol(i % n_lanes, row, byte)
        coded = written + encoder.finish()
        if len(coded) < n:
            return len(coded), coded
    return RAW, plane


def decode_plane(mode: int, data: bytes, n: int) -> bytes:
    if mode == RAW:
        return data
    if mode == CONSTANT:
        return data * n
    row, n_written = read_frequencies(data)
    n_lanes = count_lanes(n)
    decoder = Decoder(n_lanes, data[n_written:])
    plane = bytes(decoder.symbol(i % n_lanes, row, 0) for i in range(n))
    decoder.finish()
    return plane


# ---- 10.1 The payload


def chunk_sizes(n_elems: int) -> list[int]:
    return [min(CHUNK_ELEMS, n_elems - i) for i in range(0, n_elems, CHUNK_ELEMS)]


def encode_keyframe(state: State, *, mantissa_bits: int | None = None) -> bytes:
    """The same bytes as :func:`resfed_codec.encode_keyframe`, from NumPy arrays."""
    keep = 52 if mantissa_bits is None else mantissa_bits
    tensors = tensors_of(state)
    table, body = b"", b""
    for t in tensors:
        size = t.reference.itemsize
        bits = t.reference.view(f"u{size}").astype(U64)
        if t.dtype in MANTISSA_BITS:
            bits = round_mantissa(bits, 8 * size, MANTISSA_BITS[t.dtype], keep)
            bits = exponent_first(bits, 8 * size, MANTISSA_BITS[t.dtype])
        for first in range(0, bits.size, CHUNK_ELEMS):
            chunk = bits[first : first + CHUNK_ELEMS]
            for plane in reversed(range(size)):
                mode, data = encode_plane((chunk >> U64(8 * plane)).astype(np.uint8).tobytes())
                table, body = table + varint(mode), body + data
    payload = b"RFK\1" + layout_digest(tensors) + table + body
    return payload + crc32c(payload).to_bytes(4, "little")


def decode_keyframe(payload: bytes, like: State) -> Any:
    """The same model as :func:`resfed_codec.decode_keyframe`, in NumPy arrays."""
    data = bytes(payload)
    if len(data) < 16 or data[:3] != b"RFK":
        raise PayloadError("payload: not a keyframe, or truncated")
    if data[3] != 1:
        raise PayloadError(f"payload: format version {data[3]} is not known")
    if crc32c(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise PayloadError("payload: damaged")
    tensors = tensors_of(like)
    if data[4:12] != layout_digest(tensors):
        raise StateMismatchError("payload: made for another layout")

    reader = Reader(data[:-4])
    reader.take(12)
    sizes = [(t, n) for t in tensors for n in chunk_sizes(t.reference.size)]
    modes = [[reader.varint(max(n - 1, 1)) for _ in range(t.reference.itemsize)] for t, n in sizes]
    chunks: dict[str, list[Bits]] = {t.name: [np.zeros(0, U64)] for t in tensors}
    for (t, n), chunk_modes in zip(sizes, modes, strict=True):
        bits = np.zeros(n, U64)
        for mode in chunk_modes:
            plane = decode_plane(mode, reader.take({RAW: n}.get(mode, mode)), n)
            bits = bits << U64(8) | np.frombuffer(plane, np.uint8)
        chunks[t.name].append(bits)
    if reader.at != len(data) - 4:
        raise PayloadError("payload: unexpected bytes at the end")

    arrays: dict[str, NDArray[Any]] = {}
    for t in tensors:
        size = t.reference.itemsize
        bits = np.concatenate(chunks[t.name])
        if t.dtype in MANTISSA_BITS:
            bits = sign_first(bits, 8 * size, MANTISSA_BITS[t.dtype])
        arrays[t.name] = t.shaped(bits.astype(f"u{size}"))
    return as_model(arrays, like)
