"""Keyframes are bit-exact and deterministic; corrupt ones raise an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import make_keyframes
import resfed_codec as rfc
from checksums import sealed, with_flipped_bits
from models import (
    FLOATS,
    INTEGERS,
    LAYOUT_CHANGES,
    State,
    assert_same,
    cnn_pair,
    pairs,
    with_another_layout,
)
from resfed_codec import reference as slow

REFUSED = (rfc.PayloadError, rfc.StateMismatchError)
MANTISSA_BITS = {"float16": 10, "float32": 23, "float64": 52}


def patterns(dtype: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Bit patterns of every class: NaN payloads, infinities, zeros of both signs, subnormals."""
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    array = np.frombuffer(rng.bytes(n_bytes), dtype).reshape(shape).copy()
    edges = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, np.finfo(dtype).max], dtype)
    array.flat[: len(edges)] = edges[: array.size]
    return array


def weights(shape: tuple[int, ...], rng: np.random.Generator, dtype: str = "f4") -> np.ndarray:
    return (0.02 * rng.standard_normal(shape)).astype(dtype)


def model(rng: np.random.Generator) -> State:
    """A small model with byte planes of every kind: coded, constant and raw."""
    return {
        "w": weights((20, 30), rng),
        "h": weights((50,), rng, "f2"),
        "d": patterns("f8", (3, 3), rng),
        "n": np.array(12345),
        "m": rng.integers(0, 2, 40).astype(bool),
        "e": np.zeros((0, 4), np.float32),
        "z": np.zeros(100, np.float32),
    }


# ---- round trips


@given(pairs(), st.sampled_from([None, 0, 3, 7, 10, 23, 52]))
def test_anything(pair: tuple[State, State], mantissa_bits: int | None) -> None:
    """Each of the two implementations decodes what the other encodes, for any model."""
    state, like = pair
    payload = rfc.encode_keyframe(state, mantissa_bits=mantissa_bits)
    assert payload == slow.encode_keyframe(state, mantissa_bits=mantissa_bits)
    decoded = rfc.decode_keyframe(payload, like)
    assert_same(slow.decode_keyframe(payload, like), decoded)
    if mantissa_bits in (None, 52):
        assert_same(decoded, {name: state[name] for name in like})


@given(st.data(), st.sampled_from(FLOATS + INTEGERS))
def test_any_bits(data: st.DataObject, dtype: str) -> None:
    bits = f"u{np.dtype(dtype).itemsize}" if dtype != "bool" else "bool"
    state = [data.draw(hnp.arrays(bits, st.integers(0, 40))).view(dtype)]
    payload = rfc.encode_keyframe(state)
    assert payload == slow.encode_keyframe(state)
    assert_same(rfc.decode_keyframe(payload, state), state)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [1, 2, 9, 700, 65535, 65536, 65537, 140_000])
def test_chunks(n: int, dtype: str, rng: np.random.Generator) -> None:
    state = {"p": patterns(dtype, (n,), rng), "w": weights((n,), rng, dtype)}
    payload = rfc.encode_keyframe(state)
    assert_same(rfc.decode_keyframe(payload, state), state)
    if n in (700, 65537) and dtype == "float16":
        assert payload == slow.encode_keyframe(state)
        assert_same(slow.decode_keyframe(payload, state), state)


@pytest.mark.parametrize("mantissa_bits", [None, 7])
def test_threads(mantissa_bits: int | None, rng: np.random.Generator) -> None:
    state = {
        "w": weights((500, 700), rng),
        "h": weights((70_000,), rng, "f2"),
        "n": rng.integers(0, 9, 150_000),
        "b": weights((10,), rng),
    }
    payloads = []
    for threads in (1, 2, 3):
        rfc.set_num_threads(threads)
        payloads.append(rfc.encode_keyframe(state, mantissa_bits=mantissa_bits))
        decoded = rfc.decode_keyframe(payloads[0], state)
        if mantissa_bits is None:
            assert_same(decoded, state)
    assert payloads[0] == payloads[1] == payloads[2]


def test_kinds_orders_strides(rng: np.random.Generator) -> None:
    state = model(rng)
    payload = rfc.encode_keyframe(state)
    shuffled = dict(reversed(state.items()))
    assert rfc.encode_keyframe(shuffled) == payload
    assert_same(rfc.decode_keyframe(payload, shuffled), shuffled)
    strided = {**state, "w": np.asfortranarray(state["w"])}
    assert rfc.encode_keyframe(strided) == payload
    assert_same(rfc.decode_keyframe(bytearray(payload), strided), state)
    sequence = (state["w"], state["n"])
    assert_same(rfc.decode_keyframe(rfc.encode_keyframe(sequence), sequence), list(sequence))
    for empty in ({}, []):
        assert rfc.decode_keyframe(rfc.encode_keyframe(empty), empty) == empty
        assert len(rfc.encode_keyframe(empty)) == 16


