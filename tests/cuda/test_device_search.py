"""max_bytes and max_error on a device: selections of many sizes, one after the other.

See test_device_codec.py.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_device_codec import SHAPES, assert_same_everywhere

import resfed_codec as rfc
from device_cases import Case, random_pair
from models import State, cnn_pair, pairs
from resfed_codec import _native

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not rfc.cuda_available(), reason=_native.cuda_unavailable_reason()),
]

SMALL: dict[str, tuple[int, ...]] = {"a": (37, 31), "b": (9,), "c": (3, 5, 3, 3)}


@settings(max_examples=20)
@given(pairs(), st.one_of(st.integers(1, 400), st.floats(1e-6, 1)))
def test_any_model(pair: tuple[State, State], bound: float) -> None:
    bounds = {"max_bytes": bound} if isinstance(bound, int) else {"max_error": bound}
    assert_same_everywhere(Case(*pair, **bounds))


@pytest.mark.parametrize("max_bytes", [1, 60, 90, 200, 700, 2000, 10**6])
def test_budgets(max_bytes: int) -> None:
    result = assert_same_everywhere(Case(*random_pair(SMALL), max_bytes=max_bytes))
    assert (result.error[:1] == (_native.Code.BUDGET_TOO_SMALL,)) == (max_bytes < 60)
    assert len(result.payload) <= max_bytes


@pytest.mark.parametrize("max_error", [1e-9, 1e-3, 0.05, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
def test_bounds(dtype: Any, max_error: float) -> None:
    assert_same_everywhere(Case(*random_pair(SMALL, dtype), max_error=max_error))


@pytest.mark.parametrize("bound", [{"max_bytes": 900}, {"max_error": 0.4}])
@pytest.mark.parametrize("config", [{"bits": 3}, {"step": 0.3}, {"dense": "b"}, {"exclude": "c"}])
def test_other_options(bound: dict[str, Any], config: dict[str, Any]) -> None:
    assert_same_everywhere(Case(*random_pair(SMALL), **bound, **config))


@pytest.mark.parametrize("bound", [{"max_bytes": 500}, {"max_error": 0.5}])
def test_terms_and_feedback(bound: dict[str, Any]) -> None:
    state, reference = random_pair(SMALL)
    terms = [([reference[name] for name in SMALL], c) for c in (1.5, -0.5)]
    assert_same_everywhere(Case(state, reference, feedback=True, terms=terms, **bound))


@pytest.mark.parametrize("bound", [{"max_bytes": 3000}, {"max_error": 0.9}])
def test_estimated_thresholds(bound: dict[str, Any]) -> None:
    """From about 131,000 elements on thresholds are estimated; with ties, candidates lack room."""
    assert_same_everywhere(Case(*random_pair({"a": (300, 500)}), **bound))
    state, reference = random_pair({"a": (300, 1000)}, grid=0.02)
    assert_same_everywhere(Case(state, reference, **bound))


def test_nothing_to_send() -> None:
    _, reference = random_pair(SHAPES)
    for bound in ({"max_bytes": 100}, {"max_error": 0.1}):
        assert_same_everywhere(Case(reference, reference, **bound))
    tiny = {name: np.zeros(shape) for name, shape in SMALL.items()}
    moved = {name: value + 5e-324 for name, value in tiny.items()}
    result = assert_same_everywhere(Case(moved, tiny, max_error=0.1))
    assert result.error[0] == _native.Code.TOO_SMALL_CHANGE


@pytest.mark.parametrize("name", ["conv.weight", "fc.weight", "fc.bias"])
@pytest.mark.parametrize("bound", [{"max_bytes": 4000}, {"max_error": 0.3}])
def test_not_finite(name: str, bound: dict[str, Any], rng: np.random.Generator) -> None:
    state, reference = cnn_pair(rng)
    state[name].flat[3] = np.inf
    assert assert_same_everywhere(Case(state, reference, **bound)).error[2] == 3
