"""max_norm on a device: quantizers that are lowered after a selection.

See test_device_codec.py.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_device_codec import DTYPES, SHAPES, assert_same_everywhere

import resfed_codec as rfc
from device_cases import Case, Result, bytes_of, random_pair
from models import State, cnn_pair, options, pairs
from resfed_codec import _native

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not rfc.cuda_available(), reason=_native.cuda_unavailable_reason()),
]

UNBOUNDED = 2.0**100


def assert_limited(state: State, reference: State, **config: Any) -> Result:
    """Encode on host and device; the bound changes what is recovered, and not the levels."""
    free = Case(state, reference, **config | {"max_norm": UNBOUNDED}).encode(on_device=False)
    limited = assert_same_everywhere(Case(state, reference, **config))
    assert not limited.error
    assert limited.model != free.model
    return limited


@settings(max_examples=40)
@given(pairs(), options(), st.floats(1e-6, 10))
def test_any_model(pair: tuple[State, State], config: dict[str, Any], bound: float) -> None:
    assert_same_everywhere(Case(*pair, max_norm=bound, **config))
    state, reference = pair
    frozen = {name: reference[name] for name, value in state.items() if value.dtype.kind != "f"}
    assert_same_everywhere(Case(state | frozen, reference, max_norm=bound, **config))


@pytest.mark.parametrize("bound", [1e-12, 1e-3, 0.1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: Any, bound: float) -> None:
    assert_limited(*random_pair(SHAPES, dtype), max_norm=bound, sparsity=0.9)


@pytest.mark.parametrize("config", [{"bits": 3}, {"step": 0.3}, {"dense": "b"}, {"max_bytes": 900}])
def test_other_options(config: dict[str, Any]) -> None:
    shapes = {"a": (37, 31), "b": (9,), "c": (3, 5, 3, 3)}
    for dtype in (np.float32, ml_dtypes.bfloat16):
        assert_limited(*random_pair(shapes, dtype), max_norm=0.05, **config)


def test_terms_and_feedback() -> None:
    state, reference = random_pair(SHAPES)
    terms = [([reference[name] for name in SHAPES], c) for c in (1.5, -0.5)]
    for terms_of_case in ([], terms):
        case = Case(state, reference, feedback=True, terms=terms_of_case, max_norm=0.1)
        assert assert_same_everywhere(case).feedback


def test_many_elements() -> None:
    """From about 131,000 elements on thresholds are estimated."""
    assert_limited(*random_pair({"a": (300, 700), "b": (70,)}), max_norm=0.2, sparsity=0.7)


@pytest.mark.parametrize("config", [{}, {"max_bytes": 2000}])
def test_a_bound_that_holds_changes_nothing(config: dict[str, Any]) -> None:
    pair = random_pair(SHAPES)
    free = Case(*pair, **config).encode(on_device=False)
    assert assert_same_everywhere(Case(*pair, max_norm=UNBOUNDED, **config)) == free


@pytest.mark.parametrize("config", [{}, {"max_bytes": 200}])
def test_a_bound_below_all_quantizers_sends_nothing(config: dict[str, Any]) -> None:
    """The least level of a vector of this scale is above 2^-50."""
    state, reference = random_pair({"a": (37, 31)})
    state["b"], reference["b"] = np.full(9, 1e30, np.float32), np.zeros(9, np.float32)
    case = Case(state, reference, max_norm=2.0**-100, **config)
    result = assert_same_everywhere(case)
    assert result.model == bytes_of(case.base)
    assert len(result.payload) < 60


@pytest.mark.parametrize("n", [5, 5000, 70_000])
def test_changed_lossless_tensors_are_refused(n: int) -> None:
    """On the host or, from 4,096 elements on, on the device, from several tiles."""
    state, reference = random_pair(SHAPES)
    counters = {name: np.arange(n) for name in ("l0", "l1", "l2", "l3")}
    reference |= counters
    state |= counters
    assert not assert_same_everywhere(Case(state, reference, max_norm=0.1)).error
    for name, at in (("l2", n - 1), ("l1", n // 2)):
        state[name] = counters[name].copy()
        state[name][at] += 1
        case = Case(state, reference, max_norm=0.1)
        names = [spec.name for spec in case.specs]
        code = _native.Code.LOSSLESS_CHANGE
        assert assert_same_everywhere(case).error[:2] == (code, names.index(name))
        matrices = [spec.name for spec in case.specs if spec.name in "abd"]
        case = Case(state, reference, max_norm=0.1, exclude=tuple(matrices))
        assert assert_same_everywhere(case).error[:2] == (code, 0)


@pytest.mark.parametrize("name", ["conv.weight", "fc.bias"])
def test_not_finite(name: str, rng: np.random.Generator) -> None:
    state, reference = cnn_pair(rng)
    state[name].flat[3] = np.inf
    assert assert_same_everywhere(Case(state, reference, max_norm=1.0)).error[2] == 3
