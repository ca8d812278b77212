"""Sessions: the protocol over a channel that loses, repeats, reorders, and ends that restart.

tests/test_channel.py does all of it at random; here each promise has a test of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc
from models import State, assert_same
from published_rules import moved
from resfed_codec.message import read_message
from snapshots import refused, snapshot

RULES = {
    "default": ("global", "previous"),
    "own history": ("res1", "previous"),
    "long history": ("res2", "previous"),
    "adaptive": ("adaptive", "adaptive"),
    "own downlinks": ("global", "res2"),
    "all": ("res2", "res2"),
}
OWN_DOWNLINKS = ("own downlinks", "all")
"""Here the server keeps whatever global model each client is known to hold."""


def model(rng: np.random.Generator) -> State:
    return {
        "w": rng.standard_normal((30, 40)).astype(np.float32),
        "b": rng.standard_normal(30).astype(np.float16),
        "s": np.asarray(rng.standard_normal(), np.float64),
        "n": np.array([1, 2]),
    }


class Federation:
    """A server and clients that hold what they hold; every model is checked on arrival."""

    def __init__(
        self, rules: tuple[str, str] = RULES["default"], feedback: bool = False, **arguments: Any
    ) -> None:
        self.rng = np.random.default_rng(7)
        self.initial = model(self.rng)
        self.broadcast = rules[1] in ("previous", "adaptive")
        self.keeps_local_models = rules[0] != "global" or not self.broadcast
        self.configs = (
            rfc.CodecConfig(sparsity=0.8, predictor=rules[0], error_feedback=feedback),
            rfc.CodecConfig(
                sparsity=0.8, predictor=rules[1], error_feedback=feedback and self.broadcast
            ),
        )
        self.arguments = arguments
        self.server = self.new_server()

    def new_server(self, initial: State | None = None) -> rfc.ServerSession:
        return rfc.ServerSession(initial or self.initial, *self.configs, **self.arguments)

    def new_client(self, initial: State | None = None, **arguments: Any) -> rfc.ClientSession:
        return rfc.ClientSession(
            initial or self.initial, *self.configs, **self.arguments, **arguments
        )

    def restored(self, end: Any, saved: dict[str, Any] | None = None) -> Any:
        new = self.new_server() if isinstance(end, rfc.ServerSession) else self.new_client()
        new.load_state_dict(saved or end.state_dict())
        return new

    def update(self, n: int = 1) -> None:
        for _ in range(n):
            self.server.update(moved(self.server.state, self.rng))

    def check(self, client: rfc.ClientSession, received: State) -> None:
        """Lossless tensors tell which model it is."""
        assert_same(client.state, received)
        assert np.array_equal(received["n"], self.server.state["n"]), "not the newest global model"
        if self.broadcast:
            assert_same(received, self.server.state)

    def healed(
        self, end: Any, receive: Any, answer: Any, message: bytes, answers: int | None
    ) -> State:
        """What ``receive`` returns after so many refusals and answers; None: as many as it takes,
        but no more than two."""
        for n in range(2 if answers is None else answers):
            try:
                state: State = receive(message)
            except rfc.StateMismatchError:
                error = refused(
                    end, rfc.StateMismatchError, "payload: ", lambda m=message: receive(m)
                )
                message = answer(error.request)
            else:
                assert answers is None, f"accepted after {n} answers, not {answers}"
                return state
        return receive(message)  # type: ignore[no-any-return]

    def down(self, client: rfc.ClientSession, name: Any = "a", answers: int | None = 0) -> None:
        """Deliver the newest global model; ``answers`` refusals are expected and healed."""
        message = self.server.send(name)
        received = self.healed(
            client,
            client.receive,
            lambda request: self.server.answer(name, request),
            message,
            answers,
        )
        self.check(client, received)

    def up(self, client: rfc.ClientSession, name: Any = "a", answers: int | None = 0) -> None:
        """Deliver a local model."""
        local = moved(client.state, self.rng)
        received = self.healed(
            self.server,
            lambda payload: self.server.receive(name, payload),
            client.answer,
            client.send(local),
            answers,
        )
        self.check_local(received, local)

    def check_local(self, received: State, local: State) -> None:
        assert np.array_equal(received["n"], local["n"]), "not this local model"
        assert np.abs(received["w"] - local["w"]).max() < 3

    def rounds(self, client: rfc.ClientSession, n: int = 3, name: Any = "a") -> None:
        """Rounds in which nothing goes wrong."""
        for _ in range(n):
            self.update()
            self.down(client, name)
            self.up(client, name)


@pytest.fixture(params=RULES.values(), ids=RULES.keys())
def fed(request: pytest.FixtureRequest) -> Federation:
    return Federation(request.param)


@pytest.fixture
def running(fed: Federation) -> tuple[Federation, rfc.ClientSession]:
    """After some rounds."""
    client = fed.new_client()
    fed.rounds(client, 4)
    return fed, client


Running = tuple[Federation, rfc.ClientSession]


# ---- what a message carries


def test_each_payload_is_made_once() -> None:
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
    """A message without anything new is short, and returns what is held."""
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
        refused(
            client,
            rfc.StateMismatchError,
            r"leads to global version \d+, while version \d+ \(digest .*\) is held here: that is",
            lambda message=message: client.receive(message),
        )
    fed.rounds(client)


def test_reordered_uplinks(running: Running) -> None:
    fed, client = running
    payloads = [client.send(moved(client.state, fed.rng)) for _ in range(3)]
    fed.server.receive("a", payloads[1])
    refused(
        fed.server,
        rfc.StateMismatchError,
        "version 5, .*older than uplink 6, which has arrived",
        lambda: fed.server.receive("a", payloads[0]),
    )
    fed.server.receive("a", payloads[2])
    fed.rounds(client)


@pytest.mark.parametrize("n_lost", [1, 2, 3])
def test_lost_downlinks(running: Running, n_lost: int) -> None:
    """The next message brings all that was missed; nobody has to ask."""
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
    """What the next ones predict from reaches as far back as if nothing had been lost."""
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
    """No uplink tells what it holds; still it needs to ask for nothing."""
    fed, client = running
    for _ in range(12):
        fed.update()
        fed.down(client)
    fed.rounds(client)


def test_uplinks_from_older_global_models(running: Running) -> None:
    """A slow client: trained from a model that is up to ``history`` - 1 versions old."""
    fed, client = running
    for n_updates in range(4):
        local = moved(client.state, fed.rng)
        payload = client.send(local)
        fed.update(n_updates)
        fed.check_local(fed.server.receive("a", payload), local)
        fed.down(client)


@pytest.mark.parametrize("rules", [r for n, r in RULES.items() if n not in OWN_DOWNLINKS], ids=str)
def test_history_bound_passed(rules: tuple[str, str]) -> None:
    """The global model that an uplink builds on is gone: its recovered model comes as it is."""
    fed = Federation(rules)
    client = fed.new_client()
    fed.rounds(client, 4)
    fed.update(8)
    client.send(client.state)
    fed.up(client, answers=1)
    fed.update()
    fed.down(client)
    fed.rounds(client)


# ---- late and new


def test_late_joiner_gets_what_is_smaller() -> None:
    """A chain of payloads while that is short, then a keyframe."""
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


@pytest.mark.parametrize("n_rounds", [0, 1, 4])
def test_client_with_another_initial_model(fed: Federation, n_rounds: int) -> None:
    """It is found out by the first message, and then gets a keyframe."""
    fed.rounds(fed.new_client(), n_rounds, "b")
    client = fed.new_client(model(fed.rng))
    fed.down(client, answers=1)
    fed.up(client)
    fed.rounds(client)


def test_late_client_that_misses_rounds(running: Running) -> None:
    """The chain since the version it holds, and no keyframe, as long as that is short."""
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


# ---- restarts


def test_client_restarts_with_nothing(running: Running) -> None:
    fed, _ = running
    client = fed.new_client()
    fed.update()
    fed.down(client, answers=1)
    fed.up(client)
    fed.rounds(client)


def test_client_restarts_and_trains_at_once(running: Running) -> None:
    """Without asking for the global model: its uplink is refused, and healed."""
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
    """Clients are ahead of it, and come back; once is enough."""
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
    """Crashed after sending and before saving; then it sends the same, or trains anew."""
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
    """By a client that was restored; what the number meant before is old now."""
    fed, client = running
    saved = client.state_dict()
    payloads = []
    for _ in range(3):
        client = fed.restored(client, saved)
        payloads.append(client.send(moved(client.state, fed.rng)))
        fed.server.receive("a", payloads[-1])
    for payload in payloads[:2]:
        refused(
            fed.server,
            rfc.StateMismatchError,
            "version 5, .*older than uplink 5, which has arrived",
            lambda payload=payload: fed.server.receive("a", payload),
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


def test_client_applied_and_did_not_answer(running: Running) -> None:
    """And its state was saved before, or after it had applied."""
    fed, client = running
    for late in (False, True):
        fed.update()
        saved = client.state_dict()
        fed.down(client)
        client = fed.restored(client, client.state_dict() if late else saved)
        fed.update()
        fed.down(client)
    fed.rounds(client)
