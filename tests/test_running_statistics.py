"""Running statistics are carried losslessly unless the caller says otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc
from models import State
from resfed_codec import reference as slow

NAMES = [
    "norm.running_mean",
    "running_var",
    "block/bn/moving_mean",
    "bn/moving_var",
    "batch_normalization/moving_variance",
]


def pair_of(*names: str, seed: int = 0) -> tuple[State, State]:
    """(state, reference): a matrix, a bias, and a vector of each name."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"conv": (16, 40), "bias": (30,)}
    shapes |= dict.fromkeys(names, (30,))
    old = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    new = {n: v + rng.standard_t(2, v.shape).astype(np.float32) for n, v in old.items()}
    return new, old


def exact(state: State, recovered: State) -> set[str]:
    return {name for name in state if np.array_equal(state[name], recovered[name])}


@pytest.mark.parametrize("name", NAMES)
def test_exact_by_default(name: str) -> None:
    state, reference = pair_of(name)
    payload = rfc.encode(state, reference)
    assert exact(state, rfc.decode(payload, reference)) == {name}
    assert payload == rfc.encode(state, reference, rfc.CodecConfig())
    assert payload == rfc.encode(state, reference, exclude=None)
    assert payload == rfc.encode(state, reference, exclude=name)
    assert payload == slow.encode(state, reference)


@pytest.mark.parametrize(
    ("exclude", "expected"),
    [((), set()), ("bias", {"bias"}), (("bias", "*running*"), {"bias", "bn.running_var"})],
    ids=str,
)
def test_patterns_given_replace_the_default(exclude: Any, expected: set[str]) -> None:
    state, reference = pair_of("bn.running_var")
    payload = rfc.encode(state, reference, exclude=exclude)
    assert exact(state, rfc.decode(payload, reference)) == expected
    assert payload == slow.encode(state, reference, exclude=exclude)


def test_names_that_are_none_of_theirs() -> None:
    """Nothing named like them is no error, and similar names are not taken for them."""
    names = ("running_means", "moving", "mean", "variance", "running_var.weight")
    state, reference = pair_of(*names)
    assert rfc.encode(state, reference) == rfc.encode(state, reference, exclude=())
    arrays, base = [*state.values()], [*reference.values()]
    assert rfc.encode(arrays, base) == rfc.encode(arrays, base, exclude=())
    assert rfc.decode(rfc.encode({}, {}), {}) == {}


def test_streams_and_sessions() -> None:
    name = "bn.running_mean"
    state, initial = pair_of(name)
    encoder, decoder = rfc.Encoder(initial), rfc.Decoder(initial)
    assert exact(state, decoder.decode(encoder.encode(state))) == {name}
    server, client = rfc.ServerSession(initial), rfc.ClientSession(initial)
    assert exact(state, server.receive(0, client.send(state))) == {name}
    for seed in (1, 2):
        state, _ = pair_of(name, seed=seed)
        server.update(state)
        assert exact(state, client.receive(server.send(0))) == {name}


def test_feedback_down_keeps_variances_what_they_are() -> None:
    """In the budget, what is left out of a statistic would be added again and again."""
    name = "bn.running_var"
    _, initial = pair_of(name)
    initial[name] = np.ones(30, np.float32)
    downlink = rfc.CodecConfig(error_feedback=True)
    server, client = rfc.ServerSession(initial, downlink=downlink), rfc.ClientSession(initial)
    rng = np.random.default_rng(0)
    for _ in range(5):
        state, _ = pair_of(name)
        state[name] = rng.uniform(0.001, 1, 30).astype(np.float32)
        server.update(state)
        assert np.array_equal(client.receive(server.send(0))[name], state[name])


def test_a_bound_in_bytes_that_they_alone_exceed() -> None:
    state, reference = pair_of(*NAMES)
    with pytest.raises(ValueError, match="by default running statistics"):
        rfc.encode(state, reference, max_bytes=200)
    assert len(rfc.encode(state, reference, max_bytes=200, exclude=())) <= 200
