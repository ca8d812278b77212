"""Interface of clients for the runner: training and testing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from benchmarks.federated.batchnorm import Statistics
from benchmarks.federated.config import RunConfig
from benchmarks.federated.data import Data
from benchmarks.federated.language import TextClients
from benchmarks.federated.methods.base import State
from benchmarks.federated.models import build
from benchmarks.federated.splits import split
from benchmarks.federated.text import Text
from benchmarks.federated.train import Trainer


class Clients(Protocol):
    """All clients of one training. ``weights`` are their numbers of examples."""

    weights: list[int]

    def about(self) -> dict[str, Any]:
        """Extra fields for the header of a result, e.g. the text that was read."""

    def state(self) -> State:
        """The first model."""

    def train(self, number: int, held: Sequence[State]) -> Iterator[State]:
        """Every client's model after round ``number``, counted from 1, in order."""

    def test(self, state: State) -> dict[str, float]:
        """Fields of a result line: accuracies, or a loss."""

    def memory(self) -> Any:
        """State of clients between rounds, except models; can be pickled."""

    def remember(self, memory: Any) -> None:
        """Restore the result of :meth:`memory`."""


def make_clients(config: RunConfig, data: Data | Text, device: str, threads: int) -> Clients:
    """The clients of a training.

    Raises:
        ValueError: The model, split or optimizer of the configuration does not exist, or not for
            this data.
    """
    if isinstance(data, Text):
        if config.statistics != "trained":
            raise ValueError("text: statistics must be trained")
        return TextClients(config, data, device=device, threads=threads)
    return ImageClients(config, data, device=device, threads=threads)


class ImageClients:
    """Clients with images."""

    def __init__(self, config: RunConfig, data: Data, *, device: str, threads: int) -> None:
        if config.optimizer != "sgd" or config.steps:
            raise ValueError("images: the optimizer must be sgd, and steps 0")
        data = data.subset(config.images, config.test_images, config.seed)
        self._shards = split(config.split, data.labels, config.clients, config.seed)
        self.weights = [len(shard) for shard in self._shards]
        self._seed = config.seed
        self._trainer = Trainer(
            build(config.model, data.images.shape[1:], data.n_classes, config.seed),
            data,
            device=device,
            lr=config.lr,
            momentum=config.momentum,
            batch=config.batch,
            epochs=config.epochs,
            precision=config.precision,
            threads=threads,
        )
        self._statistics = Statistics(config.statistics, self._trainer, self._shards, self.weights)

    def about(self) -> dict[str, Any]:
        return {}

    def state(self) -> State:
        return self._statistics.first(self._trainer.state())

    def train(self, number: int, held: Sequence[State]) -> Iterator[State]:
        rngs = [np.random.default_rng([self._seed, number, i]) for i in range(len(held))]
        trained = self._trainer.train_all(held, self._shards, rngs)
        return self._statistics.sent(held, trained)

    def test(self, state: State) -> dict[str, float]:
        found = {"accuracy": self._trainer.accuracy(state)}
        readings = self._statistics.readings(state).items()
        return found | {f"accuracy_{name}": self._trainer.accuracy(s) for name, s in readings}

    def memory(self) -> Any:
        return self._statistics.own, self._statistics.asked

    def remember(self, memory: Any) -> None:
        self._statistics.own, self._statistics.asked = memory
