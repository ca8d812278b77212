"""Selection: the k largest magnitudes; of equal ones the lower index."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import resfed_codec as rfc
from models import arrays_of
from resfed_codec import _native

CHUNK = 65536  # csrc/cpu/residual.hpp


def sent(residual: np.ndarray, sparsity: float) -> np.ndarray:
    """Indices that a payload against zero changes; every sent value is nonzero."""
    zero = [np.zeros_like(residual)]
    (out,) = rfc.decode(rfc.encode([residual], zero, sparsity=sparsity), zero)
    return np.flatnonzero(out)


def top_k(residual: np.ndarray, sparsity: float) -> np.ndarray:
    """Top-k by definition, with a sort."""
    flat = np.abs(residual).ravel()
    k = math.ceil(flat.size * (1 - Fraction(repr(sparsity))))
    order = np.lexsort((np.arange(flat.size), -flat))[:k]
    return np.sort(order[flat[order] > 0])


@given(arrays_of("float32", (3, 67)), st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.99, 1.0]))
def test_small_arrays_with_many_ties(residual: np.ndarray, sparsity: float) -> None:
    np.testing.assert_array_equal(sent(residual, sparsity), top_k(residual, sparsity))


@pytest.mark.parametrize("n", [CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 17])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.9, 0.99, 0.9999, 1.0])
def test_around_chunk_borders(n: int, sparsity: float, rng: np.random.Generator) -> None:
    residual = rng.standard_normal(n).astype(np.float32)
    np.testing.assert_array_equal(sent(residual, sparsity), top_k(residual, sparsity))


@pytest.mark.parametrize(
    "kind", ["constant", "two values", "sign", "one spike", "ascending", "half zero", "clustered"]
)
def test_distributions_that_mislead_a_sample(kind: str, rng: np.random.Generator) -> None:
    n = 5 * CHUNK + 3
    residual = {
        "constant": np.full(n, 0.25),
        "two values": rng.choice([1.0, 2.0], n, p=[0.999, 0.001]),
        "sign": rng.choice([-1.0, 1.0], n),
        "one spike": np.where(np.arange(n) == n - 1, 5.0, 0.0),
        "ascending": np.linspace(1e-3, 1, n),
        "half zero": rng.standard_normal(n) * (rng.random(n) < 0.5),
        "clustered": np.where(np.arange(n) % 4096 < 32, rng.standard_normal(n) + 9, 1e-4),
    }[kind].astype(np.float32)
    for sparsity in (0.2, 0.9, 0.993, 0.9999):
        np.testing.assert_array_equal(sent(residual, sparsity), top_k(residual, sparsity))


def test_sparsity_is_a_decimal_fraction() -> None:
    residual = np.arange(1, 101, dtype=np.float32).reshape(1, 100)
    for percent in range(101):
        sparsity = float(f"0.{percent:02d}") if percent < 100 else 1.0
        assert sent(residual, sparsity).size == 100 - percent


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_dtypes(dtype: str, rng: np.random.Generator) -> None:
    residual = rng.standard_normal((70, 1000)).astype(dtype)
    expected = top_k(residual.astype(np.float32), 0.99)
    np.testing.assert_array_equal(sent(residual, 0.99), expected)


def test_kernels_by_name() -> None:
    assert _native.choose_kernels("scalar")
    assert _native.kernels() == "scalar"
    assert not _native.choose_kernels("abacus")
    assert _native.kernels() == "scalar"
