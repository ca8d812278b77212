"""Sessions whose ends are killed and then restored from older state or started without state."""

from __future__ import annotations

import pytest

from federation import Running
from published_rules import moved
from snapshots import mismatched


def test_client_restarts_without_state(running: Running) -> None:
    fed, _ = running
    client = fed.new_client()
    fed.update()
    fed.down(client, answers=1)
    fed.up(client)
    fed.rounds(client)


def test_client_restarts_and_sends_first(running: Running) -> None:
    """It requests no global model; the server refuses its uplink, and the pair recovers."""
    fed, _ = running
    client = fed.new_client(client_id="a")
    fed.up(client, answers=1)
    fed.update()
    fed.down(client)
    fed.rounds(client)


@pytest.mark.parametrize("n_rounds", [1, 3])
def test_client_restarts_from_old_state(running: Running, n_rounds: int) -> None:
    fed, client = running
    saved = client.state_dict()
    fed.rounds(client, n_rounds)
    client = fed.restored(client, saved)
    fed.update()
    fed.down(client, answers=1 if fed.broadcast else None)
    fed.up(client, answers=None if fed.keeps_local_models else 0)
    fed.rounds(client)


@pytest.mark.parametrize("n_rounds", [1, 3])
def test_server_restarts_from_old_state(running: Running, n_rounds: int) -> None:
    """Clients are ahead of the server; one exchange brings them back."""
    fed, client = running
    saved = fed.server.state_dict()
    fed.rounds(client, n_rounds)
    fed.server = fed.restored(fed.server, saved)
    fed.update()
    fed.down(client, answers=1)
    fed.up(client, answers=None if fed.keeps_local_models else 0)
    fed.up(client)
    fed.rounds(client)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("arrived", [True, False])
def test_client_saved_before_send(running: Running, same: bool, arrived: bool) -> None:
    """It crashes after sending and before saving; then it sends the same, or trains again."""
    fed, client = running
    fed.update()
    fed.down(client)
    local = moved(client.state, fed.rng)
    saved = client.state_dict()
    payload = client.send(local)
    if arrived:
        fed.server.receive("a", payload)
    client = fed.restored(client, saved)
    again = client.send(local if same else moved(client.state, fed.rng))
    assert (again == payload) == same
    fed.server.receive("a", again)
    fed.rounds(client)


def test_a_number_used_twice(running: Running) -> None:
    """A restored client reuses a number; its earlier meaning is then obsolete."""
    fed, client = running
    saved = client.state_dict()
    payloads = []
    for _ in range(3):
        client = fed.restored(client, saved)
        payloads.append(client.send(moved(client.state, fed.rng)))
        fed.server.receive("a", payloads[-1])
    for payload in payloads[:2]:
        mismatched(
            "version 5, .*older than uplink 5, which has arrived", fed.server.receive, "a", payload
        )
    fed.server.receive("a", payloads[2])
    fed.rounds(client)


def test_server_saved_before_send(running: Running) -> None:
    fed, client = running
    fed.update()
    saved = fed.server.state_dict()
    message = fed.server.send("a")
    client.receive(message)
    fed.server = fed.restored(fed.server, saved)
    assert fed.server.send("a") == message
    fed.down(client)
    fed.rounds(client)


def test_client_applied_a_message_but_did_not_answer(running: Running) -> None:
    """Its state was saved before or after applying it."""
    fed, client = running
    for late in (False, True):
        fed.update()
        saved = client.state_dict()
        fed.down(client)
        client = fed.restored(client, client.state_dict() if late else saved)
        fed.update()
        fed.down(client)
    fed.rounds(client)
