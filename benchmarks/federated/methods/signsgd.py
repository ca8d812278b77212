"""signSGD with majority vote."""

from __future__ import annotations

import numpy as np

from benchmarks.federated.methods.base import PayloadMethod, State, Vector


class SignMajority(PayloadMethod):
    """One bit an element in both directions: every element of the model moves by ``step``.

    Bernstein, Zhao, Azizzadenesheli, Anandkumar, "signSGD with majority vote", arXiv:1810.05291,
    with a client's update instead of its gradient. For clients with equal numbers of examples the
    mean of the votes has the sign of the majority. Ties and unchanged elements get a random sign.
    Payload: the signs.
    """

    def __init__(self, initial: State, clients: int, seed: int, *, step: float = 0.001) -> None:
        super().__init__(initial, clients, seed, feedback=False)
        self._step = np.float32(step)

    def encode(self, update: Vector) -> bytes:
        coin = self._rng.integers(0, 2, len(update), np.uint8)
        tiny = self._step / 1000  # rounding errors of the mean, not votes
        return np.packbits(np.where(np.abs(update) < tiny, coin, update < 0)).tobytes()

    def decode(self, payload: bytes, n_elems: int) -> Vector:
        is_minus = np.unpackbits(np.frombuffer(payload, np.uint8), count=n_elems)
        decoded: Vector = np.where(is_minus, -self._step, self._step)
        return decoded
