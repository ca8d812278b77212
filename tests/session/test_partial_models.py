"""Models that lack tensors, as the integrations send them: nothing is lost, and nothing leaks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc

Model = dict[str, np.ndarray]

PREDICTORS: dict[str, Any] = {
    "global": None,
    "previous": "previous",
    "res1": "res1",
    "res2": "res2",
    "adaptive": "adaptive",
    "own": rfc.LinearPredictor(own=(0.5,), other=(0.5,), tensors={"b.*": ((1,), ())}),
}


def model(seed: int) -> Model:
    rng = np.random.default_rng(seed)
    return {
        "a.weight": rng.standard_normal((40, 50)).astype(np.float32),
        "b.weight": rng.standard_normal((30, 40)).astype(np.float32),
        "b.bias": rng.standard_normal(30).astype(np.float32),
        "bn.running_mean": rng.standard_normal(30).astype(np.float32),
        "steps": np.array(seed),
    }


def moved(base: Model, seed: int, by: float = 0.1) -> Model:
    step = model(seed)
    return {n: (a + by * step[n]).astype(a.dtype) for n, a in base.items()}


def without(state: Model, *names: str) -> Model:
    return {n: a for n, a in state.items() if n not in names}


def pair(up: Any = None, down: Any = None, **options: Any) -> tuple[Any, Any]:
    uplink = rfc.CodecConfig(predictor=up, **options)
    configs = uplink, rfc.CodecConfig(predictor=down)
    server = rfc.ServerSession(model(0), *configs)
    return server, rfc.ClientSession(model(0), *configs)


ABSENT = ("b.weight", "bn.running_mean", "steps")


@pytest.mark.parametrize("rule", PREDICTORS.values(), ids=PREDICTORS)
def test_absent_tensors_are_the_global_models(rule: Any) -> None:
    server, client = pair(rule)
    state = model(0)
    for number in range(1, 6):
        server.update(state)
        received = client.receive(server.send("a"))
        local = moved(received, number)
        if number % 2:
            got = server.receive("a", client._send_part(without(local, *ABSENT)))
            for name in ABSENT[:2]:
                np.testing.assert_array_equal(got[name], received[name])
        else:
            got = server.receive("a", client.send(local))
        assert got.keys() == state.keys()
        state = got


def feedback_of(client: Any) -> Model:
    feedback = client._state.feedback
    return {
        spec.name: np.array(f)
        for spec, f in zip(client._layout.specs, feedback, strict=True)
        if f is not None
    }


@pytest.mark.parametrize("rule", [None, "adaptive"])
@pytest.mark.parametrize("lost", [False, True])
def test_feedback_of_absent_tensors_waits(rule: Any, lost: bool) -> None:
    """What is left out of the others, and what gets lost of them, is kept as ever."""
    server, client = pair(rule, error_feedback=True)
    server.update(model(0))
    received = client.receive(server.send("a"))
    server.receive("a", client.send(moved(received, 1)))
    server.update(moved(received, 2))
    received = client.receive(server.send("a"))
    before = feedback_of(client)
    assert all(np.any(f) for f in before.values())
    part = without(moved(received, 3, by=1e-3), *ABSENT)  # less than the feedback of the others
    uplink = client._send_part(part)
    if lost:
        server.receive("a", client.send(moved(received, 4)))  # acknowledges only itself
        sent = feedback_of(client)
        server.update(moved(received, 5))
        client.receive(server.send("a"))
        after = feedback_of(client)
        np.testing.assert_array_equal(after["b.weight"], sent["b.weight"])
        assert not np.array_equal(after["b.bias"], sent["b.bias"]), "the lost update is back"
        return
    after = feedback_of(client)
    np.testing.assert_array_equal(after["b.weight"], before["b.weight"])
    got = server.receive("a", uplink)
    for name in ("a.weight", "b.bias"):
        total = part[name] + before[name] - got[name]
        np.testing.assert_allclose(after[name], total, atol=1e-6)


def test_a_sparsity_counts_what_is_there() -> None:
    server, client = pair(sparsity=0.9)
    server.update(model(0))
    received = client.receive(server.send("a"))
    uplink = client._send_part(without(moved(received, 1), "a.weight", "bn.running_mean"))
    got = server.receive("a", uplink)
    assert np.count_nonzero(got["b.weight"] != received["b.weight"]) == 120
    with pytest.raises(ValueError, match=r"has 'c'"):
        client._send_part({**without(received, "steps"), "c": np.ones(3)})
    with pytest.raises(ValueError, match=r"\[30, 40\]"):
        client._send_part({"b.weight": np.ones((3, 3), np.float32)})
    # Only lossless tensors, and only dense ones.
    assert len(client._send_part({"steps": np.array(5)})) < 100
    assert len(client._send_part({"bn.running_mean": received["bn.running_mean"]})) < 100


@pytest.mark.parametrize("rule", [None, "adaptive", "res1"])
def test_a_global_model_that_lacks_tensors(rule: Any) -> None:
    server, client = pair(down=rule)
    server.update(model(0))
    for number in range(1, 6):
        received = client.receive(server.send("a"))
        server.receive("a", client.send(moved(received, 10 + number)))
        server.update(moved(received, 20 + number))
        received = client.receive(server.send("a"))
        feedback = server._state.feedback
        kept = None if feedback is None else np.array(feedback[2])
        server._update_part(without(moved(received, number), *ABSENT))
        after = client.receive(server.send("a"))
        assert not np.array_equal(after["a.weight"], received["a.weight"])
        if rule == "res1":
            continue  # what it predicts from the client's models is sent
        for name in ABSENT:
            np.testing.assert_array_equal(after[name], received[name])
        np.testing.assert_array_equal(server._state.feedback[2], kept)
        assert np.any(kept)
