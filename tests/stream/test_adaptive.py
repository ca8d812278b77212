"""The adaptive predictor: least squares, used only where it reduces the residual."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc
from models import State, assert_same, clustered
from published_rules import FLOATS, History, combine, linear, moved, random_model, recover

UNIT = 2.0**-5


def coefficients_of(payload: bytes, names: list[str]) -> dict[str, tuple[float, ...]]:
    """The six coefficients of each tensor in the payload."""
    link = rfc.inspect(payload).link
    assert link is not None
    return {
        name: tuple(n / 2**link.coef_log2 for n in link.per_tensor.get(i, link.terms))
        for i, name in enumerate(sorted(names))
    }


def prediction_of(payload: bytes, own: History, other: History | None) -> State:
    coefficients = coefficients_of(payload, list(own.models[0]))
    return {
        name: combine(linear(c[:3], c[3:] if other else ())(own, other or own), name)
        for name, c in ((name, coefficients[name]) for name in own.models[0])
    }


@pytest.mark.parametrize("exclude", [(), ("w32", "bias")], ids=str)
def test_sessions(exclude: tuple[str, ...], rng: np.random.Generator) -> None:
    initial = random_model(rng)
    config = rfc.CodecConfig(
        sparsity=0.7, predictor="adaptive", exclude=exclude, error_feedback=False
    )
    server, client = (k(initial, config, config) for k in (rfc.ServerSession, rfc.ClientSession))
    g, l = History("g", initial), History("l", initial)  # noqa: E741
    drift = moved(initial, rng)
    n_fitted = 0
    for t in range(6):
        target = along(g.models, drift, t)
        payload = server.update(target)
        expected = recover(target, prediction_of(payload, g, None), sparsity=0.7, exclude=exclude)
        g.models.append(expected)
        assert_same(client.receive(server.send(0)), expected, f"round {t}, down")
        local = along([*g.models[:-1], expected], drift, t + 1)
        payload = client.send(local)
        n_fitted += len(rfc.inspect(payload).link.per_tensor)  # type: ignore[union-attr]
        expected = recover(local, prediction_of(payload, l, g), sparsity=0.7, exclude=exclude)
        l.models.append(expected)
        assert_same(server.receive(0, payload), expected, f"round {t}, up")
    assert n_fitted > 0


def along(models: list[State], drift: State, t: int) -> State:
    """A model that keeps moving in one direction, with a little noise."""
    rng = np.random.default_rng(t)
    result = {}
    for name, value in models[-1].items():
        if value.dtype.type in FLOATS:
            step = drift[name].astype(np.float64) + 0.01 * rng.standard_normal(value.shape)
            result[name] = np.asarray(value.astype(np.float64) + step).astype(value.dtype)
        else:
            result[name] = value
    return result


def random_walk(
    rng: np.random.Generator, n: int, shapes: dict[str, tuple[int, ...]]
) -> list[State]:
    models = [{k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}]
    for _ in range(n - 1):
        models.append({k: v + clustered(v.shape, rng, 0.1) for k, v in models[-1].items()})
    return models


def drifting(rng: np.random.Generator, n: int, shapes: dict[str, tuple[int, ...]]) -> list[State]:
    """Models that move by the same step again and again, with a tenth of it as noise."""
    models = random_walk(rng, 1, shapes)
    steps = {k: clustered(s, rng, 0.1) for k, s in shapes.items()}
    for _ in range(n - 1):
        models.append(
            {k: v + steps[k] + clustered(v.shape, rng, 0.01) for k, v in models[-1].items()}
        )
    return models


SHAPES = {"a": (60, 50), "b": (20, 30), "c": (200,)}


def steps_of(history: History, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The two steps that a stream's prediction combines, as columns."""
    newest, second, third = (history[-k].model[name].astype(np.float64).ravel() for k in (1, 2, 3))
    return newest - second, second - third


