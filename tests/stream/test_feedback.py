"""Error feedback compared with a NumPy model, and over a channel that loses messages.

e' = r + e - sent. After the server reports a lost uplink, the next one carries its contribution.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc
from models import State, assert_same
from published_rules import RULES, Feedback, History, linear, moved, predict, random_model, residual

SPARSITY = 0.8

STEPS = rfc.LinearPredictor(other=(1.5, -0.5))
UP: dict[str, tuple[Any, Any]] = {
    "global": ("global", RULES["global"]),
    "steps": (STEPS, linear((), (1.5, -0.5))),
}


def config(predictor: Any, feedback: bool = True, **options: Any) -> rfc.CodecConfig:
    options.setdefault("sparsity", SPARSITY)
    return rfc.CodecConfig(predictor=predictor, error_feedback=feedback, **options)


def test_stream(rng: np.random.Generator) -> None:
    initial = random_model(rng)
    enc = rfc.Encoder(initial, config("previous"))
    dec = rfc.Decoder(initial)
    held, feedback, state = initial, Feedback(initial), initial
    for t in range(8):
        state = moved(state, rng)
        held, _ = feedback.recover(state, held, sparsity=SPARSITY)
        assert_same(dec.decode(enc.encode(state)), held, f"round {t}")


@pytest.mark.parametrize("exclude", [(), ("w32", "bias")], ids=str)
@pytest.mark.parametrize("up", UP)
def test_both_directions(up: str, exclude: tuple[str, ...], rng: np.random.Generator) -> None:
    initial = random_model(rng)
    uplink, downlink = (config(name, exclude=exclude) for name in (UP[up][0], "previous"))
    server = rfc.ServerSession(initial, uplink, downlink)
    client = rfc.ClientSession(initial, uplink, downlink)
    g, l = History("g", initial), History("l", initial)  # noqa: E741
    lossy = {n: v for n, v in initial.items() if n not in exclude}
    up_error, down_error = Feedback(lossy), Feedback(lossy)
    new_global = moved(initial, rng)
    for t in range(5):
        expected, _ = down_error.recover(new_global, g.models[-1], sparsity=SPARSITY)
        g.models.append(expected)
        server.update(new_global)
        assert_same(client.receive(server.send("a")), expected, f"round {t}, down")
        local = moved(expected, rng)
        expected, _ = up_error.recover(local, predict(UP[up][1], l, g), sparsity=SPARSITY)
        l.models.append(expected)
        received = server.receive("a", client.send(local))
        assert_same(received, expected, f"round {t}, up")
        new_global = moved(received, rng, 0.02)


@pytest.mark.parametrize("up", UP)
def test_lost_uplinks(up: str, rng: np.random.Generator) -> None:
    """Uplinks of rounds 1, 3 and 4 are lost. The client learns it in the round after the next
    uplink that arrives."""
    initial = random_model(rng)
    server = rfc.ServerSession(initial, config(UP[up][0]))
    client = rfc.ClientSession(initial, config(UP[up][0]))
    g, l = History("g", initial), History("l", initial)  # noqa: E741
    feedback = Feedback(initial)
    lost: list[State] = []
    known_lost: list[State] = []
    for t in range(8):
        server.update(moved(server.state, rng))
        g.models.append(client.receive(server.send("a")))
        for contribution in known_lost:
            feedback.add(contribution)
        known_lost = []
        local = moved(g.models[-1], rng)
        prediction = predict(UP[up][1], l, g)
        recovered, sent = feedback.recover(local, prediction, sparsity=SPARSITY)
        payload = client.send(local)
        if t in (1, 3, 4):
            lost.append(sent if up == "global" else update(recovered, g.models[-1]))
            continue
        assert_same(server.receive("a", payload), recovered, f"round {t}")
        l.models.append(recovered)
        known_lost, lost = lost, []


def update(recovered: State, start: State) -> State:
    """The contribution of a local model to the mean."""
    return {n: residual(v, start[n]) for n, v in recovered.items() if n in Feedback(start).error}


@pytest.mark.parametrize(("dtype", "offset"), [(np.float32, 0), (np.float64, 1e6)])
@pytest.mark.parametrize("up", ["global", STEPS, "adaptive"], ids=str)
def test_a_lost_update_arrives_later(
    up: Any, dtype: Any, offset: float, rng: np.random.Generator
) -> None:
    """With nearly lossless coding, the uplink after the next contains the lost update."""
    initial = {"w": (offset + rng.standard_normal((40, 50))).astype(dtype)}
    exact = config(up, sparsity=0.0, bits=16)
    server, client = (kind(initial, exact) for kind in (rfc.ServerSession, rfc.ClientSession))
    change = rng.standard_normal((40, 50)).astype(dtype)

    client.receive(server.send("a"))
    client.send({"w": initial["w"] + change})  # lost
    contributions = []
    for _ in range(3):
        held = client.receive(server.send("a"))
        local = server.receive("a", client.send(held))
        contributions.append(local["w"] - held["w"])
    errors = [float(np.abs(c - wanted).max()) for c, wanted in
              zip(contributions, (0 * change, change, 0 * change), strict=True)]  # fmt: skip
    assert max(errors) < 1e-3, errors


def test_arrived_uplinks_are_not_sent_again(rng: np.random.Generator) -> None:
    """Acknowledged late, in a window, and twice."""
    initial = {"w": rng.standard_normal((20, 30)).astype(np.float32)}
    up = config("global", sparsity=0.5)
    server, client = (kind(initial, up) for kind in (rfc.ServerSession, rfc.ClientSession))
    feedback = Feedback(initial)
    for n_unacknowledged in (1, 3, 2):
        for _ in range(n_unacknowledged):
            local = moved(client.state, rng)
            expected, _ = feedback.recover(local, client.state, sparsity=0.5)
            assert_same(server.receive("a", client.send(local)), expected)
        server.update(moved(server.state, rng))
        message = server.send("a")
        client.receive(message)
        client.receive(message)


def test_feedback_sends_everything_in_the_end(rng: np.random.Generator) -> None:
    """The same target for many rounds at sparsity 0.9: feedback sends everything in the end."""
    initial = {"w": np.zeros((50, 40), np.float32)}
    target = {"w": rng.standard_normal((50, 40)).astype(np.float32)}
    totals = {}
    for feedback in (False, True):
        up = config("global", feedback, sparsity=0.9)
        client = rfc.ClientSession(initial, up, client_id="a")
        server = rfc.ServerSession(initial, up)
        totals[feedback] = sum(
            server.receive("a", client.send(target))["w"].astype(np.float64) for _ in range(30)
        )
    errors = {k: np.linalg.norm(total / 30 - target["w"]) for k, total in totals.items()}
    assert errors[True] < 0.3 * errors[False], errors


def test_refused_states_do_not_change_feedback(rng: np.random.Generator) -> None:
    initial = random_model(rng)
    enc = rfc.Encoder(initial, config("previous"))
    twin = rfc.Encoder(initial, config("previous"))
    bad = moved(initial, rng)
    bad["w16"][2, 3] = np.nan
    for _ in range(3):
        state = moved(initial, rng)
        with pytest.raises(ValueError, match="tensor 'w16' at flat index 63 is not finite"):
            enc.encode(bad)
        assert enc.encode(state) == twin.encode(state)


@pytest.mark.parametrize("predictor", [None, "global", "previous", "res2", "adaptive"])
def test_the_default(predictor: str | None, rng: np.random.Generator) -> None:
    """Off in streams; on for uplinks that predict only from global models, otherwise off."""
    initial = random_model(rng)
    on = predictor in (None, "global")
    payloads = []
    for feedback in (None, on, not on):
        if predictor in ("previous", "res2") and feedback:
            payloads.append([])  # refused
            continue
        uplink = rfc.CodecConfig(sparsity=0.9, predictor=predictor, error_feedback=feedback)
        client = rfc.ClientSession(initial, uplink)
        payloads.append([client.send(moved(initial, np.random.default_rng(t))) for t in range(3)])
    assert payloads[0] == payloads[1]
    assert payloads[0] != payloads[2]
    update = moved(initial, rng)
    streams = [rfc.Encoder(initial, error_feedback=feedback) for feedback in (None, False)]
    first, second = ([stream.encode(update) for _ in range(3)] for stream in streams)
    assert first == second


OWN_TERMS = [
    "previous",
    "res0",
    "res1",
    "res2",
    rfc.LinearPredictor(own=(0.5,), other=(0.5,)),
    rfc.LinearPredictor(other=(1,), tensors={"w": ((1,), ())}),
]


@pytest.mark.parametrize("predictor", OWN_TERMS, ids=str)
def test_not_allowed_with_own_terms(predictor: Any) -> None:
    """Own terms already carry forward what was left out; feedback would count it twice."""
    initial = {"w": np.zeros((4, 5), np.float32)}
    wrong = config(predictor)
    for session in (rfc.ServerSession, rfc.ClientSession):
        with pytest.raises(ValueError, match=r"uplink: error_feedback=True .* count twice"):
            session(initial, wrong)
        session(initial, rfc.CodecConfig(predictor=predictor))
        session(initial, config(predictor, feedback=False))
    if predictor in ("previous", "res0"):
        rfc.ServerSession(initial, None, wrong)
    rfc.ClientSession(initial, config("adaptive"))  # its fit sees the feedback


def test_an_unstable_rule_warns() -> None:
    initial = {"w": np.zeros((4, 5), np.float32)}
    down = rfc.CodecConfig(predictor="res2")
    with pytest.warns(UserWarning, match=r'downlink: predictor "res2" at sparsity=0.99') as caught:
        rfc.ServerSession(initial, None, down)
    assert caught[0].filename == __file__
    rfc.ServerSession(initial, None, rfc.CodecConfig(predictor="res2", sparsity=0.5))
    rfc.ClientSession(initial, None, down)  # its sparsity is not known there
