"""Local training and testing with torch, on images in the device's memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from queue import SimpleQueue

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.federated.data import Data

State = dict[str, NDArray[np.float32]]
Indices = NDArray[np.int64]

TEST_BATCH = 500
PRECISIONS = ("float32", "bf16")


class Trainer:
    """One network and one data set on one device. Models are NumPy arrays.

    The results do not depend on the number of threads: the caller orders the examples, nothing else
    is random, every thread has its own model, and cuDNN uses deterministic kernels.

    Args:
        precision: "float32"; or "bf16", where :class:`torch.autocast` computes in bfloat16, with
            channels last in memory. Parameters, their updates and statistics are float32 in both.
        threads: Number of models trained, or batches tested, in parallel.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        *,
        device: str = "cpu",
        lr: float = 0.01,
        momentum: float = 0.9,
        batch: int = 64,
        epochs: int = 1,
        precision: str = "float32",
        threads: int = 1,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r}: must be one of {', '.join(PRECISIONS)}")
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        self._device = torch.device(device)
        self._bf16 = precision == "bf16"
        model = model.to(self._device)
        if self._bf16:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._first = _state_of(model)
        self._idle: SimpleQueue[nn.Module] = SimpleQueue()
        for _ in range(threads):
            self._idle.put(deepcopy(model))
        self._pool = ThreadPoolExecutor(threads)
        self._images, self._labels = self._put(data.images), self._put(data.labels)
        self._test_images, self._test_labels = (
            self._put(data.test_images),
            self._put(data.test_labels),
        )
        self._lr, self._momentum = lr, momentum
        self._batch, self._epochs = batch, epochs

    def _put(self, array: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)

    @property
    def n_images(self) -> int:
        """Number of training images."""
        return len(self._labels)

    def state(self) -> State:
        """The first model: parameters and any running statistics."""
        return {name: value.copy() for name, value in self._first.items()}

    @contextmanager
    def _model(self, state: State, *, training: bool) -> Iterator[nn.Module]:
        """Borrow a network exclusively, with the parameters of ``state``."""
        model = self._idle.get()
        try:
            with torch.no_grad():
                for name, tensor in model.state_dict().items():
                    tensor.copy_(torch.from_numpy(state[name]))
            yield model.train(training)
        finally:
            self._idle.put(model)

    def _output(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        # Without autocast's cache: each parameter is used once, and threads would share the cache.
        with torch.autocast(
            self._device.type, torch.bfloat16, enabled=self._bf16, cache_enabled=False
        ):
            output: torch.Tensor = model(images)
        return output.float()

    def train(
        self, state: State, indices: Indices, rng: np.random.Generator, *, pull: float = 0.0
    ) -> State:
        """The model after SGD with momentum (which starts at 0) over the images ``indices``.

        ``pull`` is FedProx's mu: the weight of half the squared distance from ``state``.
        """
        with self._model(state, training=True) as model:
            start = [p.detach().clone() for p in model.parameters()] if pull else []
            optimizer = torch.optim.SGD(model.parameters(), self._lr, self._momentum)
            for _ in range(self._epochs):
                order = torch.from_numpy(rng.permutation(indices)).to(self._device)
                for chosen in torch.split(order, self._batch):
                    optimizer.zero_grad()
                    output = self._output(model, self._images[chosen])
                    loss = nn.functional.cross_entropy(output, self._labels[chosen])
                    loss.backward()  # type: ignore[no-untyped-call]
                    for parameter, first in zip(model.parameters(), start, strict=bool(start)):
                        assert parameter.grad is not None
                        parameter.grad += pull * (parameter.detach() - first)
                    optimizer.step()
            return _state_of(model)

    def train_all(
        self,
        states: Sequence[State],
        shards: Sequence[Indices],
        rngs: Sequence[np.random.Generator],
    ) -> Iterator[State]:
        """:meth:`train` for many clients, in order."""
        return self._pool.map(self.train, states, shards, rngs)

    def accuracy(self, state: State) -> float:
        """The share of test images that the model classifies correctly."""
        parts = range(0, len(self._test_labels), TEST_BATCH)
        return sum(self._pool.map(lambda start: self._right(state, start), parts)) / len(
            self._test_labels
        )

    def _right(self, state: State, start: int) -> int:
        part = slice(start, start + TEST_BATCH)
        with self._model(state, training=False) as model, torch.inference_mode():
            found = self._output(model, self._test_images[part]).argmax(dim=1)
            return int((found == self._test_labels[part]).sum())

    def recomputed(self, state: State, indices: Indices) -> State:
        """The same parameters with BatchNorm's statistics recomputed from the images ``indices``.

        The statistics are means over batches of ``TEST_BATCH``, as those of torch's ``update_bn``.
        """
        images = self._images[torch.from_numpy(indices).to(self._device)]
        with self._model(state, training=True) as model, torch.no_grad():
            norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
            momenta = [norm.momentum for norm in norms]
            for i, batch in enumerate(torch.split(images, TEST_BATCH)):
                for norm in norms:
                    norm.momentum = 1 / (i + 1)  # so that they become the mean over batches
                self._output(model, batch)
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
            return _state_of(model)


def _state_of(model: nn.Module) -> State:
    """A copy of the model in C order."""
    return {k: v.detach().cpu().numpy().copy() for k, v in model.state_dict().items()}
