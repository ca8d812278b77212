"""Local training and testing, with torch, on images that lie ready on the device."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.federated.data import Data

State = dict[str, NDArray[np.float32]]

TEST_BATCH = 500


class Trainer:
    """One network and one data set on one device. Models come and go as NumPy arrays.

    The same calls give the same models: examples are ordered by the caller, nothing else is random,
    and cuDNN is held to deterministic kernels.
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
    ) -> None:
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        self._device = torch.device(device)
        self._model = model.to(self._device)
        self._images, self._labels = self._put(data.images), self._put(data.labels)
        self._test_images, self._test_labels = (
            self._put(data.test_images),
            self._put(data.test_labels),
        )
        self._lr, self._momentum = lr, momentum
        self._batch, self._epochs = batch, epochs

    def _put(self, array: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)

    def state(self) -> State:
        """A copy of the model: parameters, and running statistics where there are any."""
        return {k: v.detach().cpu().numpy().copy() for k, v in self._model.state_dict().items()}

    def _load(self, state: State) -> None:
        with torch.no_grad():
            for name, tensor in self._model.state_dict().items():
                tensor.copy_(torch.from_numpy(state[name]))

    def train(self, state: State, indices: NDArray[np.int64], rng: np.random.Generator) -> State:
        """The model after SGD with momentum (which starts at 0) over the images ``indices``."""
        self._load(state)
        self._model.train()
        optimizer = torch.optim.SGD(self._model.parameters(), self._lr, self._momentum)
        for _ in range(self._epochs):
            order = torch.from_numpy(rng.permutation(indices)).to(self._device)
            for chosen in torch.split(order, self._batch):
                optimizer.zero_grad()
                output = self._model(self._images[chosen])
                loss = nn.functional.cross_entropy(output, self._labels[chosen])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return self.state()

    def accuracy(self, state: State) -> float:
        """The share of test images that the model gets right."""
        self._load(state)
        self._model.eval()
        right = 0
        with torch.inference_mode():
            for start in range(0, len(self._test_labels), TEST_BATCH):
                part = slice(start, start + TEST_BATCH)
                found = self._model(self._test_images[part]).argmax(dim=1)
                right += int((found == self._test_labels[part]).sum())
        return right / len(self._test_labels)
