"""Predictors: sessions and streams equal the published formulas in NumPy, bit for bit.

tests/support/published_rules.py computes each prediction, and the stateless encode() and decode()
recover the model from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import resfed_codec as rfc
from models import State, assert_same
from published_rules import (
    FLOATS,
    PUBLISHED,
    RULES,
    History,
    Rule,
    combine,
    linear,
    moved,
    predict,
    random_model,
    recover,
)

SPARSITY = 0.7


def mean(models: Sequence[State]) -> State:
    result = {}
    for name, first in models[0].items():
        if first.dtype.type in FLOATS:
            total = sum(model[name].astype(np.float64) for model in models)
            result[name] = np.asarray(total / len(models)).astype(first.dtype)
        else:
            result[name] = first
    return result


def check_sessions(
    up: Any, up_rule: Rule, down: Any, down_rule: Rule, rng: np.random.Generator, n_rounds: int = 5
) -> None:
    """Compare a server and two clients with the NumPy model in every round."""
    initial = random_model(rng)
    uplink = rfc.CodecConfig(sparsity=SPARSITY, predictor=up, error_feedback=False)
    downlink = rfc.CodecConfig(sparsity=SPARSITY, predictor=down, error_feedback=False)
    server = rfc.ServerSession(initial, uplink, downlink)
    clients = [rfc.ClientSession(initial, uplink, downlink) for _ in range(2)]
    g = [History("g", initial) for _ in clients]
    l = [History("l", initial) for _ in clients]  # noqa: E741 (the paper's letter)
    new_global = moved(initial, rng)
    for t in range(n_rounds):
        server.update(new_global)
        received = []
        for c, client in enumerate(clients):
            expected = recover(new_global, predict(down_rule, g[c], l[c]), sparsity=SPARSITY)
            g[c].models.append(expected)
            held = client.receive(server.send(c))
            assert_same(held, expected, f"round {t}, downlink of client {c}")
            local = moved(held, rng)
            expected = recover(local, predict(up_rule, l[c], g[c]), sparsity=SPARSITY)
            l[c].models.append(expected)
            received.append(server.receive(c, client.send(local)))
            assert_same(received[-1], expected, f"round {t}, uplink of client {c}")
        new_global = moved(mean(received), rng, 0.01)


@pytest.mark.parametrize("down", RULES)
@pytest.mark.parametrize("up", RULES)
def test_named_rules(up: str, down: str, rng: np.random.Generator) -> None:
    check_sessions(up, RULES[up], down, RULES[down], rng)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("n_models", [1, 2, 3, 4, 5])
def test_model_follows_the_published_formulas(
    name: str, n_models: int, rng: np.random.Generator
) -> None:
    """Compare the float32 sums of the NumPy model with the printed formula in float64."""
    initial = {"w": rng.standard_normal((30, 40)).astype(np.float32)}
    own, other = History("l", initial), History("g", initial)
    for history in (own, other):
        for _ in range(n_models - 1):
            history.models.append({"w": rng.standard_normal((30, 40)).astype(np.float32)})

    class Wide:
        def __init__(self, history: History) -> None:
            self.history = history

        def __getitem__(self, back: int) -> np.ndarray:
            return self.history[back].model["w"].astype(np.float64)

    expected = PUBLISHED[name](Wide(own), Wide(other))
    actual = combine(RULES[name](own, other), "w")
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


@st.composite
def coefficients(draw: st.DrawFn) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Up to three of each direction, not all zero; some are not multiples of 2**-12."""
    one = st.one_of(
        st.sampled_from([0, 1, -1, 0.5, 2, 1 / 3, 2**-12, 1 + 2**-12, 3 * 2**-13, 5 * 2**-13]),
        st.floats(-2, 2),
    )
    lists = st.lists(one, max_size=3).map(tuple)
    own, other = draw(st.tuples(lists, lists).filter(lambda p: any(_rounded(p[0] + p[1]))))
    return own, other


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(np.rint(np.float64(v) * 4096) / 4096) for v in values)


