"""Byte planes of keyframes: both implementations code alike what no float would make."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import resfed_codec as rfc
from checksums import sealed
from marks import slow_except
from resfed_codec import reference as slow
from resfed_codec.reference.bits import BitWriter
from resfed_codec.reference.frame import varint
from resfed_codec.reference.keyframe import (
    CONSTANT,
    RAW,
    count_lanes,
    encode_plane,
    frequencies_of,
    read_frequencies,
    write_frequencies,
)
from resfed_codec.reference.rans import Encoder


def agree(plane: bytes) -> int:
    """Both make the same keyframe of one byte plane, and decode it; returns its mode."""
    state = [np.frombuffer(plane, np.uint8)]
    mode, coded = encode_plane(plane)
    keyframe = rfc.encode_keyframe(state)
    assert keyframe[12:-4] == varint(mode) + coded
    for decode in (rfc.decode_keyframe, slow.decode_keyframe):
        assert decode(keyframe, state)[0].tobytes() == plane
    return mode


@given(
    n=st.integers(1, 300),
    values=st.lists(st.integers(0, 255), min_size=1, max_size=5),
    noise=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    seed=st.integers(0, 999),
)
def test_any_plane(n: int, values: list[int], noise: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    plane = np.where(rng.random(n) < noise, rng.integers(0, 256, n), rng.choice(values, n))
    agree(plane.astype(np.uint8).tobytes())


@pytest.mark.parametrize("n", slow_except([4095, 4096], [2048, 4095, 4096, 65_535, 65_536]))
def test_lanes(n: int, rng: np.random.Generator) -> None:
    """One lane for each 2048 bytes."""
    assert count_lanes(n) == {2048: 1, 4095: 1, 4096: 2, 65_535: 31, 65_536: 32}[n]
    plane = np.minimum(rng.geometric(0.2, n), 255).astype(np.uint8)
    assert agree(plane.tobytes()) < 0.6 * n


def test_planes_at_the_limit(rng: np.random.Generator) -> None:
    """Around where coding no longer saves 1/64."""
    normal = rng.standard_normal(4096)
    planes = [(normal * spread % 256).astype(np.uint8).tobytes() for spread in range(36, 48)]
    sizes = [agree(plane) for plane in planes]
    n_coded = len([size for size in sizes if size != RAW])
    assert 2 < n_coded < 10
    assert RAW not in sizes[:n_coded]
    assert 0.97 * 4096 < max(sizes) < 63 / 64 * 4096 + 8


def test_rare_bytes(rng: np.random.Generator) -> None:
    """One byte all but once, and all bytes with frequencies of at least 1."""
    assert agree(b"\7" * 5000) == CONSTANT
    assert CONSTANT < agree(b"\7" * 4999 + b"\xff") < 50
    assert CONSTANT < agree(b"\7" * 2500 + bytes([0]) + b"\7" * 2500) < 30
    row = frequencies_of(bytes(256 * 100) + bytes(range(256)))
    assert (min(row), sum(row)) == (1, 4096)
    assert agree(bytes(256 * 100) + bytes(range(256))) > CONSTANT


@given(st.binary(min_size=2, max_size=400))
def test_frequencies(plane: bytes) -> None:
    if len(set(plane)) > 1:
        row = frequencies_of(plane)
        assert sum(row) == 4096
        assert {byte for byte, f in enumerate(row) if f} == set(plane)
        written = write_frequencies(row)
        assert read_frequencies(written + b"more") == (row, len(written))


# ---- Damage


PLANE = bytes([5, 5, 5, 9, 6, 5, 5, 5] * 40)


def keyframe_of(frequencies: bytes, row: tuple[int, ...]) -> bytes:
    """A keyframe of PLANE, coded with a row, in which these bytes say what the row is."""
    encoder = Encoder(1)
    for byte in PLANE:
        encoder.symbol(0, row, byte)
    coded = frequencies + encoder.finish()
    header = rfc.encode_keyframe([np.frombuffer(PLANE, np.uint8)])[:12]
    return sealed(header + varint(len(coded)) + coded)


def written(first: int, last: int, frequencies: list[int], fill: int = 0) -> bytes:
    out = BitWriter()
    out.put(first, 8)
    out.put(last, 8)
    for f in frequencies:
        out.put_gamma(f + 1)
    while len(out.bits) % 8:
        out.put(fill)
    return out.finish()


def decoded(keyframe: bytes) -> list[Any]:
    """What both decoders make of it: bytes, or an error."""
    like = [np.zeros(len(PLANE), np.uint8)]
    results: list[Any] = []
    for decode in (rfc.decode_keyframe, slow.decode_keyframe):
        try:
            results.append(decode(keyframe, like)[0].tobytes())
        except rfc.PayloadError as error:
            results.append(type(error))
    return results


USED = [3000, 96, 0, 0, 1000]
ROW = (*[0] * 5, *USED, *[0] * 246)


def test_any_legal_frequencies() -> None:
    """Others than an encoder would choose."""
    assert decoded(keyframe_of(written(5, 9, USED), ROW)) == [PLANE, PLANE]


@pytest.mark.parametrize(
    "frequencies",
    [
        written(5, 9, USED, fill=1),
        written(4, 9, [0, *USED]),
        written(5, 10, [*USED, 0]),
        written(5, 9, [3000, 97, 0, 0, 1000]),
        written(5, 9, [3000, 95, 0, 0, 1000]),
        written(5, 5, [4096]),
        written(9, 5, []),
        written(5, 9, [4096, 0, 0, 0, 4096]),
        written(5, 9, [2**20, 0, 0, 0, 1]),
        written(5, 9, [])[:2],
        b"",
    ],
    ids=range(11),
)
def test_illegal_frequencies(frequencies: bytes) -> None:
    assert decoded(keyframe_of(frequencies, ROW)) == [rfc.PayloadError] * 2


@pytest.mark.parametrize("seed", range(4))
def test_damaged_slices(seed: int) -> None:
    """The same error or the same bytes."""
    rng = np.random.default_rng(seed)
    body = keyframe_of(written(5, 9, USED), ROW)[:-4]
    assert body[12] == len(body) - 13  # the mode takes a byte
    n_refused = 0
    for at in rng.integers(13, len(body), 100):
        forged = bytearray(body)
        forged[at] ^= 1 << int(rng.integers(8))
        ours, theirs = decoded(sealed(bytes(forged)))
        assert ours == theirs
        n_refused += ours is rfc.PayloadError
    assert n_refused > 50
    for extra in (b"\0", b"\0\0"):
        coded = body[13:] + extra
        longer = sealed(body[:12] + varint(len(coded)) + coded)
        assert decoded(longer) == [rfc.PayloadError] * 2
