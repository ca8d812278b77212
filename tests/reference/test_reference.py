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
from models import State, clustered, cnn_pair, options, pairs
from resfed_codec import reference as slow
from resfed_codec.reference.frame import crc32c
from two_codecs import assert_agree


@given(pairs(), options(), st.integers(6, 12))
def test_anything(pair: tuple[State, State], config: dict[str, Any], lane_log2: int) -> None:
    assert_agree(*pair, config, lane_log2)


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


@given(
    pairs(("float16", "float32", "float64")),
    st.sampled_from([1e-25, 0.01, 1.0, 30.0]),
    st.sampled_from([{}, {"max_bytes": 200}, {"dense": "*"}]),
)
def test_max_norm(pair: tuple[State, State], max_norm: float, more: dict[str, Any]) -> None:
    config = {"max_norm": max_norm, **(more if pair[0] else {})}
    try:
        rfc.encode(*pair, **config)
    except ValueError:
        with pytest.raises(ValueError, match=r"max_(bytes|norm)"), np.errstate(all="ignore"):
            slow.encode(*pair, **config)
        return
    assert_agree(*pair, config)


@pytest.mark.parametrize("max_norm", [0.01, 1.0])
def test_max_norm_of_a_network(max_norm: float, rng: np.random.Generator) -> None:
    state, reference = (
        {n: v for n, v in model.items() if v.dtype.kind == "f"} for model in cnn_pair(rng)
    )
    assert_agree(state, reference, {"sparsity": 0.9, "max_norm": max_norm})


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


def test_crc32c() -> None:
    assert crc32c(b"123456789") == 0xE3069283
