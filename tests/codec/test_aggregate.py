"""Aggregator: its result is the mean of the decoded payloads, in any order of adding."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import resfed_codec as rfc
from models import FLOATS, INTEGERS, State, arrays_of, assert_same, clustered, cnn_pair, options

LARGEST = 2.0**15
"""Magnitudes that stay below the limit with the weights and counts of these tests."""

WEIGHTS = st.one_of(
    st.integers(1, 10**6),
    st.floats(1e-3, 1e3),
    st.sampled_from([1, 1.0, 0.1, 2.0**-40, 2.0**20, 1 / 3]),
)


@st.composite
def moderate_arrays(draw: st.DrawFn, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    array = draw(arrays_of(dtype, shape))
    return np.clip(array, -LARGEST, LARGEST).astype(dtype) if dtype in FLOATS else array


@st.composite
def rounds(
    draw: st.DrawFn, dtypes: tuple[str, ...] = FLOATS + INTEGERS
) -> tuple[State, list[tuple[State | bytes, State, Any]]]:
    """(reference, [(payload or model, decoded model, weight)])."""
    names = draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=3, unique=True))
    kinds = {
        name: (draw(st.sampled_from(dtypes)), draw(st.sampled_from([(), (3,), (2, 4), (0, 2)])))
        for name in names
    }
    reference = {name: draw(moderate_arrays(*kind)) for name, kind in kinds.items()}
    contributions: list[tuple[State | bytes, State, Any]] = []
    for _ in range(draw(st.integers(1, 4))):
        state = {name: draw(moderate_arrays(*kind)) for name, kind in kinds.items()}
        weight = draw(WEIGHTS)
        if draw(st.integers(0, 3)) == 0:
            contributions.append((state, state, weight))
            continue
        excluded = draw(st.lists(st.sampled_from(names), max_size=2))
        dense = draw(st.lists(st.sampled_from(names), max_size=2))
        payload = rfc.encode(
            state, reference, exclude=tuple(excluded), dense=tuple(dense), **draw(options())
        )
        contributions.append((payload, rfc.decode(payload, reference), weight))
    return reference, contributions


def aggregated(reference: Any, contributions: list[tuple[Any, Any, Any]]) -> Any:
    aggregator = rfc.Aggregator(reference)
    for model, _, weight in contributions:
        if isinstance(model, bytes):
            aggregator.add(model, weight)
        else:
            aggregator.add_state(model, weight)
    return aggregator.result()


def assert_is_mean(
    result: State, reference: State, contributions: list[tuple[Any, State, Any]]
) -> None:
    """Compare with rational arithmetic for integers and with float64 for floats."""
    weights = [float(weight) for _, _, weight in contributions]
    total = sum(map(Fraction, weights))
    for name, actual in result.items():
        models = [model[name] for _, model, _ in contributions]
        assert (actual.dtype, actual.shape) == (models[0].dtype, models[0].shape)
        if actual.dtype.kind in "biu":
            units = [round(Fraction(w) * 2**40) for w in weights]
            for i in range(actual.size):
                values = [int(model.flat[i]) for model in models]
                mean = Fraction(sum(u * v for u, v in zip(units, values, strict=True)), sum(units))
                assert int(actual.flat[i]) == round(mean), name
            continue
        wide = np.stack([model.astype(np.float64) for model in models])
        largest = np.abs(np.stack([*wide, reference[name].astype(np.float64)])).max(axis=0)
        weighted = np.array(weights).reshape((-1,) + (1,) * actual.ndim) * wide
        expected = weighted.sum(axis=0) / float(total)
        dtype = np.float16 if actual.dtype == np.float16 else np.float32
        last_bit = np.spacing(np.abs(expected).astype(dtype)).astype(np.float64)
        lost = largest * 1e-14 + len(models) * 2.0**-80 / float(total)
        error = np.abs(actual.astype(np.float64) - expected)
        assert (error <= last_bit + lost).all(), (name, actual, expected)


@given(rounds(), st.randoms(use_true_random=False))
def test_mean_in_any_order(drawn: tuple[State, list[Any]], random: Any) -> None:
    reference, contributions = drawn
    before = {name: value.copy() for name, value in reference.items()}
    result = aggregated(reference, contributions)
    assert_is_mean(result, reference, contributions)
    shuffled = random.sample(contributions, len(contributions))
    assert_same(aggregated(reference, shuffled), result)
    assert_same(reference, before)


@given(rounds(INTEGERS))
def test_integers(drawn: tuple[State, list[Any]]) -> None:
    reference, contributions = drawn
    assert_is_mean(aggregated(reference, contributions), reference, contributions)


def test_integers_halve_to_even() -> None:
    reference = [np.array([0, 1, 2, -1, -3], np.int8), np.array([False, True, True])]
    other = [np.array([1, 2, 3, -2, -4], np.int8), np.array([True, False, True])]
    result = aggregated(reference, [(reference, None, 1), (other, None, 1)])
    assert_same(result, [np.array([0, 2, 2, -2, -4], np.int8), np.array([False, False, True])])


def test_extremes_of_64_bits() -> None:
    low, high = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    reference = [np.array([low, high]), np.array([0, 2**64 - 1], np.uint64)]
    other = [np.array([high, low]), np.array([2**64 - 1, 0], np.uint64)]
    result = aggregated(reference, [(reference, None, 1), (other, None, 3)])
    assert [int(x) for x in result[0]] == [2**62 - 1, -(2**62)]
    assert [int(x) for x in result[1]] == [round(Fraction(3 * (2**64 - 1), 4)), 2**62]


def updates(
    reference: State, rng: np.random.Generator, n: int = 4
) -> list[tuple[bytes, State, float]]:
    """Payloads of models near the reference, each with different options, and weights."""
    result = []
    for i in range(n):
        state = {
            name: (value + clustered((value.size,), rng).reshape(value.shape)).astype(value.dtype)
            for name, value in reference.items()
        }
        exclude = ("fc.*",) if i % 2 else ()
        payload = rfc.encode(state, reference, sparsity=0.9, exclude=exclude)
        result.append((payload, rfc.decode(payload, reference), float(rng.uniform(0.5, 200))))
    return result


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads(threads: int, rng: np.random.Generator) -> None:
    reference = {
        "fc.weight": rng.standard_normal((400, 1000), np.float32),
        "head": rng.standard_normal((1100, 2000)),
        "fc.bias": rng.standard_normal(70_000, np.float32),
    }
    contributions = updates(reference, rng)
    rfc.set_num_threads(1)
    state = {name: value + 1 for name, value in reference.items()}
    mixed = [*contributions, (state, state, 2)]
    expected = aggregated(reference, mixed)
    rfc.set_num_threads(threads)
    assert_same(aggregated(reference, mixed[::-1]), expected)


def test_many_threads_add_at_once(rng: np.random.Generator) -> None:
    """Other threads add whole models, read the result and reset meanwhile."""
    state, reference = cnn_pair(rng)
    contributions = updates(reference, rng)
    expected = aggregated(reference, contributions * 20)
    aggregator = rfc.Aggregator(state)
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            aggregator.reset(state)
            with contextlib.suppress(ValueError):
                aggregator.result()
            with pytest.raises(rfc.StateMismatchError):
                aggregator.add(contributions[0][0])

    disturbers = [threading.Thread(target=disturb) for _ in range(2)]
    for thread in disturbers:
        thread.start()
    time.sleep(0.05)
    stop.set()
    for thread in disturbers:
        thread.join()
    aggregator.reset(reference)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda c: aggregator.add(c[0], c[2]), contributions * 20))
    assert aggregator.count == 20 * len(contributions)
    assert_same(aggregator.result(), expected)


def test_mean_of_a_network(rng: np.random.Generator) -> None:
    _, reference = cnn_pair(rng)
    contributions = updates(reference, rng, 7)
    result = aggregated(reference, contributions)
    assert_is_mean(result, reference, contributions)
    assert_same(aggregated(reference, contributions[::-1]), result)


def test_one_model_is_itself(rng: np.random.Generator) -> None:
    state, reference = cnn_pair(rng)
    payload = rfc.encode(state, reference, sparsity=0.5)
    decoded = rfc.decode(payload, reference)
    assert_same(aggregated(reference, [(payload, None, 3)]), decoded)


def test_snapshots(snapshots: dict[str, State]) -> None:
    reference = snapshots["g6"]
    contributions = []
    for i, name in enumerate(("l0_7", "g7", "g5")):
        payload = rfc.encode(snapshots[name], reference, sparsity=0.9)
        contributions.append((payload, rfc.decode(payload, reference), 100 + i))
    result = aggregated(reference, contributions)
    assert_is_mean(result, reference, contributions)
    assert_same(aggregated(reference, contributions[::-1]), result)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_torch(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(3)
    kind = getattr(torch, dtype)
    reference = {"w": torch.randn(30, 40).to(kind), "n": torch.tensor(4)}
    models = [{"w": reference["w"] + 0.1 * torch.randn(30, 40).to(kind), "n": torch.tensor(n)}
              for n in (5, 8)]  # fmt: skip
    payloads = [rfc.encode(model, reference, sparsity=0.5) for model in models]
    result = aggregated(reference, [(p, None, w) for p, w in zip(payloads, (1, 3), strict=True)])
    first, second = (rfc.decode(payload, reference) for payload in payloads)
    mean = (first["w"].double() + 3 * second["w"].double()) / 4
    assert result["w"].dtype == kind
    assert int(result["n"]) == 7
    precision = max(torch.finfo(kind).eps, torch.finfo(torch.float32).eps)
    torch.testing.assert_close(result["w"].double(), mean, rtol=precision, atol=1e-7)


def test_keeps_its_own_reference(rng: np.random.Generator) -> None:
    state, reference = cnn_pair(rng)
    payload = rfc.encode(state, reference)
    expected = rfc.decode(payload, reference)
    aggregator = rfc.Aggregator(reference)
    for value in reference.values():
        value[...] = 0
    aggregator.add(payload)
    assert_same(aggregator.result(), expected)


def test_refused_payloads_change_nothing(rng: np.random.Generator) -> None:
    state, reference = cnn_pair(rng)
    good = rfc.encode(state, reference)
    other = {name: value + value.dtype.type(1) for name, value in reference.items()}
    huge = {name: value.copy() for name, value in reference.items()}
    huge["fc.weight"][3, 4] = 1e20
    nan = {name: value.copy() for name, value in reference.items()}
    nan["fc.bias"][0] = np.nan
    aggregator = rfc.Aggregator(reference)
    aggregator.add(good, 2)
    before = aggregator.result()

    with pytest.raises(rfc.StateMismatchError, match="another reference"):
        aggregator.add(rfc.encode(state, other))
    with pytest.raises(rfc.StateMismatchError, match="another layout"):
        aggregator.add(rfc.encode([state["fc.bias"]], [reference["fc.bias"]]))
    for n in (0, 10, len(good) // 2, len(good) - 1):
        with pytest.raises(rfc.PayloadError):
            aggregator.add(good[:n])
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 1
    with pytest.raises(rfc.PayloadError, match="damaged"):
        aggregator.add(damaged)
    with pytest.raises(TypeError, match="payload"):
        aggregator.add("text")  # type: ignore[arg-type]
    with pytest.raises(rfc.PayloadError, match=r"weight: .*'fc.weight'"):
        aggregator.add(rfc.encode(huge, reference, sparsity=0))
    with pytest.raises(rfc.PayloadError, match=r"weight: .*'fc.bias'"):
        aggregator.add(rfc.encode(nan, reference, exclude="fc.bias"))
    with pytest.raises(ValueError, match=r"weight: .*'fc.bias'"):
        aggregator.add_state(nan)
    with pytest.raises(ValueError, match="state lacks"):
        aggregator.add_state({"fc.bias": state["fc.bias"]})

    assert (aggregator.count, aggregator.total_weight) == (1, 2.0)
    assert_same(aggregator.result(), before)


def test_elements_that_are_not_finite_and_do_not_change() -> None:
    reference = [np.array([[np.nan, np.inf, 1.0]], np.float32)]
    state = [np.array([[np.nan, np.inf, 2.0]], np.float32)]
    assert_same(aggregated(reference, [(state, None, 1)]), state)


@pytest.mark.parametrize("weight", [-1, -0.5, np.nan, np.inf, -np.inf, 10**400])
def test_weights_out_of_range(weight: Any) -> None:
    aggregator = rfc.Aggregator([np.zeros(3, np.float32)])
    with pytest.raises(ValueError, match=r"^weight=.* must be positive and finite"):
        aggregator.add_state([np.ones(3, np.float32)], weight)
    assert aggregator.count == 0


@pytest.mark.parametrize("weight", [2.0**-41, 2.0**41, 1e-300])
def test_weights_finer_than_the_unit(weight: float) -> None:
    aggregator = rfc.Aggregator([np.zeros(3, np.float32)])
    with pytest.raises(ValueError, match=r"^weight=.* must lie in"):
        aggregator.add_state([np.ones(3, np.float32)], weight)


@pytest.mark.parametrize("weight", [True, "1", None, np.True_, 1j])
def test_weights_of_wrong_type(weight: Any) -> None:
    aggregator = rfc.Aggregator([np.zeros(3, np.float32)])
    with pytest.raises(TypeError, match=r"^weight=.* must be a number"):
        aggregator.add(b"", weight)


def test_total_weight_and_count() -> None:
    aggregator = rfc.Aggregator([np.zeros(3, np.float32)])
    weights = [0.1] * 10 + [2.0**40, 2.0**-40, np.float32(0.5), np.int64(3)]
    for weight in weights:
        aggregator.add_state([np.zeros(3, np.float32)], weight)
    assert aggregator.count == len(weights)
    assert aggregator.total_weight == float(sum(Fraction(float(w)) for w in weights))
    assert "14 models" in repr(aggregator)


def test_nothing_added() -> None:
    with pytest.raises(ValueError, match="nothing was added"):
        rfc.Aggregator([np.zeros(3)]).result()


def test_reset(rng: np.random.Generator) -> None:
    state, reference = cnn_pair(rng)
    forward, backward = rfc.encode(state, reference), rfc.encode(reference, state)
    aggregator = rfc.Aggregator(reference)
    aggregator.add(forward, 5)
    aggregator.reset()
    with pytest.raises(ValueError, match="nothing was added"):
        aggregator.result()
    aggregator.add(forward)
    assert_same(aggregator.result(), rfc.decode(forward, reference))
    with pytest.raises(ValueError, match="reference lacks"):
        aggregator.reset({})
    assert aggregator.count == 1
    aggregator.reset(state)
    with pytest.raises(rfc.StateMismatchError):
        aggregator.add(forward)
    aggregator.add(backward)
    assert_same(aggregator.result(), rfc.decode(backward, state))


@pytest.mark.parametrize("model", [{}, [], {"a": np.zeros((0, 4), np.float32)}])
def test_models_without_elements(model: Any) -> None:
    assert_same(aggregated(model, [(rfc.encode(model, model), None, 1)]), model)


def test_extreme_floats() -> None:
    """Subnormals below the unit of 2^-80 are lost, as documented; all other values are exact."""
    tiny = np.finfo(np.float32).smallest_subnormal
    result = aggregated([np.zeros(1, np.float32)], [([np.array([tiny])], None, 1)])
    assert_same(result, [np.zeros(1, np.float32)])