@pytest.mark.parametrize("steps", [(0.75, 0.0), (0.0, -0.5), (0.4, 0.3), (1.9, -1.3)], ids=str)
def test_coefficients_are_those_of_least_squares(
    steps: tuple[float, float], rng: np.random.Generator
) -> None:
    """In a stream: newest + x (newest - second) + y (second - third), x and y rounded to 1/32."""
    enc = rfc.Encoder(random_walk(rng, 1, SHAPES)[0], sparsity=0.5, predictor="adaptive")
    history = History("o", enc.state)
    for _ in range(3):
        enc.encode({k: v + clustered(v.shape, rng, 0.1) for k, v in enc.state.items()})
        history.models.append(enc.state)
    state = {}
    for name, value in history.models[-1].items():
        first, second = steps_of(history, name)
        change = steps[0] * first + steps[1] * second
        state[name] = value + (change.reshape(value.shape) + clustered(value.shape, rng, 1e-3))
        state[name] = state[name].astype(np.float32)
    coefficients = coefficients_of(enc.encode(state), list(SHAPES))
    for name, (own1, own2, own3, *other) in coefficients.items():
        assert own1 + own2 + own3 == 1, name
        assert not any(other), name
        columns = np.stack(steps_of(history, name), axis=1)
        wanted = (state[name].astype(np.float64) - history.models[-1][name]).ravel()
        best = np.linalg.lstsq(columns, wanted, rcond=None)[0]
        # The codec fits and rounds own1 and own2; own3 follows from them.
        exact = (1 + best[0], best[1] - best[0], -best[1])
        assert np.abs(np.array([own1, own2]) - exact[:2]).max() <= UNIT / 2 + 1e-4, (name, exact)


def test_session_coefficients(rng: np.random.Generator) -> None:
    """In an uplink: g1 + x (l1 - g2) + y (g1 - g2)."""
    initial = random_walk(rng, 1, SHAPES)[0]
    config = rfc.CodecConfig(sparsity=0.5, predictor="adaptive")
    server, client = rfc.ServerSession(initial, config), rfc.ClientSession(initial, config)
    g, l = [initial], [initial]  # noqa: E741
    for t in range(4):
        server.update({k: v + clustered(v.shape, rng, 0.1) for k, v in server.state.items()})
        g.append(client.receive(server.send(0)))
        local = {}
        for name, value in g[-1].items():
            step = 0.6 * (l[-1][name] - g[-2][name]) - 0.4 * (g[-1][name] - g[-2][name])
            local[name] = value + step + clustered(value.shape, rng, 1e-3)
        payload = client.send(local)
        previous, l = l[-1], [*l, server.receive(0, payload)]  # noqa: E741
        if t == 0:
            continue  # the client has no earlier update
        for name, c in coefficients_of(payload, list(SHAPES)).items():
            wanted, *columns = (
                (a[name].astype(np.float64) - b[name]).ravel()
                for a, b in ((local, g[-1]), (previous, g[-2]), (g[-1], g[-2]))
            )
            x, y = np.linalg.lstsq(np.stack(columns, axis=1), wanted, rcond=None)[0]
            exact = np.array([x, 0, 0, 1 + y, -x - y, 0])
            assert np.abs(c - exact)[[0, 3]].max() <= UNIT / 2 + 1e-4, (t, name, c, exact)
            assert sum(c) == 1, (t, name)


def twins(history: list[State], **options: Any) -> tuple[rfc.Encoder, rfc.Encoder]:
    """An adaptive encoder and one of the start rule, with the same history."""
    adaptive = rfc.Encoder(history[0], predictor="adaptive", **options)
    for model in history[1:]:
        adaptive.encode(model)
    start = rfc.Encoder(history[0], predictor="previous", **options)
    start.load_state_dict(adaptive.state_dict())
    return adaptive, start


