"""Models for tests: hypothesis strategies, and fixed ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

FLOATS = ("float16", "float32", "float64")
INTEGERS = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")

State = dict[str, np.ndarray]


def float_values(dtype: str) -> st.SearchStrategy[float]:
    """Ordinary numbers and edge cases: zeros of both signs, subnormals, huge and tiny values.

    At most a quarter of the largest float16 or float32, so that residuals are finite.
    """
    info = np.finfo(np.float32 if dtype == "float64" else dtype)
    edge = float(info.max) / 4
    tiny, subnormal = float(info.tiny), float(info.smallest_subnormal)
    edges = [0.0, -0.0, tiny, -tiny, subnormal, -subnormal, 3 * subnormal, edge, -edge, 1.0]
    width = {"float16": 16, "float32": 32, "float64": 64}[dtype]
    small = float(np.float16(0.1))
    return st.one_of(
        st.sampled_from(edges),
        st.floats(-small, small, width=width),  # type: ignore[arg-type]
    )


@st.composite
def arrays_of(draw: st.DrawFn, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if dtype in FLOATS:
        return draw(hnp.arrays(dtype, shape, elements=float_values(dtype)))
    return draw(hnp.arrays(dtype, shape))


@st.composite
def pairs(draw: st.DrawFn, dtypes: tuple[str, ...] = FLOATS + INTEGERS) -> tuple[State, State]:
    """(state, reference): up to four tensors of up to three dimensions, some empty or scalar."""
    names = draw(st.lists(st.text(min_size=0, max_size=6), max_size=4, unique=True))
    state, reference = {}, {}
    for name in names:
        dtype = draw(st.sampled_from(dtypes))
        shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=7))
        reference[name] = draw(arrays_of(dtype, shape))
        if draw(st.integers(0, 4)) == 0:
            state[name] = reference[name].copy()
        elif draw(st.booleans()):
            # A sparse update: a few elements differ.
            state[name] = reference[name].copy()
            if state[name].size:
                at = draw(st.lists(st.integers(0, state[name].size - 1), max_size=5))
                state[name].flat[at] = draw(arrays_of(dtype, (len(at),)))
        else:
            state[name] = draw(arrays_of(dtype, shape))
    return state, reference


def options() -> st.SearchStrategy[dict[str, Any]]:
    """Keyword arguments of encode that are valid for any model."""
    steps = st.one_of(
        st.just({}),
        st.fixed_dictionaries({"step": st.floats(0.01, 100)}),
        st.fixed_dictionaries({"bits": st.integers(1, 16)}),
    )
    sparsity = st.one_of(st.sampled_from([None, 0.0, 0.5, 0.9, 0.99, 1.0]), st.floats(0, 1))
    return st.builds(lambda s, step: {"sparsity": s, **step}, sparsity, steps)


def clustered(shape: tuple[int, ...], rng: np.random.Generator, scale: float = 1e-2) -> np.ndarray:
    """A float32 residual whose rows differ in scale, like those of trained models."""
    rows = rng.lognormal(0, 1.5, (shape[0],) + (1,) * (len(shape) - 1))
    return (scale * rows * rng.standard_normal(shape)).astype(np.float32)


def small_model(rng: np.random.Generator) -> State:
    return {
        "w": rng.standard_normal((6, 20)).astype(np.float32),
        "b": rng.standard_normal(6).astype(np.float32),
        "n": np.array(0),
    }


def cnn_pair(rng: np.random.Generator) -> tuple[State, State]:
    """(state, reference) of a small convolutional network with BatchNorm."""
    shapes = {"conv.weight": (32, 16, 3, 3), "fc.weight": (10, 512), "fc.bias": (10,)}
    reference: State = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    state = {n: v + clustered(v.shape, rng) for n, v in reference.items()}
    for name, scale in (("norm.weight", 1e-3), ("norm.running_var", 3.0)):
        reference[name] = rng.standard_normal(32).astype(np.float32)
        state[name] = reference[name] + clustered((32,), rng, scale)
    reference["norm.num_batches_tracked"] = np.array(24)
    state["norm.num_batches_tracked"] = np.array(48)
    return state, reference


LAYOUT_CHANGES = ["name", "shape", "dtype", "missing", "extra"]


def with_another_layout(state: State, name: str, change: str) -> State:
    """The state with one of LAYOUT_CHANGES in the matrix of this name."""
    other = dict(state)
    array = other.pop(name)
    if change == "name":
        other["renamed"] = array
    elif change == "shape":
        other[name] = array.reshape(array.shape[1] // 2, -1)
    elif change == "dtype":
        other[name] = array.view(np.int32)
    elif change == "extra":
        other[name], other["more"] = array, array
    return other


def assert_same(actual: Any, expected: Any, where: str = "") -> None:
    """Check that two states are bitwise equal; the message locates the first difference."""
    if isinstance(expected, dict):
        assert list(actual) == list(expected), where
        pairs = [(name, actual[name], expected[name]) for name in expected]
    else:
        assert len(actual) == len(expected)
        pairs = [(str(i), a, e) for i, (a, e) in enumerate(zip(actual, expected, strict=True))]
    for name, a, e in pairs:
        name = f"{where}: {name}" if where else name
        assert type(a) is type(e), name
        a, e = np.asarray(a), np.asarray(e)
        assert (a.dtype, a.shape) == (e.dtype, e.shape), name
        raw_a = np.frombuffer(a.tobytes(), f"V{a.itemsize}")
        raw_e = np.frombuffer(e.tobytes(), f"V{e.itemsize}")
        if (different := np.flatnonzero(raw_a != raw_e)).size:
            i = different[0]
            raise AssertionError(f"{name}[{i}]: {a.ravel()[i]!r} != {e.ravel()[i]!r}")
