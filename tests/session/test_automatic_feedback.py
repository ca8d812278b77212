"""Downlinks have error feedback until the server turns out to keep an exact model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc
from models import State

DTYPES = ("float32", "float16", "float64")
ROUNDS = 12


def initial(dtype: str = "float32") -> State:
    rng = np.random.default_rng(1)
    return {
        "w": rng.standard_normal((40, 50)).astype(dtype),
        "b": rng.standard_normal(40).astype(dtype),
        "n": np.array(0),
    }


def step(number: int, dtype: str = "float32", drift: float = 1.0) -> State:
    """What a round of training changes: with drift, much the same in every round."""
    shared, own = np.random.default_rng(2), np.random.default_rng([3, number])
    model = initial(dtype)
    return {
        name: (
            0.1 * (drift * shared.standard_normal(v.shape) + own.standard_normal(v.shape))
        ).astype(dtype)
        for name, v in model.items()
        if name != "n"
    } | {"n": np.array(1)}


def added(model: State, change: State) -> State:
    return {name: value + change[name] for name, value in model.items()}


def globals_of(
    server: rfc.ServerSession,
    *,
    exact: bool,
    start: int = 1,
    dtype: str = "float32",
    drift: float = 1.0,
) -> Iterator[State]:
    """The global models that a server of either kind makes; ``start``: the next round."""
    own = initial(dtype)
    for number in range(1, ROUNDS + 1):
        change = step(number, dtype, drift)
        own = added(own, change)
        if number >= start:
            yield own if exact else added(server.state, change)


def new_server(feedback: bool | None = None, dtype: str = "float32", **options: Any) -> Any:
    downlink = rfc.CodecConfig(sparsity=0.9, error_feedback=feedback, **options)
    return rfc.ServerSession(initial(dtype), downlink=downlink)


def played(server: rfc.ServerSession, **kind: Any) -> tuple[list[bytes], list[bool]]:
    payloads, feedback = [], []
    for model in globals_of(server, **kind):
        payloads.append(server.update(model))
        feedback.append(server.error_feedback)
    return payloads, feedback


@pytest.mark.parametrize("predictor", ["previous", "adaptive"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mean_keeps_feedback(dtype: str, predictor: str) -> None:
    server = new_server(dtype=dtype, predictor=predictor)
    payloads, feedback = played(server, exact=False, dtype=dtype)
    assert all(feedback)
    always = new_server(feedback=True, dtype=dtype, predictor=predictor)
    assert payloads == played(always, exact=False, dtype=dtype)[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_exact_model_ends_it(dtype: str, caplog: pytest.LogCaptureFixture) -> None:
    server = new_server(dtype=dtype)
    with caplog.at_level(logging.INFO, "resfed_codec"):
        _, feedback = played(server, exact=True, dtype=dtype)
    assert feedback == [True] * 4 + [False] * (ROUNDS - 4)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    text = record.getMessage()
    assert "error feedback is off from global model 5 on: the server keeps an exact model" in text
    assert server.memory()["feedback"] == 0
    # From then on it is a session that never had feedback: the next residual holds all of it.
    after = server.state
    for model in globals_of(server, exact=True, dtype=dtype):
        last = model
    for _ in range(40):
        server.update(last)
    left = np.abs(np.float64(server.state["w"]) - np.float64(last["w"])).max()
    assert left < np.abs(np.float64(after["w"]) - np.float64(last["w"])).max() / 4


@pytest.mark.parametrize("exact", [False, True])
def test_a_resumed_run_switches_alike(exact: bool) -> None:
    payloads, feedback = played(new_server(), exact=exact)
    for saved_after in range(ROUNDS):
        server = new_server()
        for number, model in enumerate(globals_of(server, exact=exact)):
            if number == saved_after:
                break
            server.update(model)
        resumed = new_server()
        resumed.load_state_dict(server.state_dict())
        assert resumed.error_feedback == server.error_feedback
        again = played(resumed, exact=exact, start=saved_after + 1)
        assert again == (payloads[saved_after:], feedback[saved_after:])


def test_any_number_of_threads() -> None:
    before = rfc.get_num_threads()
    found = []
    try:
        for n in (1, 4):
            rfc.set_num_threads(n)
            server = new_server()
            played(server, exact=False)
            found.append(server._state.watch.recent)
    finally:
        rfc.set_num_threads(before)
    assert found[0] == found[1]
    assert len(found[0]) == 3


def test_the_watch_ends() -> None:
    server = new_server()
    one = sum(v.nbytes for v in initial().values())
    floats = sum(v.nbytes for v in initial().values() if v.dtype.kind == "f")
    assert server.memory()["feedback"] == floats
    for number in range(30):
        server.update(added(server.state, step(number)))
        watched = server._state.watch is not None
        assert watched == (number < 20)
        assert server.memory()["feedback"] == floats + watched * one
    assert server.error_feedback


def test_a_failed_update_changes_nothing() -> None:
    server = new_server()
    played(server, exact=True)
    server = new_server()
    models = globals_of(server, exact=True)
    for _ in range(4):
        server.update(next(models))
    before = server.state_dict()
    model = next(models)
    with pytest.raises(ValueError, match="not finite"):
        server.update({**model, "w": np.full_like(model["w"], np.nan)})
    assert server.error_feedback
    after = server.state_dict()
    assert {k: v.tobytes() for k, v in before.items()} == {k: v.tobytes() for k, v in after.items()}
    server.update(model)
    assert not server.error_feedback


@pytest.mark.parametrize(("feedback", "exact"), [(True, True), (False, False)])
def test_a_setting_that_costs_accuracy_is_said_once(feedback: bool, exact: bool) -> None:
    server = new_server(feedback)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, states = played(server, exact=exact, drift=0.0)
    assert states == [feedback] * ROUNDS
    (warning,) = caught
    assert warning.category is UserWarning
    assert f"downlink: error_feedback={feedback}, but the server" in str(warning.message)
    assert warning.filename == __file__


@pytest.mark.parametrize(("feedback", "exact"), [(True, False), (False, True), (None, True)])
def test_a_right_setting_is_left_alone(feedback: bool | None, exact: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        played(new_server(feedback), exact=exact)


def test_what_clients_predict_from_has_none() -> None:
    server = new_server(predictor="res1")
    assert not server.error_feedback
    other = new_server(predictor="res1")
    other.load_state_dict(server.state_dict())
    assert not other.error_feedback


def test_other_settings_refuse_the_saved_state() -> None:
    saved = {setting: new_server(setting).state_dict() for setting in (None, True, False)}
    for own in saved:
        for other, state in saved.items():
            if own != other:
                match = f"saved with error_feedback={other}; this object has {own}"
                with pytest.raises(ValueError, match=match):
                    new_server(own).load_state_dict(state)
