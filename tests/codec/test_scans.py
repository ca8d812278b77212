"""Round trips of updates for which scan orders, kept rows and columns and flips exist, and of gaps
and levels at the ends of their ranges; the same bytes from any number of threads and kernel."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import resfed_codec as rfc
from models import assert_same
from resfed_codec import _native
from resfed_codec import reference as slow
from resfed_codec.codec.update import encode_and_recover

Array = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    threads, kernels = _native.num_threads(), _native.kernels()
    yield
    rfc.set_num_threads(threads)
    _native.choose_kernels(kernels)


def outer_product(n_rows: int, n_cols: int, seed: int, density: float, noise: float) -> Array:
    """Of two sparse vectors, with some signs wrong: as of an embedding or a layer of few inputs."""
    rng = np.random.default_rng(seed)

    def vector(n: int) -> Array:
        sent = (rng.random(n) < density) | (n == 1)
        return rng.choice([-1.0, 1.0], n) * rng.lognormal(0, 0.5, n) * sent

    rows, cols = vector(n_rows), vector(n_cols)
    wrong = np.where(rng.random((n_rows, n_cols)) < noise, -1, 1)
    return (np.outer(rows, cols) * wrong).astype(np.float32)


@st.composite
def updates(draw: st.DrawFn) -> Array:
    """A matrix like an outer product, of one row, of one column, or empty."""
    sides = st.one_of(st.sampled_from([0, 1, 2, 64, 65]), st.integers(1, 40))
    return outer_product(
        draw(sides),
        draw(sides),
        draw(st.integers(0, 2**32 - 1)),
        draw(st.sampled_from([1.0, 0.5, 0.1])),
        draw(st.sampled_from([0.0, 0.02, 0.5])),
    )


@given(st.lists(updates(), max_size=3), st.sampled_from([0.0, 0.5, 0.9, 0.99]))
@example([np.ones((40, 1), np.float32), np.ones((1, 40), np.float32)], 0.0)
@example([np.zeros((0, 5), np.float32), np.zeros((5, 0), np.float32)], 0.0)
@example([outer_product(*shape, 0, 1.0, 0.02) for shape in ((5000, 3), (3, 5000))], 0.5)
def test_matrices(states: list[Array], sparsity: float) -> None:
    references = [np.zeros_like(state) for state in states]
    payload, recovered = encode_and_recover(states, references, sparsity=sparsity)
    assert_same(rfc.decode(payload, references), recovered)
    assert payload == slow.encode(states, references, sparsity=sparsity)
    assert_same(slow.decode(payload, references), recovered)


@given(st.data())
def test_gaps_and_levels_of_all_sizes(data: st.DataObject) -> None:
    """A few elements of a model of zeros, far apart and of all magnitudes."""
    shape = data.draw(st.sampled_from([(1, 300_000), (300_000, 1), (500, 600), (300_000,)]))
    places = data.draw(st.lists(st.integers(0, 299_999), min_size=1, max_size=12, unique=True))
    levels = data.draw(
        st.lists(
            st.integers(-23, 23).map(lambda e: float(np.sign(e) * 2.0 ** abs(e))),
            min_size=len(places),
            max_size=len(places),
        )
    )
    state = np.zeros(shape, np.float32)
    state.flat[places] = [level or 1.0 for level in levels]
    payload, recovered = encode_and_recover(
        [state], [np.zeros(shape, np.float32)], sparsity=1 - len(places) / state.size, step=1
    )
    (decoded,) = rfc.decode(payload, [np.zeros(shape, np.float32)])
    assert_same([decoded], recovered)
    assert np.array_equal(np.flatnonzero(decoded), sorted(places))
    assert np.array_equal(np.sign(decoded), np.sign(state))


@pytest.mark.parametrize("shape", [(1200, 500), (500, 1200), (1, 600_000), (600_000, 1)])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_threads_and_kernels(shape: tuple[int, int], noise: float) -> None:
    """Several slices, of some rows and columns."""
    states = {
        "product": outer_product(*shape, seed=1, density=0.6, noise=noise),
        "conv": np.random.default_rng(2).standard_normal((200, 20, 3, 3)).astype(np.float32),
        "b": np.random.default_rng(3).standard_normal(300).astype(np.float32),
    }
    references = {name: np.zeros_like(state) for name, state in states.items()}
    seen: Any = None
    for threads, kernels in itertools.product((1, 2, 3, 7), ("scalar", _native.kernels())):
        rfc.set_num_threads(threads)
        assert _native.choose_kernels(kernels)
        payload, recovered = encode_and_recover(states, references, sparsity=0.7)
        assert len(rfc.inspect(payload).lossy_slices) > 3
        if seen is None:
            seen = payload, recovered
        assert payload == seen[0], (threads, kernels)
        assert_same(recovered, seen[1])
        assert_same(rfc.decode(payload, references), seen[1])


def test_an_outer_product_takes_less_than_what_is_scattered() -> None:
    """By columns or rows that are left out and by signs that are flipped."""
    product = outer_product(400, 300, seed=4, density=0.5, noise=0.0)
    scattered = np.random.default_rng(5).permutation(product.ravel()).reshape(product.shape)
    sizes = [
        len(rfc.encode([state], [np.zeros_like(state)], sparsity=0.8, bits=1))
        for state in (product, product.T.copy(), scattered)
    ]
    assert max(sizes[:2]) < 0.6 * sizes[2], sizes
