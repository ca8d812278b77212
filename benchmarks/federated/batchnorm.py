"""BatchNorm's running statistics: which of them clients send, and what a test makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from benchmarks.federated.methods.base import STATISTICS, State
from benchmarks.federated.train import Indices, Trainer

IMAGES = 2000
"""Training images for the reading "recomputed"."""

RECEIVED = "received."
"""Prefix of the second set of statistics, where clients send both."""

CHOICES = ("trained", "received", "both")


class Statistics:
    """The statistics of one training; without BatchNorm it does nothing.

    Training does not use running statistics, so parameters are the same with all choices.

    Args:
        choice: What clients send. "trained": the statistics that local training leaves, as
            frameworks do. "received": those of the model that the client received, computed on its
            images before it trains. "both": both sets, so that one training shows what each is
            worth.
        shards: Each client's images.
        weights: Each client's weight.

    Attributes:
        own: The statistics that training has left at client 0; empty at first.
        asked: With "both", those that each client computes for the tested model; empty at first.
    """

    def __init__(
        self, choice: str, trainer: Trainer, shards: Sequence[Indices], weights: Sequence[int]
    ) -> None:
        if choice not in CHOICES:
            raise ValueError(f"statistics {choice!r}: must be one of {', '.join(CHOICES)}")
        self._choice, self._trainer = choice, trainer
        self._shards, self._weights = shards, weights
        self.own: State = {}
        self.asked: list[State] = []

    def first(self, state: State) -> State:
        """The first model, with a place for all that is sent."""
        if self._choice != "both":
            return state
        return state | {RECEIVED + name: value for name, value in _statistics(state).items()}

    def sent(self, held: Sequence[State], trained: Iterable[State]) -> Iterator[State]:
        """What clients send after training from the models ``held``."""
        for client, (start, local) in enumerate(zip(held, trained, strict=True)):
            if client == 0:
                self.own = _statistics(local)
            if self._choice == "trained":
                yield local
                continue
            prefix = RECEIVED if self._choice == "both" else ""
            # With "both" all clients hold the model that was tested.
            found = self.asked[client] if self.asked else self._on_images(start, client)
            yield local | {prefix + name: value for name, value in found.items()}

    def readings(self, state: State) -> dict[str, State]:
        """The model with other statistics than it has, by the name of the reading.

        - "recomputed": on the first ``IMAGES`` training images, which are of all clients.
        - "received": the second set, as it was sent.
        - "own": client 0's own, as its training left them: those that it has if none are sent.
        - "asked": the mean of those that clients compute for this model, each on its images: what
          a round for statistics alone would give, without compression.
        - "pooled": the same, with the variance between the clients' means added to the variances.
        """
        if not _statistics(state):
            return {}
        images = np.arange(min(IMAGES, self._trainer.n_images))
        found = {"recomputed": self._trainer.recomputed(state, images)}
        if self._choice != "both":
            return found
        found["received"] = state | {name: state[RECEIVED + name] for name in _statistics(self.own)}
        found["own"] = state | self.own
        self.asked = [self._on_images(state, client) for client in range(len(self._shards))]
        means = {name: self._mean([s[name] for s in self.asked]) for name in self.own}
        pooled = dict(means)
        for name in means:
            if name.endswith("running_mean"):
                squares = [np.square(s[name] - means[name]) for s in self.asked]
                variance = name.replace("mean", "var")
                pooled[variance] = means[variance] + self._mean(squares)
        return found | {"asked": state | means, "pooled": state | pooled}

    def _on_images(self, state: State, client: int) -> State:
        return _statistics(self._trainer.recomputed(state, self._shards[client]))

    def _mean(self, values: Sequence[np.ndarray]) -> np.ndarray:
        return np.average(values, axis=0, weights=self._weights).astype(np.float32)


def _statistics(state: State) -> State:
    return {
        name: value
        for name, value in state.items()
        if STATISTICS in name and not name.startswith(RECEIVED)
    }
