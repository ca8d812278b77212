"""Warnings of tensors that look replaced in each round, or an optimizer's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc
from models import State
from resfed_codec.codec import update
from resfed_codec.tensors.suspects import CHECKED

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update, "_seen", {})


def pair(rng: np.random.Generator, **others: tuple[Any, Any]) -> tuple[State, State]:
    """A state and its reference: parameters that a round updates, and ``others``."""
    reference = {f"w{i}": rng.standard_normal((30, 40)).astype(np.float32) for i in range(3)}
    reference["bias"] = np.zeros(30, np.float32)
    state = {n: a + np.float32(0.01) * rng.standard_normal(a.shape) for n, a in reference.items()}
    state = {n: a.astype(np.float32) for n, a in state.items()}
    for name, (old, new) in others.items():
        reference[name], state[name] = np.asarray(old), np.asarray(new)
    return state, reference


def one_way(state: State, reference: State, **options: Any) -> None:
    rfc.encode(state, reference, **options)


def in_stream(state: State, reference: State, **options: Any) -> None:
    rfc.Encoder(reference, rfc.CodecConfig(**options)).encode(state)


def down(state: State, reference: State, **options: Any) -> None:
    rfc.ServerSession(reference, None, rfc.CodecConfig(**options)).update(state)


def up(state: State, reference: State, **options: Any) -> None:
    rfc.ClientSession(reference, rfc.CodecConfig(**options)).send(state)


WAYS = [one_way, in_stream, down, up]


@pytest.mark.parametrize("way", WAYS)
def test_a_tensor_that_a_round_replaces(way: Callable[..., None], rng: np.random.Generator) -> None:
    ones = np.ones(30, np.float32)
    models = pair(rng, spread=(ones, 60 * ones))
    with pytest.warns(UserWarning, match="tensor 'spread' looks replaced rather than upd") as found:
        way(*models)
    assert len(found) == 1
    assert "the change is 59 times its size" in str(found[0].message)
    assert found[0].filename == __file__
    way(*models, dense=["spread"])
    way(*models, exclude=["spread"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_counter_from_zero(dtype: str, rng: np.random.Generator) -> None:
    kind = getattr(pytest.importorskip("ml_dtypes"), dtype) if dtype == "bfloat16" else dtype
    models = pair(rng, n=(np.zeros((), kind), np.full((), 78, kind)))
    with pytest.warns(UserWarning, match="tensor 'n' looks replaced .*: the change is all of it"):
        rfc.encode(*models)


def test_several_tensors_are_one_warning(rng: np.random.Generator) -> None:
    models = pair(rng, a=(np.float32(0), np.float32(90)), b=(np.float32(0), np.float32(90)))
    with pytest.warns(UserWarning, match="tensor 'a' and 1 more look replaced") as found:
        rfc.encode(*models)
    assert len(found) == 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["opt.0.exp_avg_sq", "momentum_buffer", "lr", "a/exp_avg"])
def test_an_optimizer_by_its_names(
    way: Callable[..., None], name: str, rng: np.random.Generator
) -> None:
    models = pair(rng, **{name: (np.full(30, 0.1, np.float32), np.full(30, 0.11, np.float32))})
    match = f"tensor '{name}' looks like an optimizer's state"
    with pytest.warns(UserWarning, match=match) as found:
        way(*models)
    assert len(found) == 1
    assert found[0].filename == __file__
    way(*models, exclude=[name])
    way(*models, dense=[name])


@pytest.mark.parametrize("name", ["quantizer.step", "color", "lr_scale", "exp_avg.weight"])
def test_other_names(name: str, rng: np.random.Generator) -> None:
    rfc.encode(*pair(rng, **{name: (np.full(30, 0.1, np.float32), np.full(30, 0.11, np.float32))}))


def test_parameters_that_begin_at_zero(rng: np.random.Generator) -> None:
    """Such as biases, LoRA's B, a residual branch's scale."""
    some = np.float32(0.3) * rng.standard_normal((30, 4)).astype(np.float32)
    rfc.encode(*pair(rng, lora_B=(np.zeros_like(some), some), scale=(np.float32(0), np.float32(1))))
    rfc.encode(*pair(rng, running_var=(np.ones(30, np.float32), np.full(30, 60, np.float32))))


def test_models_without_a_typical_change(rng: np.random.Generator) -> None:
    zeros = {f"w{i}": np.zeros((3, 4), np.float32) for i in range(3)}
    rfc.encode(zeros, zeros)
    rfc.encode({**zeros, "w0": np.ones((3, 4), np.float32)}, zeros)
    rfc.encode({"empty": np.zeros((0, 3), np.float32)}, {"empty": np.zeros((0, 3), np.float32)})
    rfc.encode({}, {})


def test_values_that_are_not_finite_are_only_an_error(rng: np.random.Generator) -> None:
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match=r"tensor 'x' .* is not finite"):
            rfc.encode(*pair(rng, x=(np.float32(0), np.float32(value))))
    rfc.encode(*pair(rng, x=(np.float64(3e38), np.float64(-3e37))))


@pytest.mark.parametrize("way", WAYS)
def test_tied_tensors(way: Callable[..., None], rng: np.random.Generator) -> None:
    state, reference = pair(rng)
    way({**state, "head": state["w1"] + np.float32(0)}, {**reference, "head": reference["w1"]})
    with pytest.warns(UserWarning, match="tensors 'head' and 'w1' are one memory") as found:
        way({**state, "head": state["w1"]}, {**reference, "head": reference["w1"]})
    assert len(found) == 1
    rows = {"a": state["w0"][:10], "b": state["w0"][:20], "c": state["w0"][:10, 0]}
    way(rows, {name: array - np.float32(0.01) for name, array in rows.items()})


def test_a_line_of_a_program_is_told_once(rng: np.random.Generator) -> None:
    """Sessions look at their first payloads only."""
    models = pair(rng, n=(np.float32(0), np.float32(78)))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(5):
            rfc.encode(*models)
    assert len(found) == CHECKED
    client = rfc.ClientSession(models[1])
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(5):
            client.send(models[0])
    assert len(found) == CHECKED
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        for _ in range(2):
            rfc.ServerSession(models[1]).update(models[0])
    assert len(found) == 1


def test_as_an_error_it_changes_nothing(rng: np.random.Generator) -> None:
    state, reference = pair(rng, n=(np.float32(0), np.float32(78)))
    server, client = rfc.ServerSession(reference), rfc.ClientSession(reference)
    with pytest.raises(UserWarning, match="tensor 'n'"):
        server.update(state)
    with pytest.raises(UserWarning, match="tensor 'n'"):
        client.send(state)
    assert server.version == 0
    server.update(reference)
    client.receive(server.send("a"))
    server.receive("a", client.send(reference))


def test_a_local_model_that_is_the_sessions_own() -> None:
    torch = pytest.importorskip("torch")
    first = {"w": torch.zeros(30, 40), "n": torch.tensor(3)}
    server, client = rfc.ServerSession(first), rfc.ClientSession(first)
    server.update(first)
    own = client.receive(server.send("a"), copy=False)
    with pytest.warns(UserWarning, match="local_state: the session's own memory, as rec") as found:
        client.send(own)
    assert len(found) == 1
    assert found[0].filename == __file__
    client.send({**own, "n": torch.tensor(4)})
    client.send(client.receive(server.send("a")))


def test_what_cannot_be_written_to_may_be_sent_back() -> None:
    first = {"w": np.zeros((30, 40), np.float32)}
    server, client = rfc.ServerSession(first), rfc.ClientSession(first)
    server.update(first)
    client.send(client.receive(server.send("a"), copy=False))


def test_a_real_training(snapshots: dict[str, State]) -> None:
    for n in range(5, 9):
        rfc.encode(snapshots[f"l0_{n}"], snapshots[f"g{n - 1}"])
    encoder = rfc.Encoder(snapshots["g4"])
    for n in range(5, 9):
        encoder.encode(snapshots[f"g{n}"])