def test_out(rng: np.random.Generator) -> None:
    state = model(rng)
    payload = rfc.encode_keyframe(state)
    out = {name: np.full_like(value, 3) for name, value in state.items()}
    assert rfc.decode_keyframe(payload, state, out=out) is out
    assert_same(out, state)
    like = {name: np.full_like(value, 3) for name, value in state.items()}
    rfc.decode_keyframe(payload, like, out=like)
    assert_same(like, state)
    with pytest.raises(ValueError, match="out lacks 'w'"):
        rfc.decode_keyframe(payload, state, out={n: v for n, v in out.items() if n != "w"})
    out["w"] = np.asfortranarray(out["w"])
    with pytest.raises(ValueError, match="out: tensor 'w' is not C-contiguous"):
        rfc.decode_keyframe(payload, state, out=out)
    out["w"] = np.zeros((20, 30), np.float32)
    out["w"].flags.writeable = False
    with pytest.raises(ValueError, match="out: tensor 'w' is read-only"):
        rfc.decode_keyframe(payload, state, out=out)


# ---- fewer mantissa bits


def rounded(array: np.ndarray, mantissa_bits: int) -> np.ndarray:
    """Rounded with exact arithmetic on the value, not on its bits."""
    x = array.astype(np.float64)
    _, exponent = np.frexp(x)
    info = np.finfo(array.dtype)
    unit = np.ldexp(1.0, np.maximum(exponent - 1, info.minexp) - mantissa_bits)
    largest = np.ldexp(2.0 - 2.0**-mantissa_bits, int(info.maxexp) - 1)
    with np.errstate(all="ignore"):
        values = np.clip(np.rint(x / unit) * unit, -largest, largest)
    return np.where(np.isfinite(x), values, x).astype(array.dtype)


@pytest.mark.parametrize("mantissa_bits", [1, 2, 7, 9, 10, 22, 23, 52])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rounds_to_nearest_even(dtype: str, mantissa_bits: int, rng: np.random.Generator) -> None:
    array = patterns(dtype, (20_000,), rng)
    payload = rfc.encode_keyframe([array], mantissa_bits=mantissa_bits)
    decoded = rfc.decode_keyframe(payload, [array])[0]
    if mantissa_bits >= MANTISSA_BITS[dtype]:
        assert_same([decoded], [array])
        return
    nan = np.isnan(array)
    assert_same([decoded[nan]], [array[nan]])
    np.testing.assert_array_equal(np.signbit(decoded), np.signbit(array))
    assert_same([decoded[~nan]], [rounded(array[~nan], mantissa_bits)])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mantissa_bits", [0, 1, 5])
def test_never_infinite(dtype: str, mantissa_bits: int, rng: np.random.Generator) -> None:
    array = patterns(dtype, (5000,), rng)
    payload = rfc.encode_keyframe([array], mantissa_bits=mantissa_bits)
    decoded = rfc.decode_keyframe(payload, [array])[0]
    np.testing.assert_array_equal(np.isinf(decoded), np.isinf(array))
    np.testing.assert_array_equal(np.isnan(decoded), np.isnan(array))
    largest = np.finfo(dtype).max
    ends = np.array([largest, -largest], dtype)
    decoded = rfc.decode_keyframe(rfc.encode_keyframe([ends], mantissa_bits=mantissa_bits), [ends])
    scale = np.ldexp(1.0, int(np.finfo(dtype).maxexp) - 1)
    np.testing.assert_array_equal(
        decoded[0] / scale, [2 - 2.0**-mantissa_bits, 2.0**-mantissa_bits - 2]
    )


def test_rounding_twice_changes_nothing(rng: np.random.Generator) -> None:
    state = model(rng)
    payload = rfc.encode_keyframe(state, mantissa_bits=4)
    decoded = rfc.decode_keyframe(payload, state)
    assert rfc.encode_keyframe(decoded, mantissa_bits=4) == payload
    assert rfc.encode_keyframe(decoded) == payload
    for name in ("n", "m"):
        assert_same([decoded[name]], [state[name]])


@pytest.mark.parametrize("wrong", [1.0, "7", True, [7]])
def test_mantissa_bits_of_a_wrong_type(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"mantissa_bits=.*: must be an integer, not"):
        rfc.encode_keyframe([], mantissa_bits=wrong)


