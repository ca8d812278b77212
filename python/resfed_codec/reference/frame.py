"""Sections 2 and 3 of docs/format.md as NumPy: a payload's bytes, written and read.

What the fields mean, and whether they fit a model, is decided in update.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from resfed_codec.errors import PayloadError, StateMismatchError
from resfed_codec.reference.lanes import LANE_LOG2, count_lanes, count_slices
from resfed_codec.reference.values import F32, Quantizer


@dataclass
class Group:
    """What the header says of a group of lossy tensors."""

    n_elems: int = 0
    n_sent: int = 0
    quantizer: Quantizer | None = None
    exponents: list[int] = field(default_factory=list)


@dataclass
class Frame:
    """All fields of a payload; slices are still coded, the lossy ones first."""

    digest: bytes
    check: int
    link: bytes
    matrix: Group
    vector: Group
    dense: Group
    n_lossless: int
    n_changed: int
    exclusions: list[int]
    dense_tensors: list[int]
    tables: bytes = b""
    change_tables: bytes = b""
    slices: list[bytes] = field(default_factory=list)
    lane_log2: int = LANE_LOG2

    @property
    def n_sent(self) -> int:
        return self.matrix.n_sent + self.vector.n_sent + self.dense.n_sent

    @property
    def n_lanes(self) -> int:
        return count_lanes(self.n_sent, self.lane_log2)

    @property
    def n_lossless_lanes(self) -> int:
        return count_lanes(self.n_changed, self.lane_log2)

    @property
    def n_lossy_slices(self) -> int:
        return count_slices(self.n_lanes)

    @property
    def n_slices(self) -> int:
        return self.n_lossy_slices + count_slices(self.n_lossless_lanes)


# ---- Writing


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def write_group(group: Group, with_exponents: bool) -> bytes:
    if not group.n_elems:
        return b""
    out = varint(group.n_sent)
    q = group.quantizer
    if q:
        out += q.threshold.tobytes() + q.step.tobytes() + bytes([len(q.offsets), *q.offsets])
        if with_exponents:
            out += varint(len(group.exponents)) + bytes(e % 256 for e in group.exponents)
    return out


def write_ordinals(ordinals: Sequence[int]) -> bytes:
    out = varint(len(ordinals))
    for ordinal, before in zip(ordinals, [-1, *ordinals], strict=False):
        out += varint(ordinal - before - 1)
    return out


def write_frame(f: Frame) -> bytes:
    flags = (1 if f.exclusions else 0) | (2 if f.link else 0) | (4 if f.dense_tensors else 0)
    out = b"RFD" + bytes([1, flags, f.lane_log2]) + f.digest + f.check.to_bytes(4, "little")
    if f.link:
        out += varint(len(f.link)) + f.link
    out += varint(f.matrix.n_elems) + varint(f.vector.n_elems)
    out += (varint(f.dense.n_elems) if f.dense_tensors else b"") + varint(f.n_lossless)
    out += write_group(f.matrix, with_exponents=False)
    out += write_group(f.vector, with_exponents=True)
    out += write_group(f.dense, with_exponents=True)
    if f.n_lossless:
        out += varint(f.n_changed)
    if f.exclusions:
        out += write_ordinals(f.exclusions)
    if f.dense_tensors:
        out += write_ordinals(f.dense_tensors)
    if f.n_sent:
        out += varint(len(f.tables)) + f.tables
    if f.n_changed:
        out += varint(len(f.change_tables)) + f.change_tables
    for data in f.slices[:-1]:
        out += varint(len(data) // 2)
    out += b"".join(f.slices)
    return out + crc32c(out).to_bytes(4, "little")


# ---- Reading


class Reader:
    """The bytes of a payload, one field after another."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, n: int) -> bytes:
        if n > len(self.data) - self.at:
            raise PayloadError(f"payload: truncated at byte {self.at}")
        self.at += n
        return self.data[self.at - n : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self, most: int = 2**63 - 1) -> int:
        value, shift = 0, 0
        while True:
            byte = self.byte()
            if shift >= 63 or (byte == 0 and shift > 0):
                raise PayloadError(f"payload: no number at byte {self.at}")
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        if value > most:
            raise PayloadError(f"payload: {value} before byte {self.at} is too large")
        return value

    def quantizer(self) -> Quantizer:
        threshold, step = np.frombuffer(self.take(8), "<f4")
        if not (0 < threshold < np.inf and 0 < step < np.inf):
            raise PayloadError("payload: a quantizer that cannot be")
        n_offsets = self.byte()
        if n_offsets > 4:
            raise PayloadError("payload: too many offsets")
        return Quantizer(F32(threshold), F32(step), list(self.take(n_offsets)))

    def group(self, n_elems: int, with_exponents: bool, n_tensors: int) -> Group:
        group = Group(n_elems, self.varint(n_elems) if n_elems else 0)
        if group.n_sent:
            group.quantizer = self.quantizer()
            if with_exponents:
                group.exponents = self.exponents(min(n_elems, n_tensors))
        return group

    def exponents(self, most: int) -> list[int]:
        exponents = [(b + 128) % 256 - 128 for b in self.take(self.varint(most))]
        if any(abs(e) > 120 for e in exponents):
            raise PayloadError("payload: an exponent is out of range")
        return exponents

    def ordinals(self, n_tensors: int) -> list[int]:
        ordinals: list[int] = []
        for _ in range(self.varint(len(self.data))):
            ordinals.append(self.varint(2**32) + (ordinals[-1] + 1 if ordinals else 0))
            if ordinals[-1] >= 2**32:
                raise PayloadError("payload: a tensor that no model has")
            if ordinals[-1] >= n_tensors:
                raise StateMismatchError("payload: made for another layout")
        if not ordinals:
            raise PayloadError("payload: a list of tensors without any")
        return ordinals


