"""The two implementations of the specification make the same bytes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import resfed_codec as rfc
from marks import slow_except
from models import State, assert_same, clustered, cnn_pair, options, pairs
from resfed_codec import reference as slow
from resfed_codec.reference.frame import crc32c
from resfed_codec.reference.slices import Contexts, Decoder, Encoder


def assert_agree(state: Any, base: Any, config: dict[str, Any]) -> None:
    """Both make the same bytes, and both decode them to the same model."""
    running = [name for name in base if "running_" in name] if isinstance(base, dict) else []
    with np.errstate(all="ignore"):
        theirs = slow.encode(state, base, **{"dense": running, **config})
        ours = rfc.encode(state, base, **config)
        differ = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), None)  # noqa: B905
        assert ours == theirs, f"first difference at byte {differ}: {len(ours)} and {len(theirs)}"
        assert_same(slow.decode(ours, base), rfc.decode(ours, base))


@given(pairs(), options())
def test_anything(pair: tuple[State, State], config: dict[str, Any]) -> None:
    assert_agree(*pair, config)


@given(pairs(), st.booleans())
def test_excluded(pair: tuple[State, State], some: bool) -> None:
    state, reference = pair
    if state:
        escaped = "".join(f"[{c}]" if c in "*?[" else c for c in next(iter(state)))
        assert_agree(state, reference, {"exclude": (escaped,) if some else ("*",)})


@given(pairs(), st.integers(40, 300))
def test_max_bytes(pair: tuple[State, State], max_bytes: int) -> None:
    try:
        rfc.encode(*pair, max_bytes=max_bytes)
    except ValueError:
        with pytest.raises(ValueError, match="too small"), np.errstate(all="ignore"):
            slow.encode(*pair, max_bytes=max_bytes)
        return
    assert_agree(*pair, {"max_bytes": max_bytes})


@given(pairs(("float16", "float32", "float64")), st.sampled_from([1.0, 0.5, 0.1]))
def test_max_error(pair: tuple[State, State], max_error: float) -> None:
    try:
        rfc.encode(*pair, max_error=max_error)
    except ValueError:
        refused = "cannot be reached|too small for residuals of float32"
        with pytest.raises(ValueError, match=refused), np.errstate(all="ignore"):
            slow.encode(*pair, max_error=max_error)
        return
    assert_agree(*pair, {"max_error": max_error})


def outer_pair(shape: tuple[int, int], dtype: str, rng: np.random.Generator) -> tuple[State, State]:
    """An update whose rows are noisy multiples of one row, between two tensors without rows."""
    rows = rng.standard_normal((shape[0], 1)) * rng.standard_normal((1, shape[1])) ** 3
    update = {
        "a.bias": rng.standard_normal(30) * 0.1,
        "b.weight": rows + 0.02 * rng.standard_normal(shape),
        "c.weight": rng.standard_normal((1, 200)) ** 3,
    }
    reference = {n: rng.standard_normal(v.shape).astype(dtype) for n, v in update.items()}
    return {n: (v + update[n]).astype(dtype) for n, v in reference.items()}, reference


@pytest.mark.parametrize("sparsity", [0.0, 0.7, 0.95])
@pytest.mark.parametrize("shape", [(120, 90), (700, 2), (40, 1), (3, 2000)])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_similar_rows(
    shape: tuple[int, int], dtype: str, sparsity: float, rng: np.random.Generator
) -> None:
    assert_agree(*outer_pair(shape, dtype, rng), {"sparsity": sparsity})


def test_the_row_above_saves_bytes(rng: np.random.Generator) -> None:
    state, reference = outer_pair((300, 90), "float32", rng)
    flat_state, flat = ({n: v.reshape(1, -1) for n, v in m.items()} for m in (state, reference))
    with_rows = rfc.encode(state, reference, sparsity=0.9)
    assert len(with_rows) < 0.85 * len(rfc.encode(flat_state, flat, sparsity=0.9))


def blocks_pair(
    shape: tuple[int, ...], rng: np.random.Generator, *, outputs: int = 10, side: int = 4
) -> tuple[State, State]:
    """A convolution whose kernels differ in scale, followed by a flattened layer."""
    scale = rng.lognormal(0, 2, shape[:2] + (1,) * (len(shape) - 2))
    channels = rng.lognormal(0, 2, (outputs, shape[0], 1))
    update = {
        "a.bias": rng.standard_normal(7),
        "b.conv": scale * rng.standard_normal(shape),
        "c.head": (channels * rng.standard_normal((outputs, shape[0], side))).reshape(outputs, -1),
    }
    reference = {n: rng.standard_normal(v.shape).astype(np.float32) for n, v in update.items()}
    return {n: v + update[n].astype(np.float32) for n, v in reference.items()}, reference


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.98])
@pytest.mark.parametrize(
    "shape", [(24, 32, 3, 3), (30, 5, 2, 5, 5), (16, 9, 64), (16, 9, 65), (40, 60, 1, 1), (0, 3, 3)]
)
def test_blocks(shape: tuple[int, ...], sparsity: float, rng: np.random.Generator) -> None:
    """Slices of one tensor and of two; blocks up to the maximum size and beyond it."""
    assert_agree(*blocks_pair(shape, rng), {"sparsity": sparsity})


@pytest.mark.parametrize("side", [1, 2, 16, 49, 81])
def test_blocks_that_flattening_made(side: int, rng: np.random.Generator) -> None:
    pair = blocks_pair((12, 8, 3, 3), rng, outputs=60, side=side)
    assert_agree(*pair, {"sparsity": 0.9})


def test_blocks_save_bytes(rng: np.random.Generator) -> None:
    update = {
        "b.conv": rng.uniform(1, 2, (64, 32, 3, 3)) * (rng.random((64, 32, 1, 1)) < 0.1),
        "c.head": (rng.uniform(1, 2, (10, 64, 16)) * (rng.random((10, 64, 1)) < 0.1)).reshape(
            10, -1
        ),
    }
    state = {n: v.astype(np.float32) for n, v in update.items()}
    reference = {n: np.zeros_like(v) for n, v in state.items()}
    without = tuple(
        {n: v.reshape(v.shape[0], -1) for n, v in model.items()} for model in (state, reference)
    )
    ours = len(rfc.encode(state, reference, sparsity=0.85))
    assert ours < 0.95 * len(rfc.encode(*without, sparsity=0.85))


def test_a_place_beyond_its_block(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No encoder sends it; both decoders reduce it modulo the block size."""
    state, reference = blocks_pair((24, 32, 3, 3), rng)
    state["b.conv"][0, 0, 0, 0] = 1e6  # so that the first nonzero has place 0
    usual = slow.encode(state, reference, sparsity=0.95)
    told: list[int] = []
    plain = Encoder.code_bypass

    def nine_more(self: Encoder, number: int, n_bits: int) -> int:
        told.append(n_bits)
        return plain(self, number + 9 if told == [6, 4] else number, n_bits)

    monkeypatch.setattr(Encoder, "code_bypass", nine_more)
    forged = slow.encode(state, reference, sparsity=0.95)
    assert told[:2] == [6, 4]
    assert forged != usual
    recovered = rfc.decode(usual, reference)
    assert_same(rfc.decode(forged, reference), recovered)
    assert_same(slow.decode(forged, reference), recovered)


