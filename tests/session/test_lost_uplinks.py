"""With error feedback, no change of a client is lost or counted twice.

Messages in both directions are lost, delayed and repeated. After every step, the changes that
arrived, that may still arrive and that feedback holds add up to the changes made.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import resfed_codec as rfc
from marks import slow_except
from models import State

NAMES = ("b", "w")
"""In coding order."""

CONFIGS = {
    "default": ("global", "previous"),
    "own downlinks": ("global", "res1"),
    "adaptive": ("adaptive", "previous"),
    "steps": (rfc.LinearPredictor(other=(1.5, -0.5)), "previous"),
}


class Book:
    """One server, one client, and a record of every uplink's change."""

    def __init__(self, up: Any, down: str, history: int) -> None:
        self.rng = np.random.default_rng(1)
        initial = {"w": np.zeros((12, 12), np.float32), "b": np.zeros(6, np.float32)}
        configs = (
            rfc.CodecConfig(sparsity=0.8, predictor=up, error_feedback=True),
            rfc.CodecConfig(sparsity=0.8, predictor=down),
        )
        self.server = rfc.ServerSession(initial, *configs, history=history)
        self.client = rfc.ClientSession(initial, *configs, history=history)
        self.wanted = self.sums()
        self.arrived = self.sums()
        self.uplinks: dict[bytes, State] = {}  # their changes
        self.delivered: set[bytes] = set()

    def sums(self) -> State:
        return {"w": np.zeros((12, 12)), "b": np.zeros(6)}

    def send(self) -> bytes:
        model = self.client.state
        local = {n: (v + self.rng.standard_normal(v.shape)).astype("f") for n, v in model.items()}
        uplink = self.client.send(local)
        for name in NAMES:
            self.wanted[name] += local[name] - model[name].astype(float)
        self.enter(uplink)
        return uplink

    def enter(self, uplink: bytes) -> None:
        sent = self.client._state.sent[max(self.client._state.sent)]
        nothing = [np.zeros(6, np.float32), np.zeros((12, 12), np.float32)]
        change = self.client._with_lost(nothing, [sent])
        assert change is not None
        self.uplinks[uplink] = dict(zip(NAMES, change, strict=True))  # type: ignore[arg-type]

    def receive(self, uplink: bytes, with_answer: bool) -> bytes | None:
        """Deliver an uplink; return the client's answer if the server refuses it."""
        try:
            model = self.server.receive("a", uplink)
        except rfc.StateMismatchError as error:
            if not with_answer:
                return None
            try:
                answer = self.client.answer(error.request)
            except rfc.StateMismatchError:
                return None
            self.enter(answer)
            return answer
        if uplink not in self.delivered:
            self.delivered.add(uplink)
            for name in NAMES:
                self.arrived[name] += self.uplinks[uplink][name]
            assert np.isfinite(model["w"]).all()
        return None

    def balanced(self) -> None:
        feedback = self.client._state.feedback
        pending = [s for s in self.client._state.sent.values() if s.message not in self.delivered]
        for i, name in enumerate(NAMES):
            held = feedback[i] + sum(self.uplinks[s.message][name] for s in pending)
            np.testing.assert_allclose(self.arrived[name] + held, self.wanted[name], atol=2e-3)


@pytest.mark.parametrize("rules", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("history", slow_except([4], [1, 4]))
def test_nothing_is_lost_and_nothing_counts_twice(rules: tuple[Any, str], history: int) -> None:
    @settings(
        max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        book = Book(*rules, history)
        up: list[bytes] = []  # all messages ever sent, for delivery at any time
        down: list[bytes] = []
        n_rounds = data.draw(st.integers(5, 30))
        loss = data.draw(st.sampled_from([0, 3, 7]))
        for _ in range(n_rounds):
            up.append(book.send())
            if data.draw(st.integers(0, 9)) >= loss:
                place = max(0, len(up) - 1 - data.draw(st.sampled_from([0, 0, 0, 1, 2, 5])))
                answer = book.receive(up[place], data.draw(st.booleans()))
                up += [] if answer is None else [answer]
            book.balanced()
            book.server.update({n: v + np.float32(1) for n, v in book.server.state.items()})
            down.append(book.server.send("a"))
            if data.draw(st.integers(0, 9)) >= loss:
                message = down[max(0, len(down) - 1 - data.draw(st.sampled_from([0, 0, 1, 3])))]
                with contextlib.suppress(rfc.StateMismatchError):
                    book.client.receive(message)
            book.balanced()

    run()
