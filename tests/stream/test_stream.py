"""Encoder and Decoder: one direction, both ends hold the same model."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import resfed_codec as rfc
from checksums import with_flipped_bits
from models import State, arrays_of, assert_same, cnn_pair, options, pairs
from published_rules import moved, random_model
from snapshots import refused, snapshot

PREDICTORS = ["previous", "adaptive", rfc.LinearPredictor((2, -1))]


def small_model(rng: np.random.Generator) -> State:
    return {
        "w": rng.standard_normal((6, 20)).astype(np.float32),
        "b": rng.standard_normal(6).astype(np.float32),
        "n": np.array(0),
    }


def stream(initial: Any, **options: Any) -> tuple[rfc.Encoder, rfc.Decoder]:
    return rfc.Encoder(initial, **options), rfc.Decoder(initial)


# ---- recovered models


@given(pairs(), options(), st.sampled_from(PREDICTORS), st.booleans(), st.data())
def test_both_ends_agree(
    pair: tuple[State, State], opts: dict[str, Any], predictor: Any, feedback: bool, data: Any
) -> None:
    first, initial = pair
    enc, dec = stream(initial, predictor=predictor, error_feedback=feedback, **opts)
    states = [first, first, initial]
    for _ in range(2):
        states.append({n: data.draw(arrays_of(v.dtype.name, v.shape)) for n, v in initial.items()})
    for number, state in enumerate(states, start=1):
        before = snapshot(enc)
        try:
            payload = enc.encode(state)
        except ValueError as error:  # a residual that overflows: histories and feedback add up
            if "is not finite" not in str(error):
                raise
            assert snapshot(enc) == before
            return
        assert_same(dec.decode(payload), enc.state)
        assert enc.version == dec.version == number
        for name, value in state.items():
            if value.dtype.kind not in "f":
                assert_same([enc.state[name]], [value], name)


@pytest.mark.parametrize("predictor", PREDICTORS, ids=str)
def test_targets(predictor: Any, rng: np.random.Generator) -> None:
    """max_bytes, max_error, step, bits and exclude mean the same as in encode()."""
    state, initial = cnn_pair(rng)
    states = [state, *(moved(state, rng) for _ in range(3))]
    for opts in (
        {"max_bytes": 900},
        {"max_error": 0.3},
        {"sparsity": 0.9, "step": 2.0},
        {"sparsity": 0.9, "bits": 4},
        {"sparsity": 0.9, "exclude": ("norm.*",)},
    ):
        enc, dec = stream(initial, predictor=predictor, **opts)
        for number, new in enumerate(states):
            before = enc.state
            payload = enc.encode(new)
            recovered = dec.decode(payload)
            assert_same(recovered, enc.state, f"{opts}, payload {number}")
            info = rfc.inspect(payload)
            if "max_bytes" in opts:
                assert 0.8 * opts["max_bytes"] < len(payload) <= opts["max_bytes"]
            if "exclude" in opts:
                assert_same(
                    [recovered[n] for n in new if "norm" in n], [new[n] for n in new if "norm" in n]
                )
            if predictor == "previous" and "max_error" in opts:
                assert 0.2 < error_of(recovered, new, before, ["conv.weight", "fc.weight"]) <= 0.3
            if predictor == "previous" and "max_bytes" not in opts:  # the link takes some of them
                stateless = rfc.inspect(rfc.encode(new, before, **opts))
                assert (info.matrix, info.vector) == (stateless.matrix, stateless.vector)
                assert (info.k_matrix, info.k_vector) == (stateless.k_matrix, stateless.k_vector)


def error_of(recovered: State, new: State, before: State, names: list[str]) -> float:
    def norm(a: State, b: State) -> float:
        return float(np.sqrt(sum(np.sum((a[n].astype(float) - b[n]) ** 2) for n in names)))

    return norm(recovered, new) / norm(before, new)


@pytest.mark.parametrize("predictor", PREDICTORS, ids=str)
def test_threads(predictor: Any) -> None:
    rng = np.random.default_rng(3)
    initial = {"w": rng.standard_normal((900, 800), np.float32), "b": np.zeros(5, np.float16)}
    states = [moved(initial, rng) for _ in range(4)]
    payloads = []
    for n in (1, 2, 3):
        rfc.set_num_threads(n)
        enc, dec = stream(initial, predictor=predictor, error_feedback=True, sparsity=0.9)
        payloads.append([enc.encode(state) for state in states])
        for payload in payloads[-1]:
            recovered = dec.decode(payload)
        assert_same(recovered, enc.state)
    assert payloads[0] == payloads[1] == payloads[2]


# ---- types of state, and ownership of memory


def test_sequences(rng: np.random.Generator) -> None:
    initial = [value for _, value in sorted(small_model(rng).items())]
    enc, dec = stream(tuple(initial))
    recovered = dec.decode(enc.encode([value + value.dtype.type(1) for value in initial]))
    assert isinstance(recovered, list)
    assert_same(recovered, enc.state)


def test_order_of_names(rng: np.random.Generator) -> None:
    initial = small_model(rng)
    backwards = dict(reversed(initial.items()))
    enc, dec = rfc.Encoder(initial), rfc.Decoder(backwards)
    recovered = dec.decode(enc.encode(moved(backwards, rng)))
    assert list(recovered) == list(backwards)
    assert_same({n: recovered[n] for n in initial}, enc.state)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_torch(dtype: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    initial = OrderedDict(
        w=torch.tensor(rng.standard_normal((30, 40))).to(kind).t(),
        b=torch.tensor(2.5).to(kind),
        n=torch.tensor([3, 4]),
    )
    enc, dec = stream(initial, sparsity=0.5, error_feedback=True)
    for _ in range(3):
        state = {
            n: v + (1 if n == "n" else torch.randn(v.shape).to(kind)) for n, v in initial.items()
        }
        payload = enc.encode(state)
        for recovered in (dec.decode(payload), dec.decode(payload, copy=False)):
            for name, value in recovered.items():
                assert (value.dtype, value.shape) == (initial[name].dtype, initial[name].shape)
                assert torch.equal(value, enc.state[name]), name
        assert torch.equal(recovered["n"], state["n"])


@pytest.mark.parametrize("predictor", PREDICTORS, ids=str)
@pytest.mark.parametrize("n_rounds", [1, 4])
def test_callers_own_their_copies(predictor: Any, n_rounds: int, rng: np.random.Generator) -> None:
    """Overwriting all inputs and outputs with ones does not change the stream."""

    def spoil(state: State) -> None:
        for value in state.values():
            value[...] = 1

    initial = random_model(rng)
    states = [moved(initial, rng) for _ in range(n_rounds)]
    alone, _ = stream(initial, predictor=predictor, sparsity=0.5)
    given = copy.deepcopy(initial)
    enc, dec = stream(given, predictor=predictor, sparsity=0.5)
    spoil(given)
    out = copy.deepcopy(initial)
    for state in states:
        mine = copy.deepcopy(state)
        payload = enc.encode(mine)
        spoil(mine)
        assert payload == alone.encode(state)
        spoil(enc.state)
        assert_same(dec.decode(payload, out=out), alone.state)
        spoil(out)
        spoil(dec.decode(payload))
        spoil(dec.state)
        spoil(dec.state_dict())
        spoil(enc.state_dict())
        assert_same(dec.state, alone.state)


@pytest.mark.parametrize("predictor", PREDICTORS, ids=str)
def test_no_copy(predictor: Any, rng: np.random.Generator) -> None:
    initial = small_model(rng)
    enc, dec = stream(initial, predictor=predictor, sparsity=0.5)
    for _ in range(5):
        payload = enc.encode(moved(initial, rng))
        seen = dec.decode(payload, copy=False)
        assert_same(seen, enc.state)
        for value in seen.values():
            with pytest.raises(ValueError, match="read-only"):
                value[...] = 0
        assert_same(dec.decode(payload), enc.state)


def test_no_copy_updates_in_place(rng: np.random.Generator) -> None:
    """With "previous" a model keeps its memory, so only changed elements are written."""
    initial = small_model(rng)
    enc, dec = stream(initial)
    places = set()
    for _ in range(3):
        seen = dec.decode(enc.encode(moved(initial, rng)), copy=False)
        places.add(seen["w"].__array_interface__["data"][0])
    assert len(places) == 1


def test_out(rng: np.random.Generator) -> None:
    initial = small_model(rng)
    enc, dec = stream(initial)
    out = small_model(rng)
    payload = enc.encode(moved(initial, rng))
    assert dec.decode(payload, out=out) is out
    assert_same(out, enc.state)
    next_payload = enc.encode(moved(initial, rng))
    read_only = small_model(rng)
    read_only["w"].flags.writeable = False
    for bad, error, match in (
        (read_only, ValueError, "out: tensor 'w' is read-only"),
        ({**out, "w": out["w"].T.copy().T}, ValueError, "out: tensor 'w' is not C-contiguous"),
        ({"w": out["w"]}, ValueError, "out lacks 'b', 'n'"),
        ({**out, "b": out["b"].astype(np.float64)}, ValueError, "'b' float64"),
        (3, TypeError, "out: must be a mapping"),
    ):
        refused(error, match, dec.decode, next_payload, out=bad)
    dec.decode(next_payload, out=out)
    assert_same(out, enc.state)


# ---- errors


def test_bad_arguments(rng: np.random.Generator) -> None:
    initial = small_model(rng)
    nan, huge = moved(initial, rng), moved(initial, rng)
    nan["w"][1, 2] = np.nan
    huge["b"][3] = np.inf
    wrong_shape = {**initial, "b": np.zeros(7, np.float32)}
    for feedback in (False, True):
        enc = rfc.Encoder(initial, sparsity=0.5, error_feedback=feedback)
        enc.encode(moved(initial, rng))
        for bad, error, match in (
            (nan, ValueError, "tensor 'w' at flat index 22 is not finite"),
            (huge, ValueError, "tensor 'b' at flat index 3 is not finite"),
            (wrong_shape, ValueError, r"state and reference differ: 'b' float32 \[7\] against"),
            ({"w": initial["w"]}, ValueError, "state lacks 'b', 'n'"),
            (None, TypeError, "state: must be a mapping"),
            ({**initial, "w": "text"}, TypeError, "state: tensor 'w': must be a numpy.ndarray"),
        ):
            refused(error, match, enc.encode, bad)
    counts = {**initial, "n": np.zeros(40, np.int64)}
    small = rfc.Encoder(counts, max_bytes=100, error_feedback=True)
    small.encode({**moved(initial, rng), "n": counts["n"]})
    too_much = {**moved(initial, rng), "n": rng.integers(-(2**60), 2**60, 40)}
    message = r"max_bytes: too small; the smallest payload of this update takes 3\d\d bytes"
    refused(ValueError, message, small.encode, too_much)
    dec = rfc.Decoder(initial)
    refused(TypeError, "payload: must be bytes-like, not str", dec.decode, "text")
    with pytest.raises(TypeError, match="run=5: must be a str"):
        rfc.Encoder(initial, run=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="run=None: must be a str"):
        rfc.Decoder(initial, run=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="initial_state: must be a mapping"):
        rfc.Decoder(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="config or options, not both"):
        rfc.Encoder(initial, rfc.CodecConfig(), sparsity=0.5)


@pytest.mark.parametrize("kind", ["payload", "adaptive", "keyframe", "request"])
def test_every_flipped_bit_and_truncation(kind: str, rng: np.random.Generator) -> None:
    initial = small_model(rng)
    enc, dec = stream(initial, sparsity=0.5, predictor="adaptive" if kind == "adaptive" else None)
    for _ in range(3):
        dec.decode(enc.encode(moved(initial, rng)))
    good = enc.encode(moved(initial, rng))
    if kind == "keyframe":
        good = enc.keyframe()
    call: Callable[[bytes], Any] = dec.decode
    end: Any = dec
    if kind == "request":
        enc.encode(initial)
        with pytest.raises(rfc.StateMismatchError) as caught:
            dec.decode(enc.encode(initial))
        good, call, end = caught.value.request, enc.answer, enc
    before = snapshot(end)
    damaged = [good[:n] for n in range(len(good))]
    damaged += [*with_flipped_bits(good), good + b"\0", good + good]
    for i, data in enumerate(damaged):
        try:
            call(data)
        except rfc.PayloadError:
            pass
        else:
            raise AssertionError(f"damage {i} of {len(good)} bytes was not noticed")
        if i % 100 == 0:
            assert snapshot(end) == before, i
    assert snapshot(end) == before
    call(good)
