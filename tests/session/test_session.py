"""Sessions over a channel that loses, repeats and reorders messages.

tests/session/test_channel.py tests random sequences; here each promise has its own test.
"""

from __future__ import annotations

import pytest

import resfed_codec as rfc
from federation import OWN_DOWNLINKS, RULES, Federation, Running, model
from models import assert_same
from published_rules import moved
from resfed_codec.stream.message import read_message
from snapshots import mismatched, snapshot

# ---- contents of messages


def test_each_payload_is_encoded_once() -> None:
    """Broadcast: clients at the same version get the same payload."""
    fed = Federation()
    payload = fed.server.update(moved(fed.initial, fed.rng))
    messages = [read_message(fed.server.send(name)) for name in ("a", "b", 3)]
    assert [m.payloads for m in messages] == [(payload,)] * 3
    assert len({m.tag for m in messages}) == 3
    assert fed.server.version == 1


def test_uplinks_are_acknowledged_by_the_next_send(running: Running) -> None:
    fed, client = running
    ack = read_message(fed.server.send("a")).ack
    assert ack is not None
    assert (ack.newest, ack.window) == (4, 0b111)
    client.send(client.state)  # lost
    fed.up(client)
    ack = read_message(fed.server.send("a")).ack
    assert ack is not None
    assert (ack.newest, ack.window) == (6, 0b11110)


def test_nothing_new(running: Running) -> None:
    """A message without a new model is short, and ``receive`` returns the held model."""
    fed, client = running
    message = fed.server.send("a")
    assert len(message) < 40
    assert_same(client.receive(message), client.state)


# ---- repeated, reordered, lost


def test_duplicates(running: Running) -> None:
    fed, client = running
    fed.update()
    message = fed.server.send("a")
    held = client.receive(message)
    before = snapshot(client)
    for _ in range(3):
        assert_same(client.receive(message), held)
    assert snapshot(client) == before
    payload = client.send(moved(client.state, fed.rng))
    first = fed.server.receive("a", payload)
    before = snapshot(fed.server)
    for _ in range(3):
        assert_same(fed.server.receive("a", payload), first)
    assert snapshot(fed.server) == before
    fed.rounds(client)


def test_reordered_downlinks(running: Running) -> None:
    fed, client = running
    messages = []
    for _ in range(3):
        fed.update()
        messages.append(fed.server.send("a"))
    fed.check(client, client.receive(messages[2]))
    for message in messages[:2]:
        mismatched(
            r"leads to global version \d+, while version \d+ \(digest .*\) is held here: that is",
            client.receive,
            message,
        )
    fed.rounds(client)


def test_reordered_uplinks(running: Running) -> None:
    fed, client = running
    payloads = [client.send(moved(client.state, fed.rng)) for _ in range(3)]
    fed.server.receive("a", payloads[1])
    mismatched(
        "version 5, .*older than uplink 6, which has arrived", fed.server.receive, "a", payloads[0]
    )
    fed.server.receive("a", payloads[2])
    fed.rounds(client)


@pytest.mark.parametrize("n_lost", [1, 2, 3])
def test_lost_downlinks(running: Running, n_lost: int) -> None:
    """The next message has all missed payloads, without a request."""
    fed, client = running
    for _ in range(n_lost):
        fed.update()
        fed.server.send("a")
    fed.update()
    fed.down(client)
    fed.up(client)
    fed.rounds(client)


@pytest.mark.parametrize("n_lost", [1, 2, 3])
def test_lost_uplinks(running: Running, n_lost: int) -> None:
    fed, client = running
    for _ in range(n_lost):
        fed.update()
        fed.down(client)
        client.send(moved(client.state, fed.rng))
    fed.rounds(client)


def test_lost_payloads_do_not_shorten_histories(running: Running) -> None:
    """Later payloads predict from as many versions as without the loss."""
    fed, client = running

    def depths(downlink: bytes, uplink: bytes) -> list[tuple[int, int]]:
        payloads = (read_message(downlink).payloads[-1], uplink)
        links = [rfc.inspect(payload).link for payload in payloads]
        return [(link.n_own, link.n_other) for link in links if link]

    fed.update()
    message = fed.server.send("a")
    client.receive(message)
    expected = depths(message, client.send(client.state))
    for _ in range(2):
        fed.update()
        fed.server.send("a")
    message = fed.server.send("a")
    client.receive(message)
    for _ in range(3):
        assert depths(message, client.send(client.state)) == expected


