"""decode(encode(x)) is bitwise what the encoder recovered, within the promised error of x."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given

import resfed_codec as rfc
from models import INTEGERS, State, assert_same, clustered, cnn_pair, options, pairs
from resfed_codec.codec.update import encode_and_recover


@given(pairs(), options())
def test_decode_gives_what_the_encoder_recovered(
    pair: tuple[State, State], config: dict[str, Any]
) -> None:
    state, reference = pair
    before = {name: value.copy() for name, value in reference.items()}
    payload, recovered = encode_and_recover(state, reference, **config)
    assert payload == rfc.encode(state, reference, **config)
    assert_same(rfc.decode(payload, reference), recovered)
    assert_same(reference, before)


@given(pairs(INTEGERS))
def test_integers_come_back_exactly(pair: tuple[State, State]) -> None:
    state, reference = pair
    assert_same(rfc.decode(rfc.encode(state, reference), reference), state)


@given(pairs())
def test_excluded_tensors_come_back_exactly(pair: tuple[State, State]) -> None:
    state, reference = pair
    if not state:
        return
    payload = rfc.encode(state, reference, exclude=("*",))
    assert_same(rfc.decode(payload, reference), state)


@given(pairs(("float16", "float32", "float64")), options())
def test_no_recovered_value_is_infinite(pair: tuple[State, State], config: dict[str, Any]) -> None:
    state, reference = pair
    for value in rfc.decode(rfc.encode(state, reference, **config), reference).values():
        assert np.isfinite(value).all()


def test_saturates_at_the_largest_number() -> None:
    largest = np.finfo(np.float16).max
    reference = {"w": np.full((2, 2), largest, np.float16)}
    state = {"w": np.array([[largest, 0], [-largest / 2, largest / 2]], np.float16)}
    recovered = rfc.decode(rfc.encode(state, reference, sparsity=0, step=0.01), reference)
    assert np.isfinite(recovered["w"]).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_error_falls_with_sparsity(dtype: str, rng: np.random.Generator) -> None:
    reference = rng.standard_normal((64, 256)).astype(dtype)
    state = (reference + clustered(reference.shape, rng)).astype(dtype)
    errors = []
    for sparsity in (0.999, 0.99, 0.9, 0.5, 0.1):
        (recovered,) = rfc.decode(rfc.encode([state], [reference], sparsity=sparsity), [reference])
        norm = np.linalg.norm(state.astype("f8") - reference)
        errors.append(np.linalg.norm(state.astype("f8") - recovered) / norm)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1


def test_an_unchanged_model_takes_few_bytes(rng: np.random.Generator) -> None:
    _, reference = cnn_pair(rng)
    payload = rfc.encode(reference, reference)
    assert len(payload) < 40
    assert_same(rfc.decode(payload, reference), reference)


def test_header_and_tables_of_one_slice_take_less_than_64_bytes(rng: np.random.Generator) -> None:
    reference = [np.zeros((100, 1000), np.float32)]
    info = rfc.inspect(rfc.encode([clustered((100, 1000), rng)], reference, sparsity=0.99))
    assert len(info.lossy_slices) == 1
    assert info.n_bytes - info.lossy_bytes < 64


def test_one_parameter() -> None:
    state, reference = [np.array(2.5, np.float32)], [np.array(1.0, np.float32)]
    (recovered,) = rfc.decode(rfc.encode(state, reference), reference)
    assert recovered.shape == ()
    assert recovered == pytest.approx(2.5, rel=1e-6)


@pytest.mark.parametrize("model", [{}, [], {"a": np.zeros((0, 4), np.float32)}])
def test_models_without_elements(model: Any) -> None:
    assert_same(rfc.decode(rfc.encode(model, model), model), model)


def test_levels_far_apart(rng: np.random.Generator) -> None:
    """Levels beyond the unary part of their code, and a step raised to the range of levels."""
    state = [np.float32(10.0) ** rng.uniform(-30, 30, (40, 50)).astype(np.float32)]
    reference = [np.zeros((40, 50), np.float32)]
    for step in (1.0, 1000.0):
        payload, recovered = encode_and_recover(state, reference, sparsity=0.1, step=step)
        assert_same(rfc.decode(payload, reference), recovered)
    largest = state[0].max()
    assert recovered[0].max() == pytest.approx(largest, rel=1e-5)


def test_out_is_written_and_returned(rng: np.random.Generator) -> None:
    state, reference = cnn_pair(rng)
    payload = rfc.encode(state, reference)
    expected = rfc.decode(payload, reference)
    out = {name: np.full_like(value, 7) for name, value in reference.items()}
    assert rfc.decode(payload, reference, out=out) is out
    assert_same(out, expected)
    assert rfc.decode(payload, reference, out=reference) is reference
    assert_same(reference, expected)


@pytest.mark.filterwarnings("ignore:tensors .* are one memory:UserWarning")
def test_tied_tensors_in_place(rng: np.random.Generator) -> None:
    weight = rng.standard_normal((50, 60)).astype(np.float32)
    moved = weight + clustered(weight.shape, rng)
    reference = {"embed": weight, "head": weight}
    payload, recovered = encode_and_recover({"embed": moved, "head": moved}, reference)
    assert_same(rfc.decode(payload, reference, out=reference), recovered)


def test_bfloat16_of_numpy(rng: np.random.Generator) -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    reference = {"w": rng.standard_normal((40, 50)).astype(bfloat16)}
    state = {"w": reference["w"] + clustered((40, 50), rng).astype(bfloat16)}
    payload, recovered = encode_and_recover(state, reference, sparsity=0.5)
    assert recovered["w"].dtype == bfloat16
    assert_same(rfc.decode(payload, reference), recovered)
    moved = state["w"].astype("f4") - reference["w"].astype("f4")
    left = state["w"].astype("f4") - recovered["w"].astype("f4")
    assert np.linalg.norm(left) < 0.5 * np.linalg.norm(moved)


def test_more_than_2_to_the_31_elements() -> None:
    """Zero pages that are only read take no memory, so this model of 4.3 GB needs little."""
    n = 2**31 + 1001
    state, reference = np.zeros(n, np.float16), np.zeros(n, np.float16)
    places = [0, 7, 2**31 - 1, 2**31, n - 1]
    state[places] = [1, -2, 3, -4, 5]
    payload = rfc.encode([state], [reference], sparsity=1 - 10 / n, step=100)
    info = rfc.inspect(payload)
    assert (info.n_elems, info.n_nonzero) == (n, 5)
    rfc.decode(payload, [reference], out=[reference])
    np.testing.assert_allclose(reference[places], state[places], rtol=1e-2)