def read_frame(data: bytes, n_tensors: int = 2**32, expected: bytes | None = None) -> Frame:
    """The fields of a payload, each checked against its legal values.

    No list may name a tensor beyond ``n_tensors``, those that the receiver's layout has;
    ``expected`` is the digest that the payload must have, if it is known.
    """
    if len(data) < 22 or data[:3] != b"RFD":
        raise PayloadError("payload: not a payload of this codec, or truncated")
    if data[3] != 1:
        raise PayloadError(f"payload: format version {data[3]} is not known")
    if crc32c(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise PayloadError("payload: damaged")
    if expected is not None and data[6:14] != expected:
        raise StateMismatchError("payload: made for another layout, or on other versions")
    reader = Reader(data[:-4])
    reader.take(4)
    flags, lane_log2 = reader.byte(), reader.byte()
    if flags & ~7 or not 6 <= lane_log2 <= 12:
        raise PayloadError("payload: unknown flags or lane size")
    digest, check = reader.take(8), int.from_bytes(reader.take(4), "little")
    link = reader.take(reader.varint()) if flags & 2 else b""
    if flags & 2 and not link:
        raise PayloadError("payload: a link without content")

    has_dense = bool(flags & 4)
    n_m, n_v, n_d, n_l = (reader.varint(2**61 - 1) if i != 2 or has_dense else 0 for i in range(4))
    matrix = reader.group(n_m, with_exponents=False, n_tensors=n_tensors)
    vector = reader.group(n_v, with_exponents=True, n_tensors=n_tensors)
    dense = reader.group(n_d, with_exponents=True, n_tensors=n_tensors)
    n_changed = reader.varint(n_l) if n_l else 0
    exclusions = reader.ordinals(n_tensors) if flags & 1 else []
    dense_tensors = reader.ordinals(n_tensors) if has_dense else []
    if set(exclusions) & set(dense_tensors):
        raise PayloadError("payload: a tensor is both excluded and dense")

    f = Frame(
        digest,
        check,
        link,
        matrix,
        vector,
        dense,
        n_l,
        n_changed,
        exclusions,
        dense_tensors,
        lane_log2=lane_log2,
    )
    if f.n_sent:
        f.tables = reader.take(reader.varint())
    if f.n_changed:
        f.change_tables = reader.take(reader.varint())
    if 4 * (f.n_lanes + f.n_lossless_lanes) > len(reader.data) - reader.at:  # each has a state
        raise PayloadError("payload: truncated in its slices")
    lengths = [2 * reader.varint() for _ in range(f.n_slices - 1)]
    f.slices = [reader.take(n) for n in lengths]
    rest = reader.take(len(data) - 4 - reader.at)
    if f.n_slices:
        f.slices.append(rest)
    elif rest:
        raise PayloadError("payload: unexpected bytes at the end")
    return f
