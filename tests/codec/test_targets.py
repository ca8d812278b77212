"""max_bytes and max_error are kept."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import resfed_codec as rfc
from models import State, clustered, cnn_pair, pairs
from resfed_codec.codec.update import encode_and_recover
from resfed_codec.reference import update as slow


def relative_error(state: State, reference: State, recovered: State, dims: range) -> float:
    """Relative L2 error over the float tensors with these numbers of dimensions."""
    left = total = 0.0
    for name, x in state.items():
        if x.dtype.kind == "f" and x.ndim in dims:
            x = x.astype("f8")
            left += float(((x - recovered[name]) ** 2).sum())
            total += float(((x - reference[name]) ** 2).sum())
    return float(np.sqrt(left / total)) if total else 0.0


@pytest.mark.parametrize("max_bytes", [100, 101, 300, 1000, 5000, 10**9])
def test_max_bytes_is_kept_and_used(max_bytes: int, rng: np.random.Generator) -> None:
    state, reference = cnn_pair(rng)
    payload, recovered = encode_and_recover(state, reference, max_bytes=max_bytes, dense=())
    assert len(payload) <= max_bytes
    if max_bytes < 10**9:
        assert len(payload) > 0.9 * max_bytes
    else:
        assert rfc.inspect(payload).sparsity < 0.01
        assert relative_error(state, reference, recovered, range(5)) < 0.1


@given(pairs(), st.integers(1, 400))
def test_max_bytes_of_anything(pair: tuple[State, State], max_bytes: int) -> None:
    try:
        assert len(rfc.encode(*pair, max_bytes=max_bytes)) <= max_bytes
    except ValueError as error:
        (least,) = (int(n) for n in re.findall(r"(\d+) bytes", str(error)))
        assert least > max_bytes
        assert len(rfc.encode(*pair, max_bytes=least)) <= least


@pytest.mark.parametrize("max_error", [1.0, 0.9, 0.5, 0.1, 0.01, 1e-3, 1e-4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_max_error_is_kept(max_error: float, dtype: type, rng: np.random.Generator) -> None:
    state, reference = cnn_pair(rng)
    state["fc.weight"] = state["fc.weight"].astype(dtype)
    reference["fc.weight"] = reference["fc.weight"].astype(dtype)
    payload, recovered = encode_and_recover(state, reference, max_error=max_error, dense=())
    assert relative_error(state, reference, recovered, range(2, 5)) <= max_error
    assert relative_error(state, reference, recovered, range(2)) <= max_error
    looser = rfc.encode(state, reference, max_error=min(1.0, 2 * max_error), dense=())
    assert len(looser) <= len(payload)


@given(pairs(("float16", "float32", "float64")), st.sampled_from([1.0, 0.7, 0.3, 0.05]))
def test_max_error_of_anything(pair: tuple[State, State], max_error: float) -> None:
    state, reference = pair
    try:
        _, recovered = encode_and_recover(state, reference, max_error=max_error)
    except ValueError as error:
        assert "cannot be reached" in str(error)  # noqa: PT017
        return
    groups = [range(2), range(2, 5)]
    if not any(v.ndim >= 2 for v in state.values()):
        groups = [range(5)]
    for dims in groups:
        assert relative_error(state, reference, recovered, dims) <= max_error


def test_max_error_out_of_reach() -> None:
    reference = [np.full((1, 4), 1e8, np.float32)]
    state = [np.full((1, 4), 1e8 + 64, np.float32)]
    state[0][0, 0] = -1e8
    with pytest.raises(ValueError, match=r"max_error.*least relative error found is"):
        rfc.encode(state, reference, max_error=1e-9, bits=1)


def test_bits_bound_the_levels(rng: np.random.Generator) -> None:
    residual = clustered((64, 512), rng)
    zero = [np.zeros_like(residual)]
    for bits in (1, 2, 4):
        (out,) = rfc.decode(rfc.encode([residual], zero, sparsity=0.9, bits=bits), zero)
        assert np.unique(np.abs(out[out != 0])).size <= 2 ** (bits - 1)
        assert np.abs(out).max() <= np.abs(residual).max() * 1.0001


def test_a_finer_step_is_closer(rng: np.random.Generator) -> None:
    state = {"w": clustered((64, 512), rng)}
    zero = {"w": np.zeros((64, 512), np.float32)}
    errors = []
    for step in (0.25, 1.0, 4.0, 16.0):
        recovered = rfc.decode(rfc.encode(state, zero, sparsity=0.9, step=step), zero)
        errors.append(relative_error(state, zero, recovered, range(5)))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("shape", ["sorted", "Gaussian"])
def test_the_search_for_a_large_budget(shape: str) -> None:
    """For large payloads the search takes other steps, those of the specification."""
    n = 2**18
    numbers = np.random.default_rng(0).standard_normal(n).astype(np.float32)
    state = {"w": (np.sort(numbers) if shape == "sorted" else numbers).reshape(512, -1)}
    reference = {"w": np.zeros_like(state["w"])}
    budget = 4_000 if shape == "sorted" else 60_000
    tries = []

    def size_of(t: int) -> int:
        tries.append(t)
        payload = rfc.encode(state, reference, sparsity=1 - max(0, t - 0.5) / n)
        assert rfc.inspect(payload).n_nonzero == t
        return len(payload)

    t = slow.most_within(budget, n, size_of(0), size_of)
    payload = rfc.encode(state, reference, max_bytes=budget)
    assert rfc.inspect(payload).n_nonzero == t > 2**16
    assert 0.99 * budget < len(payload) == size_of(t) <= budget
    assert size_of(t + t // 512) > budget
    assert len(tries) <= 18  # full bisection would take 25
