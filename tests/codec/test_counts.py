"""How many elements a sparsity sends: what counts towards it, and the least of the default."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import resfed_codec as rfc
from models import State
from resfed_codec.config import DEFAULT_SPARSITY, MIN_ELEMENTS, counts
from two_codecs import assert_agree

Shapes = dict[str, tuple[int, ...]]
SHARE = 10


def pair_of(shapes: Shapes, *frozen: str, dtype: Any = np.float32) -> tuple[State, State]:
    """(state, reference): all residuals of tensors that are not frozen differ from zero."""
    rng = np.random.default_rng(0)
    reference = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    state = {
        name: value if name in frozen else value + rng.choice([-1, 1], value.shape).astype(dtype)
        for name, value in reference.items()
    }
    return state, reference


def sent_of(payload: bytes) -> int:
    return rfc.inspect(payload).n_nonzero


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({"w": (128, 64)}, MIN_ELEMENTS),
        ({"w": (20, 25)}, 500),  # all
        ({"w": (400, 500)}, 2000),  # a hundredth
        ({"v": (8192,)}, MIN_ELEMENTS),
        ({"w": (128, 64), "v": (64,)}, MIN_ELEMENTS),  # all of v
        ({"w": (128, 128), "v": (64,)}, MIN_ELEMENTS + 1),  # both are rounded up
        ({"w": (100, 30), "v": (500,)}, MIN_ELEMENTS),
        ({"w": (400, 500), "v": (500,)}, 2050),
    ],
)
def test_the_default_sends_enough_of_a_small_model(shapes: Shapes, expected: int) -> None:
    state, reference = pair_of(shapes)
    payload = assert_agree(state, reference, {})
    assert sent_of(payload) == expected
    assert sent_of(rfc.Encoder(reference).encode(state)) == expected


def test_a_sparsity_that_is_given_holds_for_small_models() -> None:
    state, reference = pair_of({"w": (128, 64), "v": (64,)})
    for sparsity, expected in ((0.99, 82 + 7), (0.999, 9 + 1), (0.5, 4096 + 64), (1.0, 0)):
        assert sent_of(rfc.encode(state, reference, sparsity=sparsity)) == expected


@given(
    n_matrix=st.integers(0, 10**7),
    n_vector=st.integers(0, 10**6),
    sparsity=st.none() | st.floats(0, 1),
)
def test_counts(n_matrix: int, n_vector: int, sparsity: float | None) -> None:
    k_matrix, k_vector = counts(sparsity, n_matrix, n_vector, SHARE)
    assert 0 <= k_matrix <= n_matrix
    assert 0 <= k_vector <= n_vector
    if sparsity is None:
        at_default = counts(DEFAULT_SPARSITY, n_matrix, n_vector, SHARE)
        total, least = n_matrix + n_vector, min(MIN_ELEMENTS, n_matrix + n_vector)
        assert k_matrix + k_vector >= least
        assert k_matrix >= at_default[0]
        assert k_vector >= at_default[1]
        if k_matrix + k_vector > least + 1:  # rounded up twice; then a hundredth is more
            assert (k_matrix, k_vector) == at_default
        assert total > 0 or (k_matrix, k_vector) == (0, 0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_frozen_tensors_do_not_count(dtype: Any) -> None:
    shapes = {"body": (300, 400), "head": (10, 512), "head.bias": (10,), "norm": (300,)}
    state, reference = pair_of(shapes, "body", "norm", dtype=dtype)
    for options, expected in (({}, MIN_ELEMENTS), ({"sparsity": 0.99}, 52 + 1)):
        assert sent_of(assert_agree(state, reference, options)) == expected
    head = {name: (state[name], reference[name]) for name in ("head", "head.bias")}
    alone = rfc.encode(*({n: pair[i] for n, pair in head.items()} for i in (0, 1)))
    assert sent_of(alone) == MIN_ELEMENTS


def test_excluded_and_dense_tensors_do_not_count() -> None:
    shapes = {"w": (100, 200), "emb": (200, 300), "mean": (50,), "v": (50,)}
    state, reference = pair_of(shapes)
    options = {"sparsity": 0.9, "exclude": "emb", "dense": "mean"}
    info = rfc.inspect(assert_agree(state, reference, options))
    assert info.n_nonzero == 2000 + 50 + 50


def test_zeros_of_either_sign_and_unchanged_infinities_are_no_residuals() -> None:
    shapes = {"zeros": (100, 100), "infinities": (100, 100), "w": (50, 40)}
    state, reference = pair_of(shapes)
    state["zeros"], reference["zeros"] = (np.full((100, 100), z, np.float32) for z in (-0.0, 0.0))
    state["infinities"] = reference["infinities"] = np.full((100, 100), np.inf, np.float32)
    assert sent_of(assert_agree(state, reference, {"sparsity": 0.9})) == 200


@pytest.mark.parametrize("at", [0, 1023, 1024, 65_535, 65_536, 66_559, 66_560, 199_999])
def test_one_residual_makes_a_tensor_count(at: int) -> None:
    """Wherever it is: a tensor is looked at in batches and chunks."""
    state, reference = pair_of({"a": (400, 500), "w": (10, 20)}, "a")
    state = {**state, "a": state["a"].copy()}
    state["a"].flat[at] += 1
    assert sent_of(rfc.encode(state, reference, sparsity=0.999)) == 201
    state["a"].flat[at] = reference["a"].flat[at]
    assert sent_of(rfc.encode(state, reference, sparsity=0.999)) == 1


def test_feedback_alone_makes_a_tensor_count() -> None:
    """What an update left out is still to be sent, also of a tensor that is frozen from now on."""
    state, reference = pair_of({"body": (100, 100), "head": (10, 20)})
    config = rfc.CodecConfig(sparsity=0.99, error_feedback=True)
    encoder, decoder = rfc.Encoder(reference, config), rfc.Decoder(reference)
    for _ in range(3):
        payload = encoder.encode(state)
        assert sent_of(payload) == 102
        decoder.decode(payload)
        state = encoder.state  # nothing new
    held = rfc.Encoder(reference, rfc.CodecConfig(sparsity=0.99, error_feedback=False))
    held.encode(state)
    assert sent_of(held.encode(held.state)) == 0


def test_tensors_that_are_as_predicted_do_not_count() -> None:
    state, reference = pair_of({"body": (100, 100), "head": (10, 20)})
    double = rfc.LinearPredictor(own=(2, -1))  # the last change once more
    encoder = rfc.Encoder(reference, rfc.CodecConfig(sparsity=0.0, predictor=double))
    encoder.encode(state)
    first = encoder.state
    expected = {name: 2 * first[name] - reference[name] for name in first}
    expected["head"] += 1
    assert sent_of(encoder.encode(expected)) == 200
