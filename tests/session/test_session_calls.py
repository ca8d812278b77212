"""Sessions: arguments, ownership of memory, copies, saved state, and hand-made messages."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc
from checksums import sealed
from models import assert_same
from published_rules import moved, random_model
from resfed_codec.stream.message import read_message, write_message
from session_pairs import RULES, configs, pair, run
from snapshots import SAVERS, refused, snapshot

# ---- arguments


def test_wrong_arguments_of_sessions() -> None:
    initial = {"w": np.zeros((2, 3), np.float32)}
    for kind in (rfc.ServerSession, rfc.ClientSession):
        for arguments, error, match in (
            ({"uplink": "global"}, TypeError, "uplink: must be a CodecConfig, not str"),
            ({"downlink": 5}, TypeError, "downlink: must be a CodecConfig, not int"),
            ({"run": 5}, TypeError, "run=5: must be a str"),
            ({"history": 0}, ValueError, r"history=0: must lie in \[1, 32\]"),
            ({"history": 33}, ValueError, r"history=33: must lie in \[1, 32\]"),
            ({"history": 2.0}, TypeError, "history=2.0: must be an integer"),
            ({"history": True}, TypeError, "history=True: must be an integer"),
            ({"uplink": rfc.CodecConfig(exclude="x")}, ValueError, "no tensor is named like 'x'"),
        ):
            with pytest.raises(error, match=match):
                kind(initial, **arguments)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="initial_state: must be a mapping"):
            kind(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_wrong_arguments_of_calls(rules: tuple[str, str]) -> None:
    server, client, rng = pair(rules, feedback=True)
    run(server, client, rng)
    bad = moved(server.state, rng)
    bad["wb"][3, 1] = np.nan
    server.update(moved(server.state, rng))
    message = server.send("a")
    for call, argument in ((client.send, "local_state"), (server.update, "global_state")):
        for wrong, error, match in (
            (None, TypeError, f"{argument}: must be a mapping"),
            ({"w32": bad["w32"]}, ValueError, f"{argument} lacks 'bias', 'scale'"),
            ({**bad, "w32": "x"}, TypeError, f"{argument}: tensor 'w32'"),
        ):
            refused(error, match, call, wrong)
        if call == client.send or server._broadcast:
            refused(ValueError, "tensor 'wb' at flat index 7 is not finite", call, bad)
    payload = client.send(client.state)
    read_only = random_model(rng)
    read_only["w16"].flags.writeable = False
    for receive, data in ((client.receive, message), (partial(server.receive, "a"), payload)):
        for wrong in ("text", None, 3):
            refused(TypeError, "payload: must be bytes-like", receive, wrong)
        refused(ValueError, "out: tensor 'w16' is read-only", receive, data, out=read_only)
        for junk in (b"", b"RF", b"RFM", b"RFD", b"RFK\x01", bytes(50), b"RFM\x01" + bytes(50)):
            refused(rfc.PayloadError, "payload: ", receive, junk)
    run(server, client, rng)


def test_messages_in_the_wrong_place() -> None:
    server, client, rng = pair()
    run(server, client, rng)
    server.update(moved(server.state, rng))
    message, payload = server.send("a"), client.send(client.state)
    newer = rfc.ClientSession(server.state)
    with pytest.raises(rfc.StateMismatchError) as caught:
        newer.receive(message)
    from_client = caught.value.request
    with pytest.raises(rfc.StateMismatchError) as caught:
        server.receive("b", payload)
    from_server = caught.value.request
    keyframe = rfc.Encoder(server.state).keyframe()
    for call, data, match in (
        (client.receive, payload, "building on no version and 3"),
        (client.receive, from_client, "this is a request: give it to answer"),
        (client.receive, keyframe, "not from a server's session|for another client"),
        (client.answer, from_client, "another client|it is for the server"),
        (client.answer, message, "this is a message: give it to receive"),
        (client.answer, payload, "this is an update: give it to"),
        (partial(server.receive, "a"), message, "not from a client's session"),
        (partial(server.receive, "a"), from_client, "this is a request: give it to"),
        (partial(server.receive, "a"), keyframe, "not from a client's|another client"),
        (partial(server.answer, "b"), from_server, "it is for the client"),
        (partial(server.answer, "a"), from_server, "request of another client"),
        (partial(server.answer, "a"), message, "this is a message: give it to receive"),
    ):
        refused(rfc.CodecError, match, call, data)


# ---- memory of the caller


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_callers_own_their_copies(rules: tuple[str, str]) -> None:
    """Overwriting all inputs and outputs does not change the bytes that sessions send."""

    def spoil(state: Any) -> None:
        for value in state.values():
            value[...] = 1

    server, client, rng = pair(rules, feedback=True)
    initial = server.state
    first = copy.deepcopy(initial)
    other_server = rfc.ServerSession(first, *configs(rules, True))
    other_client = rfc.ClientSession(first, *configs(rules, True))
    spoil(first)
    out = copy.deepcopy(initial)
    for _ in range(4):
        new = moved(initial, rng)
        given = copy.deepcopy(new)
        assert server.update(new) == other_server.update(given)
        spoil(given)
        message = server.send("a")
        assert other_server.send("a") == message
        held = client.receive(message)
        assert other_client.receive(message, out=out) is out
        assert_same(out, held)
        spoil(out)
        spoil(other_client.receive(message))
        spoil(other_client.state)
        spoil(other_server.state)
        local = moved(held, rng)
        given = copy.deepcopy(local)
        payload = client.send(local)
        assert other_client.send(given) == payload
        spoil(given)
        received = server.receive("a", payload)
        assert other_server.receive("a", payload, out=out) is out
        assert_same(out, received)
        spoil(out)
        spoil(other_server.receive("a", payload))
        for end in (other_server, other_client):
            spoil(end.state_dict())
    assert snapshot(server) == snapshot(other_server)
    assert snapshot(client) == snapshot(other_client)


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_no_copy(rules: tuple[str, str]) -> None:
    server, client, rng = pair(rules)
    places = set()
    for _ in range(5):
        server.update(moved(server.state, rng))
        seen = client.receive(server.send("a"), copy=False)
        assert_same(seen, client.state)
        places.add(seen["w32"].__array_interface__["data"][0])
        for value in seen.values():
            with pytest.raises(ValueError, match="read-only"):
                value[...] = 0
        server.receive("a", client.send(moved(client.state, rng)))
    if rules == ("global", "previous"):
        assert len(places) == 1, "not updated in place"


def test_torch() -> None:
    torch = pytest.importorskip("torch")
    initial = {"w": torch.randn(20, 30), "h": torch.randn(9).bfloat16(), "n": torch.tensor(3)}
    server, client = rfc.ServerSession(initial), rfc.ClientSession(initial)
    for _ in range(3):
        server.update({n: v + 1 for n, v in server.state.items()})
        held = client.receive(server.send(0))
        for name, value in held.items():
            assert (value.dtype, value.shape) == (initial[name].dtype, initial[name].shape)
            assert torch.equal(value, server.state[name])
        local = server.receive(0, client.send({n: v - 1 for n, v in held.items()}))
        assert local["h"].dtype == torch.bfloat16
        assert local["n"] == held["n"] - 1
    for end in (server, client):
        assert all(isinstance(value, torch.Tensor) for value in end.state_dict().values())


def test_sequences() -> None:
    initial = [np.zeros((3, 4), np.float32), np.zeros(3, np.float64)]
    server, client = rfc.ServerSession(initial), rfc.ClientSession(initial)
    server.update([value + 1 for value in initial])
    held = client.receive(server.send(0))
    assert isinstance(held, list)
    assert_same(held, server.state)
    assert isinstance(server.receive(0, client.send(held)), list)


# ---- copies and saved state

WAYS: dict[str, Callable[[Any, Any, Path], Any]] = {
    "pickle": lambda end, fresh, path: pickle.loads(pickle.dumps(end)),
    "deepcopy": lambda end, fresh, path: copy.deepcopy(end),
}


def _loader(save: Callable[[Any, Path], Any]) -> Callable[[Any, Any, Path], Any]:
    def load(end: Any, fresh: Any, path: Path) -> Any:
        fresh.load_state_dict(save(end.state_dict(), path))
        return fresh

    return load


WAYS.update({name: _loader(save) for name, save in SAVERS.items()})


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("rules", RULES, ids=str)
def test_copies_continue_like_the_original(
    rules: tuple[str, str], feedback: bool, way: Callable[..., Any], tmp_path: Path
) -> None:
    """A copy sends the same bytes, here with uplinks under way and one lost."""
    server, client, rng = pair(rules, feedback)
    run(server, client, rng)
    server.update(moved(server.state, rng))
    client.receive(server.send("a"))
    client.send(moved(client.state, rng))
    other_server = way(server, pair(rules, feedback)[0], tmp_path / "server")
    other_client = way(client, pair(rules, feedback)[1], tmp_path / "client")
    before = snapshot(server), snapshot(client)
    assert (snapshot(other_server), snapshot(other_client)) == before
    for _ in range(4):
        new, step = moved(server.state, rng), moved(client.state, rng)
        messages = []
        for s, c in ((server, client), (other_server, other_client)):
            s.update(new)
            down = s.send("a")
            c.receive(down)
            up = c.send(step)
            s.receive("a", up)
            messages.append((down, up))
        assert messages[0] == messages[1]
    assert (snapshot(other_server), snapshot(other_client)) == (snapshot(server), snapshot(client))
    assert (snapshot(server), snapshot(client)) != before


def test_state_dicts_that_do_not_fit() -> None:
    server, client, rng = pair()
    run(server, client, rng)
    initial = random_model(np.random.default_rng(5))
    deep = rfc.LinearPredictor(own=(2, -1))
    # Both keep two local and one global model, but only one has a downlink for each client.
    shared = rfc.ServerSession(initial, rfc.CodecConfig(predictor=deep))
    alone = rfc.ServerSession(initial, downlink=rfc.CodecConfig(predictor="res1"))
    cases: list[tuple[Any, Any, str]] = [
        (server, client.state_dict(), "saved by a ClientSession, not by a ServerSession"),
        (client, server.state_dict(), "saved by a ServerSession, not by a ClientSession"),
        (server, rfc.Encoder(initial).state_dict(), "saved by a Encoder"),
        (server, pair(run="x")[0].state_dict(), "saved with run='x'; this object has ''"),
        (client, rfc.ClientSession(moved(initial, rng)).state_dict(), "another initial state"),
        (server, pair(("res1", "previous"))[0].state_dict(), "predictor=.* in uplink"),
        (client, pair(("global", "adaptive"))[1].state_dict(), "predictor=.* in downlink"),
        (server, pair(feedback=True)[0].state_dict(), "saved with error_feedback=True"),
        (client, pair(feedback=True)[1].state_dict(), "saved with error_feedback=True"),
        (shared, alone.state_dict(), "saved with predictor="),
        (server, {}, r"must be what ServerSession.state_dict\(\) returned"),
        (client, None, r"must be what ClientSession.state_dict\(\) returned"),
    ]
    for end, saved, match in cases:
        refused(ValueError, match, end.load_state_dict, saved)
    for end in (server, client):
        saved = end.state_dict()
        for name in saved:
            part = {k: v for k, v in saved.items() if k != name}
            refused(ValueError, "state_dict: ", end.load_state_dict, part)
    run(server, client, rng)


# ---- hand-made messages


@pytest.mark.parametrize("rules", [RULES[0], RULES[1]], ids=str)
def test_a_chain_that_fails_in_the_middle(rules: tuple[str, str]) -> None:
    """The call undoes the effect of the first payloads."""
    server, client, rng = pair(rules)
    run(server, client, rng)
    other = copy.deepcopy(server)
    for end in (server, server, server, other, other, other):
        end.update(moved(end.state, rng))
    good, foreign = (read_message(end.send("a")) for end in (server, other))
    damaged = bytearray(good.payloads[2])
    damaged[-5] ^= 1
    repaired = sealed(bytes(damaged[:-4]))
    for last, error in ((foreign.payloads[2], "it is version"), (repaired, "payload: ")):
        mixed = write_message(good._replace(payloads=(*good.payloads[:2], last)))
        refused(rfc.CodecError, error, client.receive, mixed)
    assert_same(client.receive(write_message(good)), server.state)
    run(server, client, rng)


def test_an_aggregator_of_another_layout_is_named() -> None:
    reference = {"w": np.zeros((4, 4), np.float32)}
    server, client = rfc.ServerSession(reference), rfc.ClientSession(reference)
    uplink = client.send(reference)
    for other, text in (
        ({"v": np.zeros((4, 4), np.float32)}, "aggregator lacks 'w', which reference has"),
        ({"w": np.zeros((4, 5), np.float32)}, "aggregator and reference differ: 'w' float32"),
    ):
        mean = rfc.Aggregator(other)
        with pytest.raises(ValueError, match=text):
            server.receive_into("a", uplink, mean)
        assert mean.count == 0
    assert server.clients == []
    assert server.receive_into("a", uplink, server.aggregator())
