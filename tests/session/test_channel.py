"""Sessions over a channel that loses, repeats, delays and reorders messages; ends may crash.

A call either raises and changes nothing, or both ends hold the same models. A pair can always
recover.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

import resfed_codec as rfc
from marks import slow_except
from models import State, assert_same
from resfed_codec.stream.versions import ParsedPayload, model_of

SHAPES = {"weight": (6, 20), "bias": (6,), "steps": ()}
NAMES = ["a", "b"]


def random_model(rng: np.random.Generator) -> State:
    return {
        "weight": rng.standard_normal(SHAPES["weight"]).astype(np.float32),
        "bias": rng.standard_normal(SHAPES["bias"]).astype(np.float32),
        "steps": np.array(0),
    }


def moved(model: State, rng: np.random.Generator) -> State:
    new = {
        name: (value + 0.1 * rng.standard_normal(value.shape)).astype(value.dtype)
        for name, value in model.items()
    }
    new["steps"] = model["steps"] + 1
    return new


def same_snapshot(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)


class Channel(RuleBasedStateMachine):
    """One server and two clients; every message ever sent may be delivered again."""

    uplink = rfc.CodecConfig(sparsity=0.8)
    downlink = rfc.CodecConfig(sparsity=0.8)

    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(0)
        self.initial = random_model(self.rng)
        self.server = rfc.ServerSession(self.initial, self.uplink, self.downlink, history=3)
        self.initials = dict.fromkeys(NAMES, self.initial)
        self.clients = {name: self.new_client(self.initial) for name in NAMES}
        self.down: dict[str, list[bytes]] = {name: [] for name in NAMES}
        self.up: dict[str, list[bytes]] = {name: [] for name in NAMES}
        self.requests: list[tuple[str, str, bytes]] = []
        self.saved: dict[str, dict[str, Any]] = {}
        self.globals: dict[int, State] = {}  # by digest
        self.locals: dict[bytes, State] = {}  # by payload
        self.note_globals()

    def new_client(self, initial: State) -> rfc.ClientSession:
        return rfc.ClientSession(initial, self.uplink, self.downlink, history=3)

    def note_globals(self) -> None:
        versions = list(self.server._state.versions.values())
        for client in self.server._state.clients.values():
            versions += client.downlinks.values()
        for version in versions:
            state = self.server._layout.state_of([a.copy() for a in model_of(version)])
            assert_same(self.globals.setdefault(version.digest, state), state)

    def attempt(self, session: Any, call: Any, argument: bytes) -> Any:
        """The result of a call, or None if it was refused; a refused call must change nothing."""
        before = session.state_dict()
        try:
            return call(argument)
        except rfc.StateMismatchError as error:
            assert same_snapshot(before, session.state_dict()), "a refusal changed the state"
            return error

    # ---- events

    @rule()
    def update(self) -> None:
        payload = self.server.update(moved(self.server.state, self.rng))
        self.note_globals()
        for name in NAMES if payload else ():
            self.down[name].append(payload)

    @rule(name=st.sampled_from(NAMES))
    def server_sends(self, name: str) -> None:
        self.down[name].append(self.server.send(name))
        self.note_globals()

    @rule(name=st.sampled_from(NAMES), to=st.sampled_from(NAMES), i=st.integers(0, 9))
    def client_receives(self, name: str, to: str, i: int) -> None:
        if not self.down[name]:
            return
        message = self.down[name][-1 - i % len(self.down[name])]
        client = self.clients[to]
        result = self.attempt(client, client.receive, message)
        if isinstance(result, rfc.StateMismatchError):
            if result.request:
                self.requests.append(("server", to, result.request))
            return
        # A client without a name takes the one in its first message.
        assert_same(result, self.globals[client._state.down.digest])

    @rule(name=st.sampled_from(NAMES))
    def client_sends(self, name: str) -> None:
        client = self.clients[name]
        payload = client.send(moved(client.state, self.rng))
        model = client._state.sent[max(client._state.sent)].version.model
        if model is None:
            model = client._layout.empty()
            bare = client._state.sent[max(client._state.sent)].payload
            ParsedPayload(bare, client._layout).decode(
                client._layout, None, client._state.down, model
            )
        self.locals[payload] = client._layout.state_of([array.copy() for array in model])
        self.up[name].append(payload)

    @rule(name=st.sampled_from(NAMES), to=st.sampled_from(NAMES), i=st.integers(0, 9))
    def server_receives(self, name: str, to: str, i: int) -> None:
        if not self.up[name]:
            return
        payload = self.up[name][-1 - i % len(self.up[name])]
        result = self.attempt(self.server, lambda p: self.server.receive(to, p), payload)
        if isinstance(result, rfc.StateMismatchError):
            if result.request:
                self.requests.append(("client", to, result.request))
        elif payload in self.locals:
            assert_same(result, self.locals[payload])

    @rule(i=st.integers(0, 9))
    def request_arrives(self, i: int) -> None:
        if not self.requests:
            return
        end, name, request = self.requests[-1 - i % len(self.requests)]
        try:
            if end == "server":
                self.down[name].append(self.server.answer(name, request))
                self.note_globals()
            else:
                self.up[name].append(self.clients[name].answer(request))
        except rfc.StateMismatchError:
            pass

    @rule(who=st.sampled_from(["server", *NAMES]))
    def save(self, who: str) -> None:
        session = self.server if who == "server" else self.clients[who]
        self.saved[who] = session.state_dict()

    @rule(who=st.sampled_from(["server", *NAMES]))
    def crash(self, who: str) -> None:
        if who not in self.saved:
            return
        if who == "server":
            self.server = rfc.ServerSession(self.initial, self.uplink, self.downlink, history=3)
            self.server.load_state_dict(self.saved[who])
        else:
            self.clients[who] = self.new_client(self.initials[who])
            self.clients[who].load_state_dict(self.saved[who])

    @rule(name=st.sampled_from(NAMES), knows_initial=st.booleans())
    def client_starts_anew(self, name: str, knows_initial: bool) -> None:
        initial = self.initial if knows_initial else random_model(self.rng)
        self.initials[name] = initial
        self.clients[name] = self.new_client(initial)
        self.saved.pop(name, None)

    # ---- invariants

    @invariant()
    def clients_hold_global_versions(self) -> None:
        for client in self.clients.values():
            if client.version > 0:
                assert_same(client.state, self.globals[client._state.down.digest])

    def teardown(self) -> None:
        """Every pair can recover and then exchange models."""
        self.server.update(moved(self.server.state, self.rng))
        self.note_globals()
        for name, client in self.clients.items():
            self.recover_down(name, client)
            for _ in range(3):
                payload = client.send(moved(client.state, self.rng))
                try:
                    self.server.receive(name, payload)
                except rfc.StateMismatchError as error:
                    self.recover_up(name, client, error.request)
                self.server.update(moved(self.server.state, self.rng))
                self.note_globals()
                self.recover_down(name, client)

    def recover_down(self, name: str, client: rfc.ClientSession) -> None:
        message = self.server.send(name)
        self.note_globals()
        if client._state.tag not in (0, self.server._state.clients[name].tag):
            return  # its first message was for the other client: it now has that name
        try:
            state = client.receive(message)
        except rfc.StateMismatchError as error:
            message = self.server.answer(name, error.request)
            self.note_globals()
            state = client.receive(message)
        newest = self.server._state.current if self.server._broadcast else None
        newest = newest or self.server._state.clients[name].downlinks[client.version]
        assert_same(state, self.globals[newest.digest])

    def recover_up(self, name: str, client: rfc.ClientSession, request: bytes) -> None:
        if client._state.tag not in (0, self.server._state.clients[name].tag):
            return
        answer = client.answer(request)
        self.server.receive(name, answer)


PREDICTORS = {
    "default": ("global", "previous"),
    "own history up": ("res1", "previous"),
    "own downlinks": ("res2", "res1"),
    "adaptive": ("adaptive", "adaptive"),
    "mixed": ("global", "res2"),
}


@pytest.mark.parametrize("feedback", slow_except([True], [False, True]))
@pytest.mark.parametrize(
    "names",
    slow_except([PREDICTORS["default"], PREDICTORS["mixed"]], PREDICTORS.values()),
    ids=PREDICTORS,
)
def test_any_sequence_of_events(names: tuple[str, str], feedback: bool) -> None:
    broadcast = names[1] in ("previous", "adaptive")

    class Machine(Channel):
        uplink: ClassVar = rfc.CodecConfig(
            sparsity=0.8,
            predictor=names[0],
            error_feedback=feedback and names[0] in ("global", "adaptive"),
        )
        downlink: ClassVar = rfc.CodecConfig(
            sparsity=0.8, predictor=names[1], error_feedback=feedback and broadcast
        )

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
