"""Interface of a method: sending models between server and clients, and counting the bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

State = dict[str, NDArray[np.float32]]
Vector = NDArray[np.float32]

STATISTICS = "running_"
"""Prefix of the names of running statistics."""


class Method(ABC):
    """Both ends of both directions. Stateful; one object serves one training.

    All clients and the server start from ``initial``, drawn from a common seed, so it is not sent.
    In a round each client trains from ``held[client]``, :meth:`up` sends the result to the server,
    and :meth:`down` sends the mean of the recovered models to all clients. Bytes are the length of
    a real payload unless the method's docstring says otherwise. Subclasses that add options pass
    the other arguments on as ``start``.

    Args:
        initial: The first model, float32.
        clients: Number of clients.
        seed: For methods that draw random numbers.
    """

    def __init__(self, initial: State, clients: int, seed: int) -> None:
        self.held: list[State] = [initial] * clients

    @property
    def tested(self) -> State:
        """The model to test: that of the clients (client 0 if they differ)."""
        return self.held[0]

    def begin(self) -> list[int]:
        """Bytes to each client before the first round."""
        return [0] * len(self.held)

    @abstractmethod
    def up(self, client: int, local: State) -> tuple[State, int]:
        """The local model as the server recovers it, and the bytes sent."""

    @abstractmethod
    def down(self, mean: State) -> list[int]:
        """Send the new global model to all clients, in ``held``; return the bytes to each."""

    def _broadcast(self, model: State, n_bytes: int) -> list[int]:
        """The end of :meth:`down` if all clients get the same."""
        self.held = [model] * len(self.held)
        return [n_bytes] * len(self.held)

    def notes(self) -> dict[str, float]:
        """Extra fields for the result line of the round that :meth:`down` ended."""
        return {}


class UpdateMethod(Method):
    """Methods that code a vector: the model minus the held model, all tensors concatenated.

    It excludes the running statistics of BatchNorm, which are sent unchanged as float32. A
    statistic is replaced in each round, not added to; error feedback would make variances negative.

    Uplink and downlink use the same code, since a method that codes only the uplink sends whole
    models down. The downlink is the same for all clients. With ``feedback`` every sender adds what
    it left out to its next update.
    """

    def __init__(self, initial: State, clients: int, seed: int, *, feedback: bool) -> None:
        super().__init__(initial, clients, seed)
        self._rng = np.random.default_rng([seed, 3])
        self._feedback: dict[int, Vector] | None = {} if feedback else None

    @abstractmethod
    def code(self, update: Vector) -> tuple[Vector, int]:
        """The update as the receiver decodes it, and the length of the payload in bytes."""

    def _send(self, sender: int, state: State, held: State) -> tuple[State, int]:
        whole = {name: value for name, value in state.items() if STATISTICS in name}
        start = {name: value for name, value in held.items() if name not in whole}
        update = flat({name: state[name] for name in start}) - flat(start)
        if self._feedback is not None and sender in self._feedback:
            update += self._feedback[sender]
        decoded, n_bytes = self.code(update)
        if self._feedback is not None:
            self._feedback[sender] = update - decoded
        coded = like(start, flat(start) + decoded)
        recovered = {name: coded[name] if name in coded else whole[name] for name in state}
        return recovered, n_bytes + sum(value.nbytes for value in whole.values())

    def up(self, client: int, local: State) -> tuple[State, int]:
        return self._send(client, local, self.held[client])

    def down(self, mean: State) -> list[int]:
        return self._broadcast(*self._send(-1, mean, self.held[0]))


class PayloadMethod(UpdateMethod):
    """Update methods whose payloads contain all that the receiver needs."""

    @abstractmethod
    def encode(self, update: Vector) -> bytes:
        """The payload of an update, float32 ``(n_elems,)``."""

    @abstractmethod
    def decode(self, payload: bytes, n_elems: int) -> Vector:
        """The update in a payload of :meth:`encode`."""

    def code(self, update: Vector) -> tuple[Vector, int]:
        payload = self.encode(update)
        return self.decode(payload, len(update)), len(payload)


def flat(state: State) -> Vector:
    """All elements as one new vector, tensor by tensor."""
    return np.concatenate([value.reshape(-1) for value in state.values()])


def like(state: State, vector: Vector) -> State:
    """The inverse of :func:`flat`, with the names and shapes of ``state``."""
    parts = np.split(vector, np.cumsum([value.size for value in state.values()])[:-1])
    return {
        name: part.reshape(value.shape)
        for (name, value), part in zip(state.items(), parts, strict=True)
    }
