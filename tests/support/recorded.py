"""A federation that records its messages, and payloads spliced from several of them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

import resfed_codec as rfc
from checksums import sealed
from federation import RULES, Federation
from published_rules import moved
from resfed_codec.stream.message import is_message, read_message

REMEMBERED = ("no update waits to be sent again", "global model has been replaced here")
"""Errors of a client's answer() after it updated only its knowledge of the server."""

Ends = dict[str, Any]


class Recorded(Federation):
    """A federation that records all messages, and copies of the ends at each moment."""

    def __init__(
        self, rules: tuple[str, str], feedback: bool | None = None, **arguments: Any
    ) -> None:
        wanted = rules == RULES["default"] if feedback is None else feedback
        super().__init__(rules, wanted, **arguments)
        self.said: list[bytes] = []
        self.first: tuple[bytes, ...] = ()
        self.clients = {"a": self.new_client(), "b": self.new_client(client_id="b")}
        self.past: list[Ends] = []
        for round_ in range(4):
            self.past.append(copy.deepcopy({"server": self.server, **self.clients}))
            payload = self.server.update(moved(self.server.state, self.rng))
            self.said += [payload] if payload else []
            for name, client in self.clients.items():
                if (round_, name) == (1, "b"):
                    client.send(moved(client.state, self.rng))
                    continue
                self.exchange(name, client)

    def exchange(self, name: str, client: rfc.ClientSession) -> None:
        message = self.server.send(name)
        client.receive(message)
        uplink = client.send(moved(client.state, self.rng))
        self.said += [message, uplink, client.acknowledge()]
        self.first = self.first or (message, uplink)
        self.server.receive(name, uplink)
        for call in (
            lambda: client.receive(self.first[0]),
            lambda: self.server.receive(name, self.first[1]),
            lambda: self.server.receive("never seen", uplink),
        ):
            try:
                call()
            except rfc.StateMismatchError as error:
                self.said += [error.request] if error.request else []


def payloads_of(messages: list[bytes]) -> list[bytes]:
    inner = [[m] if not is_message(m) else list(read_message(m).payloads) for m in messages if m]
    return list(dict.fromkeys(itertools.chain.from_iterable(inner)))


def cut_together(payloads: list[bytes], rng: np.random.Generator, n: int) -> Iterator[bytes]:
    """Payloads with the digest, the link or the rest of another payload."""
    for _ in range(n):
        a, b = (payloads[i] for i in rng.integers(len(payloads), size=2))
        n_a, n_b = (18 + rfc.inspect(p).link_bytes for p in (a, b))
        kind = rng.integers(3)
        if kind == 0:
            yield sealed(a[:6] + b[6:14] + a[14:-4])
        elif kind == 1:
            yield sealed(a[:18] + b[18:n_b] + a[n_a:-4])
        else:
            yield sealed(a[:n_a] + b[n_b:-4])