@settings(max_examples=40)
@given(coefficients(), coefficients(), st.integers(0, 2**32))
def test_own_coefficients(up: Any, down: Any, seed: int) -> None:
    """Rounded to multiples of 2**-12, nearest, ties to even."""
    rng = np.random.default_rng(seed)
    rules = [linear(_rounded(own), _rounded(other)) for own, other in (up, down)]
    check_sessions(
        rfc.LinearPredictor(*up), rules[0], rfc.LinearPredictor(*down), rules[1], rng, n_rounds=3
    )


def check_stream(
    predictor: Any, predictions: Any, rng: np.random.Generator, **options: Any
) -> None:
    """Compare an Encoder and a Decoder with the expected ``predictions(history)``."""
    initial = random_model(rng)
    enc = rfc.Encoder(initial, sparsity=SPARSITY, predictor=predictor, **options)
    dec = rfc.Decoder(initial)
    history = History("o", initial)
    for _ in range(6):
        state = moved(history.models[-1], rng)
        expected = recover(state, predictions(history), sparsity=SPARSITY, **options)
        assert_same(dec.decode(enc.encode(state)), expected)
        assert_same(enc.state, expected)
        history.models.append(expected)


@pytest.mark.parametrize(
    "own", [(1,), (2, -1), (0.75, 0.5, -0.25), (0, 0, 1), (0, 1), (2.5,)], ids=str
)
def test_streams(own: tuple[float, ...], rng: np.random.Generator) -> None:
    rule = linear(own)
    check_stream(rfc.LinearPredictor(own=own), lambda h: predict(rule, h, h), rng)


@pytest.mark.parametrize("name", ["previous", "res0", None])
def test_streams_by_name(name: str | None, rng: np.random.Generator) -> None:
    check_stream(name, lambda h: h.models[-1], rng)


def test_tensors_with_their_own_coefficients(rng: np.random.Generator) -> None:
    """The first matching pattern applies; lossless tensors need no coefficients."""
    tensors = {"w1*": ((2, -1), ()), "w*": ((1.5, 0, -0.5), ()), "s*": ((0, 1), ())}
    predictor = rfc.LinearPredictor(own=(1,), tensors=tensors)

    def predictions(h: History) -> State:
        own = {"w16": (2, -1), "scale": (0, 1), "bias": (1,), "w32": (1,)}
        return {
            name: combine(linear(own.get(name, (1.5, 0, -0.5)))(h, h), name)
            for name in h.models[0]
        }  # fmt: skip

    check_stream(predictor, predictions, rng, exclude=("w32",))


def test_tensors_with_terms_of_the_other_direction(rng: np.random.Generator) -> None:
    initial = random_model(rng)
    tensors = {"w*": ((1,), (0.5, -0.5)), "bias": ((), (0, 1))}
    uplink = rfc.CodecConfig(
        sparsity=SPARSITY, predictor=rfc.LinearPredictor(other=(1,), tensors=tensors)
    )
    server, client = rfc.ServerSession(initial, uplink), rfc.ClientSession(initial, uplink)
    g, l = History("g", initial), History("l", initial)  # noqa: E741
    for _ in range(5):
        server.update(moved(server.state, rng))
        g.models.append(client.receive(server.send("a")))
        local = moved(client.state, rng)
        rules = {name: RULES["res1"] if name[0] == "w" else RULES["global"] for name in initial}
        rules["bias"] = linear((), (0, 1))
        prediction = {name: combine(rule(l, g), name) for name, rule in rules.items()}
        l.models.append(recover(local, prediction, sparsity=SPARSITY))
        assert_same(server.receive("a", client.send(local)), l.models[-1])


