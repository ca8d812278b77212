"""Arrays that share memory: an error as ``out`` where the result could be wrong."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc
from models import State, assert_same, clustered

NAMES = ("a", "b", "c")


def model(rng: np.random.Generator) -> State:
    return {name: rng.standard_normal((30, 40)).astype(np.float32) for name in NAMES}


def moved(state: State, rng: np.random.Generator) -> State:
    return {name: array + clustered(array.shape, rng) for name, array in state.items()}


def overlapping() -> State:
    memory = np.zeros(3 * 1200 - 1, np.float32)
    return {n: memory[i * 1200 - (i > 1) :][:1200].reshape(30, 40) for i, n in enumerate(NAMES)}


def tied() -> State:
    array = np.zeros((30, 40), np.float32)
    return {"a": array, "b": np.zeros_like(array), "c": array}


OUTS: dict[str, tuple[Callable[[], State], str]] = {
    "tied": (tied, "out: tensors 'a' and 'c' share memory"),
    "overlapping": (overlapping, "out: tensors 'b' and 'c' share memory"),
}


def as_torch(state: State) -> dict[str, Any]:
    torch = pytest.importorskip("torch")
    return {name: torch.from_numpy(array) for name, array in state.items()}


@pytest.mark.parametrize("kind", OUTS)
@pytest.mark.parametrize("convert", [dict, as_torch])
def test_out_that_shares_memory(
    kind: str, convert: Callable[[State], Any], rng: np.random.Generator
) -> None:
    make, message = OUTS[kind]
    reference = model(rng)
    state = moved(reference, rng)
    payload, keyframe = rfc.encode(state, reference), rfc.encode_keyframe(state)
    server, client = rfc.ServerSession(reference), rfc.ClientSession(reference)
    encoder, decoder = rfc.Encoder(reference), rfc.Decoder(reference)
    server.update(state)
    down, up, next_ = server.send("x"), client.send(state), encoder.encode(state)
    calls: list[Callable[[Any], object]] = [
        lambda out: rfc.decode(payload, reference, out=out),
        lambda out: rfc.decode_keyframe(keyframe, reference, out=out),
        lambda out: client.receive(down, out=out),
        lambda out: server.receive("x", up, out=out),
        lambda out: decoder.decode(next_, out=out),
    ]
    for call in calls:
        out = make()
        with pytest.raises(ValueError, match=message):
            call(convert(out))
        assert not any(array.any() for array in out.values())
        call(convert(model(rng)))  # the error changed nothing


def test_out_that_shares_memory_with_the_reference(rng: np.random.Generator) -> None:
    reference = model(rng)
    before = {name: array.copy() for name, array in reference.items()}
    state = moved(reference, rng)
    payload = rfc.encode(state, reference)
    expected = rfc.decode(payload, reference)
    swapped = {"a": reference["b"], "b": reference["a"], "c": np.zeros((30, 40), np.float32)}
    with pytest.raises(ValueError, match=r"'[ab]' shares memory with tensor '[ab]' of reference"):
        rfc.decode(payload, reference, out=swapped)
    rotated = dict(zip(NAMES, [reference[n] for n in "bca"], strict=True))
    with pytest.raises(ValueError, match=r"out: tensor '.' shares memory with tensor '.' of ref"):
        rfc.decode(payload, reference, out=rotated)
    memory = np.zeros(1201, np.float32)
    reference["b"] = memory[:1200].reshape(30, 40)
    reference["b"][:] = before["b"]
    partly = {**{n: np.zeros((30, 40), np.float32) for n in "ac"}, "b": memory[1:].reshape(30, 40)}
    with pytest.raises(ValueError, match="out: tensor 'b' shares memory with tensor 'b' of ref"):
        rfc.decode(payload, reference, out=partly)
    assert_same(reference, before)

    some = {**{n: np.zeros((30, 40), np.float32) for n in "ab"}, "c": reference["c"]}
    assert_same(rfc.decode(payload, reference, out=some), expected)
    reference["c"] = before["c"].copy()
    assert_same(rfc.decode(payload, reference, out=reference), expected)


def test_tied_tensors_as_input(rng: np.random.Generator) -> None:
    reference = model(rng)
    reference["c"] = reference["a"]
    state = moved(reference, rng)
    payload = rfc.encode(state, reference)
    expected = rfc.decode(payload, reference)
    out = model(rng)
    assert_same(rfc.decode(payload, reference, out=out), expected)
    with pytest.raises(ValueError, match="'a' shares memory with tensor 'c' of reference"):
        rfc.decode(payload, reference, out={**out, "a": reference["a"]})


def test_tied_tensors_in_place_while_equal(rng: np.random.Generator) -> None:
    reference = model(rng)
    reference["c"] = reference["a"]
    before = reference["a"].copy()
    state = moved(reference, rng)
    payload = rfc.encode(state, reference)  # a and c become different
    with pytest.raises(ValueError, match="out: tensors 'a' and 'c' share memory, and the payload"):
        rfc.decode(payload, reference, out=reference)
    assert np.array_equal(reference["a"], before)
    state["c"] = state["a"]
    payload = rfc.encode(state, reference, sparsity=0)
    expected = rfc.decode(payload, reference)
    assert_same(rfc.decode(payload, reference, out=dict(reference)), expected)
    assert reference["c"] is reference["a"]


def test_random_outs(rng: np.random.Generator) -> None:
    """Compare with a check of all pairs."""
    refused = 0
    for _ in range(200):
        memory = np.zeros(40, np.uint8)

        def some(memory: np.ndarray = memory) -> State:
            starts = rng.integers(0, 32, 3)
            return {
                n: memory[s : s + rng.integers(0, 9)] for n, s in zip(NAMES, starts, strict=True)
            }

        reference = some()
        out = {n: memory[rng.integers(0, 30) :][: reference[n].size] for n in NAMES}
        if rng.random() < 0.5:
            out["a"] = reference["a"]
        shared = np.shares_memory
        wrong = any(shared(out[i], out[j]) for i in NAMES for j in NAMES if i < j) or any(
            shared(out[i], reference[j]) and out[i] is not reference[j] and not (
                i == j and out[i].__array_interface__ == reference[j].__array_interface__)
            for i in NAMES for j in NAMES
        )  # fmt: skip
        payload = rfc.encode(reference, reference)
        try:
            rfc.decode(payload, reference, out=out)
        except ValueError:
            refused += 1
            assert wrong
        else:
            assert not wrong
    assert 20 < refused < 200


# ---- a reference that is the state itself


def test_state_dict_that_was_not_cloned() -> None:
    torch = pytest.importorskip("torch")
    net = torch.nn.Linear(4, 4)
    reference = net.state_dict()
    with pytest.warns(UserWarning, match=r"must be a copy, such as .*clone\(\)") as caught:
        rfc.encode(net.state_dict(), reference)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    named = dict(net.named_parameters())
    with pytest.warns(UserWarning, match="state and reference are the same memory"):
        rfc.encode(named, reference)
    with warnings.catch_warnings(record=True) as caught_once:
        warnings.simplefilter("default")
        for _ in range(3):
            rfc.encode(net.state_dict(), reference)
    assert len(caught_once) == 1


def test_no_warning_where_some_memory_differs(rng: np.random.Generator) -> None:
    reference = model(rng)
    rfc.encode({**reference, "c": reference["c"].copy()}, reference)
    rfc.encode(reference, reference)  # the payload encodes no change
    empty = np.zeros(0, np.float32)
    rfc.encode({"e": empty}, {"e": empty})
    rfc.encode({}, {})