@pytest.mark.parametrize("sparsity", [0.0, 0.9, 0.99])
@pytest.mark.parametrize("seed", range(6))
def test_costs_few_bytes_without_a_gain(sparsity: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    models = random_walk(rng, 6, SHAPES)
    adaptive, start = twins(models[:-1], sparsity=sparsity)
    with_fit, without = (enc.encode(models[-1]) for enc in (adaptive, start))
    coefficients = rfc.inspect(with_fit).link_bytes - rfc.inspect(without).link_bytes
    assert len(with_fit) - coefficients <= 1.01 * len(without) + 8


@pytest.mark.parametrize("sparsity", [0.9, 0.99])
def test_gains_where_the_model_moves_along_its_history(
    sparsity: float, rng: np.random.Generator
) -> None:
    """At equal sparsity the error is a fraction, for few more bytes."""
    models = drifting(rng, 5, {"a": (200, 150)})
    exact = rfc.Encoder(models[0], sparsity=0.0, bits=16, predictor="adaptive")
    for model in models[1:-1]:
        exact.encode(model)
    errors, sizes = [], []
    for predictor in ("adaptive", "previous"):
        enc = rfc.Encoder(models[0], sparsity=sparsity, predictor=predictor)
        enc.load_state_dict(exact.state_dict())
        sizes.append(len(enc.encode(models[-1])))
        errors.append(float(np.linalg.norm(enc.state["a"] - models[-1]["a"])))
    assert errors[0] < 0.3 * errors[1], errors
    assert sizes[0] < 1.3 * sizes[1], sizes


@pytest.mark.parametrize("shapes", [{"a": (30, 40)}, {"v": (30,)}, {"s": ()}, {"e": (0, 3)}, {}])
def test_small_models(shapes: dict[str, tuple[int, ...]], rng: np.random.Generator) -> None:
    """One tensor or none, a short history, and zero residuals."""
    initial = {n: np.asarray(rng.standard_normal(s)).astype(np.float32) for n, s in shapes.items()}
    config = rfc.CodecConfig(sparsity=0.5, predictor="adaptive", error_feedback=False)
    server, client = (k(initial, config, config) for k in (rfc.ServerSession, rfc.ClientSession))
    for t in range(5):
        state = server.state if t in (0, 3) else {k: v + 1 for k, v in server.state.items()}
        state = {k: np.asarray(v, np.float32) for k, v in state.items()}
        server.update(state)
        assert_same(client.receive(server.send(0)), server.state)
        if t in (0, 3):
            assert_same(client.state, state, f"round {t}: a residual of zero")
        server.receive(0, client.send(client.state))


def test_every_tensor_excluded(rng: np.random.Generator) -> None:
    initial = random_model(rng)
    enc = rfc.Encoder(initial, predictor="adaptive", exclude=("*",))
    dec = rfc.Decoder(initial)
    for _ in range(4):
        state = moved(initial, rng)
        payload = enc.encode(state)
        assert_same(dec.decode(payload), state)
        assert not rfc.inspect(payload).link.per_tensor  # type: ignore[union-attr]


def test_not_finite(rng: np.random.Generator) -> None:
    models = random_walk(rng, 5, SHAPES)
    enc = rfc.Encoder(models[0], predictor="adaptive")
    for model in models[1:-1]:
        enc.encode(model)
    twin = rfc.Encoder(models[0], predictor="adaptive")
    twin.load_state_dict(enc.state_dict())
    for bad in (np.nan, np.inf, -np.inf):
        state = {name: value.copy() for name, value in models[-1].items()}
        state["b"][3, 4] = bad
        with pytest.raises(ValueError, match="tensor 'b' at flat index 94 is not finite"):
            enc.encode(state)
    assert enc.encode(models[-1]) == twin.encode(models[-1])


@pytest.mark.parametrize("threads", [2, 3])
def test_threads(threads: int, rng: np.random.Generator) -> None:
    models = drifting(rng, 5, {"a": (700, 500), "b": (300_000,)})
    payloads = []
    for n in (1, threads):
        rfc.set_num_threads(n)
        enc = rfc.Encoder(models[0], sparsity=0.9, predictor="adaptive")
        payloads.append([enc.encode(model) for model in models[1:]])
    assert any(rfc.inspect(p).link.per_tensor for p in payloads[0])  # type: ignore[union-attr]
    assert payloads[0] == payloads[1]