def test_a_client_that_only_listens(running: Running) -> None:
    """The server never learns what it holds, but the client needs no request."""
    fed, client = running
    for _ in range(12):
        fed.update()
        fed.down(client)
    fed.rounds(client)


def test_uplinks_from_older_global_models(running: Running) -> None:
    """A slow client trains from a model that is up to ``history`` - 1 versions old."""
    fed, client = running
    for n_updates in range(4):
        local = moved(client.state, fed.rng)
        payload = client.send(local)
        fed.update(n_updates)
        fed.check_local(fed.server.receive("a", payload), local)
        fed.down(client)


@pytest.mark.parametrize("rules", [r for n, r in RULES.items() if n not in OWN_DOWNLINKS], ids=str)
def test_history_bound_passed(rules: tuple[str, str]) -> None:
    """The server lacks the global model of an uplink; the client sends the model as a keyframe."""
    fed = Federation(rules)
    client = fed.new_client()
    fed.rounds(client, 4)
    fed.update(8)
    client.send(client.state)
    fed.up(client, answers=1)
    fed.update()
    fed.down(client)
    fed.rounds(client)


# ---- late and new clients


def test_a_late_client_gets_what_is_smaller() -> None:
    """A short chain of payloads, or else a keyframe."""
    fed = Federation()
    kinds = []
    for number in range(1, 40):
        fed.update()
        message = read_message(fed.server.send(f"client {number}"))
        chain = [rfc.inspect(p).link.version for p in message.payloads]  # type: ignore[union-attr]
        keyframe_bytes = len(rfc.encode_keyframe(fed.server.state))
        if chain:
            assert chain == list(range(1, number + 1))
            assert sum(map(len, message.payloads)) <= keyframe_bytes
        else:
            assert len(message.keyframes[-1].data) == keyframe_bytes
        kinds.append(bool(chain))
        newcomer = fed.new_client()
        fed.check(newcomer, newcomer.receive(fed.server.send(f"client {number}")))
    n_chains = kinds.index(False)
    assert n_chains > 3
    assert not any(kinds[n_chains:])


@pytest.mark.parametrize("client_id", [None, "a"])
@pytest.mark.parametrize("n_rounds", [0, 1, 4])
def test_client_with_another_initial_model(
    fed: Federation, n_rounds: int, client_id: str | None
) -> None:
    """The first message reveals it, and the client gets a keyframe."""
    fed.rounds(fed.new_client(), n_rounds, "b")
    client = fed.new_client(model(fed.rng), client_id=client_id)
    fed.down(client, answers=1)
    fed.up(client)
    fed.rounds(client)


def test_late_client_that_misses_rounds(running: Running) -> None:
    """It gets the chain since its version instead of a keyframe, if the chain is short."""
    fed, client = running
    other = fed.new_client()
    for _ in range(3):
        fed.update()
        fed.down(other, "b")
        fed.up(other, "b")
    message = read_message(fed.server.send("a"))
    assert not message.keyframes
    assert len(message.payloads) == (3 if fed.broadcast else 1)
    fed.down(client)
    fed.rounds(client)


@pytest.mark.parametrize("n_updates", [0, 1, 3])
def test_fresh_clients_start_with_a_keyframe(fed: Federation, n_updates: int) -> None:
    fed.update(n_updates)
    client = fed.new_client(model(fed.rng))
    for _ in range(2):  # again, until the server hears from it
        message = fed.server.send("a", fresh=True)
        assert read_message(message).keyframes
        fed.check(client, client.receive(message))
    fed.up(client)
    fed.update()
    message = fed.server.send("a", fresh=True)
    assert not read_message(message).keyframes
    fed.check(client, client.receive(message))
    fed.rounds(client)


def test_acknowledgement_without_an_uplink(fed: Federation) -> None:
    """The server does not send what the client holds; an acknowledgement is always harmless."""
    client = fed.new_client()
    fed.update(2)
    fed.down(client)
    fed.server.acknowledged("a", client.acknowledge())
    nothing = read_message(fed.server.send("a"))
    assert not nothing.payloads
    assert not nothing.keyframes
    fed.update()
    assert len(read_message(fed.server.send("a")).payloads) == 1
    fed.server.acknowledged("a", client.acknowledge())
    fed.down(client)
    fed.rounds(client)
    other = fed.new_client(client_id="b")
    with pytest.raises(rfc.StateMismatchError, match="request of another client"):
        fed.server.acknowledged("a", other.acknowledge())
