"""Corrupt payloads raise PayloadError or StateMismatchError, change nothing and never crash."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import resfed_codec as rfc
from checksums import sealed, with_flipped_bits
from models import LAYOUT_CHANGES, State, assert_same, cnn_pair, with_another_layout
from resfed_codec import reference as slow
from resfed_codec.reference.frame import read_frame, write_frame
from resfed_codec.stream.wire import varint

REFUSED = (rfc.PayloadError, rfc.StateMismatchError)


@pytest.fixture(scope="module")
def pair() -> tuple[State, State]:
    return cnn_pair(np.random.default_rng(7))


@pytest.fixture(scope="module")
def payload(pair: tuple[State, State]) -> bytes:
    return rfc.encode(*pair, sparsity=0.95, exclude="fc.bias")


def refuse(payload: bytes, reference: State) -> None:
    """decode raises an error and leaves reference and out unchanged; inspect does not crash."""
    before = {name: value.copy() for name, value in reference.items()}
    out = {name: np.full_like(value, 3) for name, value in reference.items()}
    untouched = {name: value.copy() for name, value in out.items()}
    with pytest.raises(REFUSED, match=r"^payload: "):
        rfc.decode(payload, reference, out=out)
    assert_same(reference, before)
    assert_same(out, untouched)
    with contextlib.suppress(rfc.PayloadError):
        rfc.inspect(payload)


def test_truncated_at_every_length(payload: bytes, pair: tuple[State, State]) -> None:
    for n in range(len(payload)):
        refuse(payload[:n], pair[1])


def test_every_bit_flipped(payload: bytes, pair: tuple[State, State]) -> None:
    for damaged in with_flipped_bits(payload):
        refuse(damaged, pair[1])


@pytest.mark.slow
def test_every_bit_flipped_with_a_valid_checksum(payload: bytes, pair: tuple[State, State]) -> None:
    """With a valid checksum, the checks of structure and reference must find the damage.

    A few bits may change unnoticed because no value depends on them: another nominal size of lanes
    with the same lanes, or the offset of a level without members. The model is then the same.
    """
    expected = rfc.decode(payload, pair[1])
    survivors = 0
    for forged in map(sealed, with_flipped_bits(payload[:-4])):
        try:
            assert_same(rfc.decode(forged, pair[1]), expected)
            survivors += 1
        except REFUSED:
            refuse(forged, pair[1])
    assert survivors < 48


@pytest.mark.parametrize("read", [rfc.inspect, read_frame])
def test_a_tensor_that_no_model_has(read: Any, payload: bytes) -> None:
    frame = read_frame(payload)
    frame.exclusions = [2**32 - 1, 2**32]
    with pytest.raises(rfc.PayloadError, match=r"^payload: "):
        read(write_frame(frame))


def test_truncated_or_extended_with_a_valid_checksum(
    payload: bytes, pair: tuple[State, State]
) -> None:
    for n in range(len(payload) - 4):
        refuse(sealed(payload[:n]), pair[1])
    for extra in (b"\0", b"\0\0", b"\xff\xff\xff\xff"):
        refuse(sealed(payload[:-4] + extra), pair[1])


@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    refuse(data, cnn_pair(np.random.default_rng(7))[1])


@given(st.binary(max_size=200))
def test_random_bytes_after_a_valid_header(data: bytes) -> None:
    reference = cnn_pair(np.random.default_rng(7))[1]
    header = rfc.encode(reference, reference)[:18]
    refuse(sealed(header + data), reference)


@pytest.mark.parametrize("n", [0, 1, 1000, 2**31, 2**40, 2**60, 2**62, 2**63 - 1])
@pytest.mark.parametrize("lane_log2", [6, 12, 20])
def test_absurd_sizes(n: int, lane_log2: int, pair: tuple[State, State]) -> None:
    """Sizes are checked against the reference and the number of bytes."""
    reference = pair[1]
    header = bytearray(rfc.encode(reference, reference)[:18])
    header[5] = lane_log2
    quantizer = struct.pack("<ffB", 1.0, 1.0, 0)
    refuse(sealed(bytes(header) + varint(n) * 3 + varint(n) + quantizer + b"\0\0"), reference)
    real = varint(9728) + varint(74) + varint(1)
    refuse(sealed(bytes(header) + real + varint(n) + quantizer + bytes(60)), reference)


def test_a_full_payload_is_bounded_by_the_model(pair: tuple[State, State]) -> None:
    """A payload of k = n with nearly empty lanes."""
    reference = {"w": np.zeros((1000, 1000), np.float32)}
    header = bytearray(rfc.encode(reference, reference)[:18])
    header[5] = 12
    counts = varint(10**6) + b"\0\0" + varint(10**6)
    refuse(sealed(bytes(header) + counts + struct.pack("<ffB", 1, 1, 0) + bytes(4)), reference)


@pytest.mark.parametrize("lane_log2", [0, 5, 13, 20, 63, 255])
def test_lanes_have_bounds(lane_log2: int, payload: bytes, pair: tuple[State, State]) -> None:
    """A long lane is much work for few bytes, and one thread does all of it."""
    forged = sealed(payload[:5] + bytes([lane_log2]) + payload[6:-4])
    with pytest.raises(rfc.PayloadError, match="the field at byte 5 holds"):
        rfc.decode(forged, pair[1])
    with pytest.raises(rfc.PayloadError):
        slow.decode(forged, pair[1])


# A payload of one dense tensor `b` beside a matrix, an excluded and an integer tensor; ordinals
# a = 0, b = 1, c = 2, n = 3.
SMALL = {
    "a": np.zeros((2, 2), np.float32),
    "b": np.zeros(3, np.float32),
    "c": np.zeros(5, np.float32),
    "n": np.zeros(7, np.int64),
}


def forged(
    *,
    flags: int = 5,
    counts: tuple[int, ...] = (4, 0, 3, 12),
    exclusions: bytes = b"\x01\x02",
    dense: bytes = b"\x01\x01",
    k: bytes = b"\0",
    rest: bytes = b"",
) -> bytes:
    """A payload that sends nothing, unless ``k`` and ``rest`` say otherwise."""
    header = bytearray(rfc.encode(SMALL, SMALL)[:18])
    header[4] = flags
    sizes = b"".join(varint(n) for n in counts)
    k_matrix = b"\0" if counts[0] else b""
    return sealed(bytes(header) + sizes + k_matrix + k + b"\0" + exclusions + dense + rest)


def test_a_forged_payload_with_dense_tensors_may_be_valid() -> None:
    assert forged() == rfc.encode(SMALL, SMALL, exclude="c", dense="b")
    assert_same(rfc.decode(forged(), SMALL), SMALL)


QUANTIZER = struct.pack("<ffB", 1.0, 1.0, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"dense": b"\0"},  # an empty list
        {"dense": b"\x01\x02"},  # excluded and dense
        {"exclusions": b"\x01\x01", "counts": (4, 0, 3, 10)},
        {"dense": b"\x01\x03"},  # not a float
        {"dense": b"\x02\x01\x01", "counts": (4, 0, 3, 12)},  # one is not a float
        {"dense": b"\x01\x04"},  # beyond the last tensor
        {"dense": b"\x01\xff\xff\xff\xff\x0f"},
        {"dense": b"\x02\x01\x7f"},
        {"dense": b"\x05\x01"},  # too long a list
        {"dense": b"\xff\xff\xff\xff\x7f"},
        {"dense": b"\x01\x00"},  # a matrix, of another size
        {"dense": b"\x01\x81\x00"},  # not the shortest form
        {"counts": (4, 0, 2, 12)},
        {"counts": (4, 0, 4, 12)},
        {"counts": (4, 3, 0, 12), "k": b"\0"},
        {"counts": (4, 0, 2**60, 12)},
        {"counts": (4, 0, 2**62, 12)},
        {"flags": 1},
        {"flags": 13},
        {"k": b"\x04"},  # more than exist
        {"k": b"\x01" + QUANTIZER + b"\0"},  # no exponent
        {"k": b"\x01" + QUANTIZER + b"\x02\0\0"},  # too many
        {"k": b"\x01" + QUANTIZER + b"\x01\x79"},  # out of range
        {"k": b"\x01" + struct.pack("<ffB", 0.0, 1.0, 0) + b"\x01\0"},
        {"k": b"\x01" + QUANTIZER + b"\x01\0", "rest": bytes(8)},  # not a valid slice
    ],
    ids=str,
)
def test_invalid_lists_of_dense_tensors(changes: dict[str, Any]) -> None:
    refuse(forged(**changes), SMALL)
    with pytest.raises(REFUSED):
        slow.decode(forged(**changes), SMALL)


def test_every_bit_of_a_stream_with_dense_tensors() -> None:
    """A Decoder reads the same lists."""
    rng = np.random.default_rng(0)
    state = {n: v + rng.integers(1, 9, v.shape).astype(v.dtype) for n, v in SMALL.items()}
    payload = rfc.Encoder(SMALL, exclude="c", dense="b").encode(state)
    for forged in map(sealed, with_flipped_bits(payload[:-4])):
        decoder = rfc.Decoder(SMALL)
        with contextlib.suppress(*REFUSED):
            decoder.decode(forged)
            continue
        assert_same(decoder.state, SMALL)


def test_another_reference(payload: bytes, pair: tuple[State, State]) -> None:
    _, reference = pair
    wrong = {n: v + 1 if v.dtype.kind == "f" else v for n, v in reference.items()}
    with pytest.raises(rfc.StateMismatchError, match="another reference"):
        rfc.decode(payload, wrong)
    with pytest.raises(rfc.StateMismatchError, match="another reference"):
        rfc.decode(payload, rfc.decode(payload, reference))
    negative_zero = {"w": np.zeros((4, 4), np.float32)}
    update = rfc.encode({"w": np.eye(4, dtype=np.float32)}, negative_zero, sparsity=0)
    with pytest.raises(rfc.StateMismatchError, match="another reference"):
        rfc.decode(update, {"w": -negative_zero["w"]})


@pytest.mark.parametrize("change", LAYOUT_CHANGES)
def test_another_layout(change: str, payload: bytes, pair: tuple[State, State]) -> None:
    other = with_another_layout(pair[1], "fc.weight", change)
    with pytest.raises(rfc.StateMismatchError, match="another layout"):
        rfc.decode(payload, other)


def test_future_versions(payload: bytes, pair: tuple[State, State]) -> None:
    with pytest.raises(rfc.PayloadError, match="format version 2 is not known"):
        rfc.decode(payload[:3] + b"\2" + payload[4:], pair[1])


def test_errors_are_value_errors() -> None:
    assert issubclass(rfc.PayloadError, rfc.CodecError)
    assert issubclass(rfc.StateMismatchError, rfc.CodecError)
    assert issubclass(rfc.CodecError, ValueError)


@pytest.mark.parametrize("wrong", ["text", 5, None, [1, 2], np.zeros(4)])
def test_payload_of_a_wrong_type(wrong: object) -> None:
    with pytest.raises(TypeError, match="payload: must be bytes-like"):
        rfc.decode(wrong, {})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="payload: must be bytes-like"):
        rfc.inspect(wrong)  # type: ignore[arg-type]


def test_bytes_like_payloads(payload: bytes, pair: tuple[State, State]) -> None:
    expected = rfc.decode(payload, pair[1])
    assert_same(rfc.decode(bytearray(payload), pair[1]), expected)
    assert_same(rfc.decode(memoryview(payload), pair[1]), expected)
