"""A server and clients for tests of sessions: rounds, deliveries, and recovery from refusals."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import resfed_codec as rfc
from models import State, assert_same
from published_rules import moved
from snapshots import mismatched

RULES = {
    "default": ("global", "previous"),
    "own history": ("res1", "previous"),
    "long history": ("res2", "previous"),
    "adaptive": ("adaptive", "adaptive"),
    "own downlinks": ("global", "res2"),
    "all": ("res2", "res2"),
}
OWN_DOWNLINKS = ("own downlinks", "all")
"""With these rules the server keeps the global models that its clients hold."""


def model(rng: np.random.Generator) -> State:
    return {
        "w": rng.standard_normal((30, 40)).astype(np.float32),
        "b": rng.standard_normal(30).astype(np.float16),
        "s": np.asarray(rng.standard_normal(), np.float64),
        "n": np.array([1, 2]),
    }


class Federation:
    """A server and clients; checks every model on arrival."""

    def __init__(
        self, rules: tuple[str, str] = RULES["default"], feedback: bool = False, **arguments: Any
    ) -> None:
        self.rng = np.random.default_rng(7)
        self.initial = model(self.rng)
        self.broadcast = rules[1] in ("previous", "adaptive")
        self.keeps_local_models = rules[0] != "global" or not self.broadcast
        up_feedback = feedback and rules[0] in ("global", "adaptive")  # not allowed with own terms
        self.configs = (
            rfc.CodecConfig(sparsity=0.8, predictor=rules[0], error_feedback=up_feedback),
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
        """The lossless tensors identify the model."""
        assert_same(client.state, received)
        assert np.array_equal(received["n"], self.server.state["n"]), "not the newest global model"
        if self.broadcast:
            assert_same(received, self.server.state)

    def deliver(self, receive: Any, answer: Any, message: bytes, answers: int | None) -> State:
        """The result of ``receive`` after ``answers`` refusals and answers; None: at most two."""
        for n in range(2 if answers is None else answers):
            try:
                state: State = receive(message)
            except rfc.StateMismatchError:
                error = mismatched("payload: ", receive, message)
                message = answer(error.request)
            else:
                assert answers is None, f"accepted after {n} answers, not {answers}"
                return state
        return receive(message)  # type: ignore[no-any-return]

    def down(self, client: rfc.ClientSession, name: Any = "a", answers: int | None = 0) -> None:
        """Deliver the newest global model, after ``answers`` expected refusals and answers."""
        answer = partial(self.server.answer, name)
        message = self.server.send(name)
        self.check(client, self.deliver(client.receive, answer, message, answers))

    def up(self, client: rfc.ClientSession, name: Any = "a", answers: int | None = 0) -> None:
        """Deliver a local model."""
        local = moved(client.state, self.rng)
        receive = partial(self.server.receive, name)
        received = self.deliver(receive, client.answer, client.send(local), answers)
        self.check_local(received, local)

    def check_local(self, received: State, local: State) -> None:
        assert np.array_equal(received["n"], local["n"]), "not this local model"
        assert np.abs(received["w"] - local["w"]).max() < 3

    def rounds(self, client: rfc.ClientSession, n: int = 3, name: Any = "a") -> None:
        """Rounds without faults."""
        for _ in range(n):
            self.update()
            self.down(client, name)
            self.up(client, name)


Running = tuple[Federation, rfc.ClientSession]
