"""Sessions: names of clients, multicast, aggregation and memory."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc
from models import State, assert_same
from published_rules import moved
from session_pairs import RULES, configs, pair, run
from snapshots import mismatched, refused, snapshot

# ---- names


IDS = [
    "a",
    "",
    "ä\ud800",
    0,
    -1,
    7,
    2**64 + 1,
    np.int64(-5),
    np.uint64(2**63 + 3),
    np.uint8(200),
    np.str_("n"),
]


def test_names_of_all_kinds() -> None:
    """Names of each type are different clients, also in saved state."""
    server, _, rng = pair()
    clients = [rfc.ClientSession(server.state, *configs(RULES[0]), client_id=i) for i in IDS]
    for _ in range(2):
        for client, name in zip(clients, IDS, strict=True):
            run(server, client, rng, 1, name)
    plain = [str(i) if isinstance(i, str) else int(i) for i in IDS]
    assert server.clients == plain
    assert all(type(name) in (str, int) for name in server.clients)
    again, *_ = pair()
    again.load_state_dict(server.state_dict())
    assert again.clients == plain
    for client, name in zip(clients, plain, strict=True):
        run(again, client, rng, 1, name)


def test_same_number_of_another_type_is_the_same_client() -> None:
    server, client, rng = pair()
    for name in (5, np.int64(5), np.uint8(5)):
        run(server, client, rng, 1, name)
    assert server.clients == [5]
    run(server, rfc.ClientSession(server.state), rng, 0, "5")
    with pytest.raises(rfc.StateMismatchError, match="another client"):
        client.receive(server.send("5"))


@pytest.mark.parametrize("name", [None, 1.0, True, np.True_, b"a", ("a",), np.float32(3)])
def test_invalid_names(name: Any) -> None:
    server, client, _ = pair()
    payload = client.send(client.state)
    aggregator = server.aggregator()
    message = "client_id=.*: must be a str or an integer"
    for call, *arguments in (
        (server.send,),
        (server.receive, payload),
        (server.receive_into, payload, aggregator),
        (server.answer, b""),
        (server.forget,),
    ):
        refused(TypeError, message, call, name, *arguments)
    if name is not None:
        with pytest.raises(TypeError, match=message):
            rfc.ClientSession(client.state, client_id=name)


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_messages_for_another_client(rules: tuple[str, str]) -> None:
    server, client, rng = pair(rules)
    other = rfc.ClientSession(server.state, *configs(rules))
    run(server, client, rng)
    run(server, other, rng, 1, "b") if server._broadcast else server.send("b")
    server.update(moved(server.state, rng))
    error = mismatched("payload: a message for another client", client.receive, server.send("b"))
    assert error.request == b""
    payload = client.send(client.state)
    error = mismatched("from another client or run|are held here", server.receive, "b", payload)
    with pytest.raises(rfc.StateMismatchError, match="a request of another client"):
        client.answer(error.request)
    server.receive("a", payload)
    run(server, client, rng)


def test_another_run() -> None:
    server, client, rng = pair(run="x")
    other, *_ = pair(run="y")
    run(server, client, rng)
    other.update(other.state)
    mismatched("payload: of another run: 'y' there, 'x' here", client.receive, other.send("a"))
    mismatched(
        "payload: version 4, building on .* are held here|but from another client or run",
        other.receive,
        "a",
        client.send(client.state),
    )


def test_forget() -> None:
    server, client, rng = pair()
    run(server, client, rng)
    server.forget("a")
    server.forget("never seen")
    assert server.clients == []
    server.update(moved(server.state, rng))
    server.receive("a", client.send(client.state))
    run(server, client, rng)


# ---- multicast


@pytest.mark.parametrize("rules", [RULES[0], RULES[1], RULES[3]], ids=str)
def test_multicast(rules: tuple[str, str]) -> None:
    """The payload of ``update`` suits all clients; ``send`` acknowledges uplinks."""
    server, _, rng = pair(rules)
    clients = {n: rfc.ClientSession(server.state, *configs(rules), client_id=n) for n in ("a", "b")}
    for t in range(6):
        payload = server.update(moved(server.state, rng))
        for name, client in clients.items():
            assert_same(client.receive(payload), server.state)
            assert_same(client.receive(payload), server.state)
            server.receive(name, client.send(moved(client.state, rng)))
            if t % 3 == 2:
                assert_same(client.receive(server.send(name)), server.state)


def test_multicast_to_a_client_without_a_name() -> None:
    """It learns its name from ``send``, or from the refusal of its second uplink."""
    server, client, rng = pair()
    for t in range(3):
        assert_same(client.receive(server.update(moved(server.state, rng))), server.state)
        local = moved(client.state, rng)
        payload = client.send(local)
        if t == 1:
            error = mismatched("from another client or run", server.receive, "a", payload)
            payload = client.answer(error.request)
        assert_same([server.receive("a", payload)["steps"]], [local["steps"]])


def test_no_multicast_with_a_downlink_for_each_client() -> None:
    server, _, rng = pair(("global", "res1"))
    assert server.update(moved(server.state, rng)) == b""


# ---- aggregation


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_receive_into(rules: tuple[str, str]) -> None:
    """The mean of the models that ``receive`` returns, with any predictor."""
    server, _, rng = pair(rules)
    twin = copy.deepcopy(server)
    clients = [rfc.ClientSession(server.state, *configs(rules)) for _ in range(3)]
    for _ in range(3):
        new = moved(server.state, rng)
        server.update(new)
        twin.update(new)
        aggregator, expected = server.aggregator(), rfc.Aggregator(twin.state)
        for i, client in enumerate(clients):
            message = server.send(i)
            assert twin.send(i) == message
            client.receive(message)
            payload = client.send(moved(client.state, rng))
            assert server.receive_into(i, payload, aggregator, 1 + i) is True
            assert server.receive_into(i, payload, aggregator, 1 + i) is False
            expected.add_state(twin.receive(i, payload), 1 + i)
        assert (aggregator.count, aggregator.total_weight) == (3, 6)
        assert_same(aggregator.result(), expected.result())
        assert snapshot(server) == snapshot(twin)


def test_receive_into_refuses() -> None:
    server, client, rng = pair()
    run(server, client, rng)
    aggregator = server.aggregator()
    payload = client.send(moved(client.state, rng))
    for error, match, arguments in (
        (TypeError, "aggregator: must be one, not dict", ("a", payload, {})),
        (ValueError, "weight=-1.0: must be positive", ("a", payload, aggregator, -1)),
        (TypeError, "weight='1': must be a number", ("a", payload, aggregator, "1")),
        (TypeError, "payload: must be bytes-like", ("a", 5, aggregator)),
        (rfc.PayloadError, "checksum", ("a", payload[:-1] + b"x", aggregator)),
        (ValueError, "aggregator lacks", ("a", payload, rfc.Aggregator({"x": np.zeros(3)}))),
    ):
        refused(error, match, server.receive_into, *arguments)
    assert aggregator.count == 0
    server.update(moved(server.state, rng))
    newer = server.aggregator()
    assert server.receive_into("a", payload, newer)
    assert server.receive_into("a", payload, aggregator) is False
    assert (newer.count, aggregator.count) == (1, 0)
    for _ in range(5):
        server.update(moved(server.state, rng))
    assert server.receive_into("a", payload, newer) is False, "what it builds on is gone"
    assert newer.count == 1


# ---- memory


def size(state: State) -> int:
    return sum(value.nbytes for value in state.values())


def test_memory() -> None:
    """Default predictors keep no models of clients; rules that use their history do."""
    for rules, n_models in ((RULES[0], 0), (RULES[3], 2), (("res2", "previous"), 3)):
        server, _, rng = pair(rules)
        model = size(server.state)
        clients = [rfc.ClientSession(server.state, *configs(rules)) for _ in range(5)]
        for _ in range(6):
            server.update(moved(server.state, rng))
            for i, client in enumerate(clients):
                client.receive(server.send(i))
                server.receive(i, client.send(moved(client.state, rng)))
        again = rfc.ServerSession(server.state, *configs(rules))
        again = pair(rules)[0]
        again.load_state_dict(server.state_dict())
        for end in (server, again):
            memory = end.memory()
            assert set(memory) == {"global", "clients", "payloads", "feedback"}
            if n_models == 0:
                assert memory["clients"] == 0
                assert memory["global"] == 4 * model
            else:
                assert n_models * model * 5 <= memory["clients"] <= (n_models + 2) * model * 5
                assert memory["global"] <= (4 + 2 + 1) * model
            assert 0 < memory["payloads"] <= 2 * model
            assert memory["feedback"] == 0


def test_memory_of_new_clients_is_shared() -> None:
    server, _, rng = pair(RULES[3])
    server.update(moved(server.state, rng))
    for i in range(20):
        server.send(i)
    assert server.memory()["clients"] == 0
    again, *_ = pair(RULES[3])
    again.load_state_dict(server.state_dict())
    assert again.memory()["clients"] <= size(server.state)


def test_memory_of_feedback() -> None:
    server, *_ = pair(feedback=True)
    n_lossy = sum(v.size for n, v in server.state.items() if n not in ("steps", "seen"))
    assert server.memory()["feedback"] == 4 * n_lossy


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_silent_clients_take_no_tensors(rules: tuple[str, str]) -> None:
    """One tensor has the numbers of all clients; only active ones have versions and messages."""
    server, client, rng = pair(rules)
    server.send("b")
    n_tensors = len(server.state_dict())
    for name in range(1000):
        server.send(name)
    saved = server.state_dict()
    size = sum(np.asarray(value).nbytes for value in saved.values())
    if server._broadcast:
        assert len(saved) == n_tensors
        assert size < 1000 * 150
    again, *_ = pair(rules)
    again.load_state_dict(saved)
    assert snapshot(again) == snapshot(server)
    run(again, client, rng, 2, 5)
    run(again, rfc.ClientSession(client.state, *configs(rules)), rng, 0, 7)