@pytest.mark.parametrize("bad", [-1, 53, 10**30])
def test_mantissa_bits_out_of_range(bad: int) -> None:
    with pytest.raises(ValueError, match=r"mantissa_bits=.*: must lie in \[0, 52\]"):
        rfc.encode_keyframe([], mantissa_bits=bad)
    assert rfc.encode_keyframe([], mantissa_bits=np.int64(3)) == rfc.encode_keyframe([])


# ---- torch


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64", "int64", "bool"])
def test_torch(dtype: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    array = rng.standard_normal((30, 40)).astype(getattr(ml_dtypes, dtype, dtype))
    state = {"w": torch.tensor(array.astype("f8")).to(getattr(torch, dtype))}
    payload = rfc.encode_keyframe(state)
    assert payload == slow.encode_keyframe({"w": array})
    decoded = rfc.decode_keyframe(payload, state)
    assert decoded["w"].dtype == state["w"].dtype
    assert torch.equal(decoded["w"], state["w"])
    out = {"w": torch.zeros_like(state["w"])}
    assert rfc.decode_keyframe(payload, state, out=out) is out
    assert torch.equal(out["w"], state["w"])


def test_bfloat16_rounding(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    array = rng.standard_normal(3000).astype(ml_dtypes.bfloat16)
    state = [torch.tensor(array.astype("f8")).bfloat16()]
    payload = rfc.encode_keyframe(state, mantissa_bits=3)
    assert payload == slow.encode_keyframe([array], mantissa_bits=3)
    decoded = rfc.decode_keyframe(payload, state)[0].float().numpy()
    np.testing.assert_array_equal(decoded, rounded(state[0].float().numpy(), 3))
    assert rfc.encode_keyframe(state, mantissa_bits=7) == rfc.encode_keyframe(state)


# ---- damage


def refuse(payload: bytes, like: State) -> None:
    out = {name: np.full_like(value, 3) for name, value in like.items()}
    untouched = {name: value.copy() for name, value in out.items()}
    with pytest.raises(REFUSED, match=r"^payload: "):
        rfc.decode_keyframe(payload, like, out=out)
    assert_same(out, untouched)


def test_truncated_at_every_length(rng: np.random.Generator) -> None:
    state = model(rng)
    payload = rfc.encode_keyframe(state)
    for n in range(len(payload)):
        refuse(payload[:n], state)
    for n in range(len(payload) - 4):
        refuse(sealed(payload[:n]), state)
    for extra in (b"\0", b"\0\0", b"\xff\xff\xff\xff"):
        refuse(payload + extra, state)
        refuse(sealed(payload[:-4] + extra), state)


def test_every_byte_damaged(rng: np.random.Generator) -> None:
    state = model(rng)
    payload = rfc.encode_keyframe(state)
    for damaged in with_flipped_bits(payload):
        refuse(damaged, state)


@pytest.mark.slow
def test_every_byte_damaged_with_a_valid_checksum(rng: np.random.Generator) -> None:
    """With a valid checksum, raw bytes may decode to a changed value. The result is an error or a
    model, the same for both implementations."""
    state = model(rng)
    body = rfc.encode_keyframe(state)[:-4]
    n_decoded = 0
    for i in range(len(body)):
        damaged = bytearray(body)
        damaged[i] ^= 1 << i % 8
        forged = sealed(bytes(damaged))
        try:
            decoded = rfc.decode_keyframe(forged, state)
        except REFUSED as error:
            refuse(forged, state)
            with pytest.raises(type(error)):
                slow.decode_keyframe(forged, state)
            continue
        n_decoded += 1
        if i % 16 == 0:
            assert_same(slow.decode_keyframe(forged, state), decoded)
    assert 0 < n_decoded < len(body)


@given(st.binary(max_size=200), st.booleans())
def test_random_bytes(data: bytes, with_header: bool) -> None:
    state = model(np.random.default_rng(5))
    header = rfc.encode_keyframe(state)[:12] if with_header else b""
    refuse(sealed(header + data), state)


def test_lengths_beyond_the_payload() -> None:
    state = {"w": np.zeros(100, np.uint8)}
    header = rfc.encode_keyframe(state)[:12]
    assert_same(rfc.decode_keyframe(sealed(header + b"\1\5"), state), {"w": state["w"] + 5})
    assert_same(rfc.decode_keyframe(sealed(header + b"\0" + bytes(100)), state), state)
    for table in (b"\0", b"\1", b"\2", b"\x63", b"\x64", b"\xff\x7f", b"\xff" * 8 + b"\x7f"):
        refuse(sealed(header + table), state)
        refuse(sealed(header + table + bytes(99)), state)
    with pytest.raises(rfc.PayloadError, match="byte 12 holds 100, which is not allowed"):
        rfc.decode_keyframe(sealed(header + b"\x64" + bytes(100)), state)
    with pytest.raises(rfc.PayloadError, match="slice 0 is damaged"):
        rfc.decode_keyframe(sealed(header + b"\2" + bytes(2)), state)
    with pytest.raises(rfc.PayloadError, match="truncated"):
        rfc.decode_keyframe(sealed(header + b"\0" + bytes(99)), state)
    with pytest.raises(rfc.PayloadError, match="unexpected bytes from byte 14 on"):
        rfc.decode_keyframe(sealed(header + b"\1\5\5"), state)


def test_foreign_and_future_payloads(rng: np.random.Generator) -> None:
    state, like = cnn_pair(rng)
    keyframe, update = rfc.encode_keyframe(state), rfc.encode(state, like)
    with pytest.raises(rfc.PayloadError, match=r"this is an update: give it to decode\(\)"):
        rfc.decode_keyframe(update, like)
    with pytest.raises(rfc.PayloadError, match=r"a keyframe.*give it to decode_keyframe\(\)"):
        rfc.decode(keyframe, like)
    with pytest.raises(rfc.PayloadError, match="not a payload of this codec: wrong magic"):
        rfc.decode(b"RFX" + update[3:], like)
    with pytest.raises(rfc.PayloadError, match="format version 2 is not known"):
        rfc.decode_keyframe(keyframe[:3] + b"\2" + keyframe[4:], like)
    with pytest.raises(TypeError, match="payload: must be bytes-like"):
        rfc.decode_keyframe("text", like)  # type: ignore[call-overload]


@pytest.mark.parametrize("change", LAYOUT_CHANGES)
def test_another_layout(change: str, rng: np.random.Generator) -> None:
    state = model(rng)
    payload = rfc.encode_keyframe(state)
    other = with_another_layout(state, "w", change)
    for decode in (rfc.decode_keyframe, slow.decode_keyframe):
        with pytest.raises(rfc.StateMismatchError, match=r"^payload: made for another layout"):
            decode(payload, other)
    refuse(payload, other)


def test_states_that_cannot_be_read() -> None:
    for call in (rfc.encode_keyframe, lambda state: rfc.decode_keyframe(b"", state)):
        with pytest.raises(TypeError, match="must be a mapping"):
            call(5)
        with pytest.raises(TypeError, match="dtype object is not supported"):
            call([np.zeros(3, object)])


# ---- sizes, and stored keyframes


def test_sizes_on_a_real_model(snapshots: dict[str, State]) -> None:
    state = snapshots["g8"]
    n_bytes = sum(array.nbytes for array in state.values())
    payload = rfc.encode_keyframe(state)
    assert len(payload) < 0.83 * n_bytes
    assert_same(rfc.decode_keyframe(payload, state), state)
    assert 8 * len(rfc.encode_keyframe(state, mantissa_bits=7)) < 10.5 * (n_bytes / 4)


def test_incompressible_models_grow_little(rng: np.random.Generator) -> None:
    state = [np.frombuffer(rng.bytes(100_000), np.uint8)]
    assert len(rfc.encode_keyframe(state)) == 16 + 2 + 100_000
    assert len(rfc.encode_keyframe([np.zeros(10**6)])) == 16 + 16 * (8 + 8)


@pytest.mark.parametrize("name", make_keyframes.cases())
def test_golden(name: str) -> None:
    """Stored keyframes decode, and this version's encoder makes the same bytes."""
    state, options = make_keyframes.cases()[name]
    stored = (make_keyframes.FOLDER / f"{name}.rfk").read_bytes()
    assert rfc.encode_keyframe(state, **options) == stored
    with np.load(make_keyframes.FOLDER / f"{name}.npz") as arrays:
        expected = {key: arrays[key] for key in state}
    assert_same(rfc.decode_keyframe(stored, state), expected)
    assert_same(slow.decode_keyframe(stored, state), expected)


def test_the_worked_example_of_the_format_document() -> None:
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    dump = text.split("<!-- keyframe example -->")[1].split("```")[1]
    stored = bytes.fromhex("".join(line.split("|")[0] for line in dump.strip().splitlines()))
    state = {"w": np.array([1, -2, 0.5], np.float32)}
    assert rfc.encode_keyframe(state) == stored
    assert_same(rfc.decode_keyframe(stored, state), state)