def test_real_rounds(snapshots: dict[str, State]) -> None:
    """Four rounds of a real training; a client starts at g4 and trains l0_5 ... l0_8."""
    initial = snapshots["g4"]
    for name in ("res0", "res1", "res2"):
        uplink = rfc.CodecConfig(sparsity=0.99, predictor=name)
        server, client = rfc.ServerSession(initial, uplink), rfc.ClientSession(initial, uplink)
        g, l = History("g", initial), History("l", initial)  # noqa: E741
        for t in range(5, 9):
            local = snapshots[f"l0_{t}"]
            l.models.append(recover(local, predict(RULES[name], l, g), sparsity=0.99))
            assert_same(server.receive(0, client.send(local)), l.models[-1])
            server.update(snapshots[f"g{t}"])
            g.models.append(client.receive(server.send(0)))


def test_equivalent_rule_names() -> None:
    linear_ones = {
        "global": rfc.LinearPredictor(other=(1,)),
        "previous": rfc.LinearPredictor(own=(1,)),
        "res1": rfc.LinearPredictor(own=[1], other=[0.5, -0.5]),
    }
    rng = np.random.default_rng(5)
    initial = random_model(rng)
    state = moved(initial, rng)
    for name, predictor in linear_ones.items():
        payloads = [
            rfc.ClientSession(initial, rfc.CodecConfig(predictor=p)).send(state)
            for p in (name, predictor)
        ]
        assert payloads[0] == payloads[1], name


BAD_PREDICTORS = {
    "own: 'x' must be a number": ({"own": ("x",)}, TypeError),
    "own='1': must be a sequence": ({"own": "1"}, TypeError),
    "other=1: must be a sequence": ({"other": 1}, TypeError),
    "own: True must be a number": ({"own": (True,)}, TypeError),
    "own: nan must be finite": ({"own": (float("nan"),)}, ValueError),
    "other: -inf must be finite": ({"other": (1, float("-inf"))}, ValueError),
    "own: 10{400} must be finite": ({"own": (10**400,)}, ValueError),
    r"own=\(1, 1, 1, 1\): at most 3": ({"own": (1, 1, 1, 1)}, ValueError),
    r"own=\(257,\): 257 is beyond 256": ({"own": (257,)}, ValueError),
    "one coefficient must differ from 0": ({}, ValueError),
    r"own=\(1e-05,\).*must differ from 0": ({"own": (1e-5,)}, ValueError),
    "tensors=3: must be a mapping": ({"own": (1,), "tensors": 3}, TypeError),
    "tensors: 3 is no name pattern": ({"own": (1,), "tensors": {3: ((1,), ())}}, TypeError),
    r"tensors\['w'\]=5: must be a pair": ({"own": (1,), "tensors": {"w": 5}}, TypeError),
}


@pytest.mark.parametrize(
    ("message", "arguments", "error"),
    [(message, *case) for message, case in BAD_PREDICTORS.items()],
    ids=BAD_PREDICTORS.keys(),
)
def test_wrong_coefficients(message: str, arguments: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=message):
        rfc.LinearPredictor(**arguments)


def test_predictors_that_do_not_fit() -> None:
    initial = [np.zeros((2, 3), np.float32)]
    with pytest.raises(ValueError, match="reads the other direction"):
        rfc.Encoder(initial, predictor="res1")
    with pytest.raises(ValueError, match="no tensor is named like 'x'"):
        rfc.Encoder(initial, predictor=rfc.LinearPredictor((1,), tensors={"x": ((1,), ())}))
    with pytest.raises(ValueError, match="predictor='res3': must be one of"):
        rfc.CodecConfig(predictor="res3")
    with pytest.raises(TypeError, match="predictor=1: must be a name"):
        rfc.CodecConfig(predictor=1)  # type: ignore[arg-type]
    config = rfc.CodecConfig(predictor="res1", error_feedback=True)
    with pytest.raises(ValueError, match="downlink: error_feedback needs a predictor that serves"):
        rfc.ServerSession(initial, downlink=config)