@pytest.mark.parametrize(
    "config",
    [
        {"sparsity": 0.5},
        {"sparsity": 0.98},
        {"sparsity": 0.9, "step": 30.0},
        {"sparsity": 0.9, "bits": 2},
        {"max_bytes": 700},
        {"max_error": 0.2},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", slow_except(["float32"], ["float16", "float32", "float64"]))
def test_a_network(config: dict[str, Any], dtype: str, rng: np.random.Generator) -> None:
    state, reference = (
        {n: v.astype(dtype) if v.dtype.kind == "f" else v for n, v in model.items()}
        for model in cnn_pair(rng)
    )
    assert_agree(state, reference, config)


@pytest.mark.parametrize("k", [3071, 3072, 3073, 7000])
def test_slices(k: int, rng: np.random.Generator) -> None:
    """Two slices from 3072 nonzeros on; gaps cross from one to the next."""
    reference = [np.zeros((100, 100), np.float32)]
    state = [clustered((100, 100), rng)]
    payload = rfc.encode(state, reference, sparsity=1 - k / 10_000)
    assert rfc.inspect(payload).n_nonzero == k
    assert len(rfc.inspect(payload).lossy_slices) == {3071: 1, 3072: 2, 3073: 2, 7000: 3}[k]
    assert_agree(state, reference, {"sparsity": 1 - k / 10_000})


def test_levels_beyond_the_escape() -> None:
    state = [np.ldexp(np.float32(1), np.arange(400, dtype=np.int32).reshape(20, 20) % 41 - 20)]
    assert_agree(state, [np.zeros((20, 20), np.float32)], {"sparsity": 0.1, "step": 100.0})


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32"])
def test_many_changes(dtype: str, rng: np.random.Generator) -> None:
    reference = {"n": rng.integers(0, 100, 5000).astype(dtype)}
    state = {"n": reference["n"] + (rng.integers(0, 5, 5000) // 3).astype(dtype)}
    assert_agree(state, reference, {"exclude": "n"} if dtype == "float32" else {})


def test_bfloat16(rng: np.random.Generator) -> None:
    reference = {"w": rng.standard_normal((30, 40)).astype(ml_dtypes.bfloat16)}
    state = {"w": reference["w"] + clustered((30, 40), rng).astype(ml_dtypes.bfloat16)}
    assert_agree(state, reference, {"sparsity": 0.8})


def test_both_reject_corrupt_payloads(rng: np.random.Generator) -> None:
    state, reference = cnn_pair(rng)
    payload = rfc.encode(state, reference, sparsity=0.95)
    for i in range(0, len(payload), 7):
        damaged = payload[:i] + bytes([payload[i] ^ 16]) + payload[i + 1 :]
        for decode in (slow.decode, rfc.decode):
            with pytest.raises(rfc.PayloadError):
                decode(damaged, reference)
    wrong = {n: v + 1 if v.dtype.kind == "f" else v for n, v in reference.items()}
    with pytest.raises(rfc.StateMismatchError, match="another reference"):
        slow.decode(payload, wrong)
    with pytest.raises(rfc.StateMismatchError, match="another layout"):
        slow.decode(payload, {**reference, "more": np.zeros(1)})


def test_the_pieces() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    contexts = Contexts([(128, 0)])
    assert contexts.probability(0) == 8192
    contexts.update(0, 1)  # count 0: rate 131072 // 3 = 43690
    assert contexts.table[0] == [32768 + (32767 * 43690 >> 16)] * 2 + [1]
    bits = [0, 1, 1, 0, 1] * 40
    encoder = Encoder(Contexts([(20, 5)]))
    for bit in bits:
        encoder.code_bit(0, bit)
    decoder = Decoder(Contexts([(20, 5)]), encoder.finish())
    assert [decoder.code_bit(0, 0) for _ in bits] == bits
    decoder.finish()
