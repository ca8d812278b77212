"""The model and its training, for the server and the clients."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


class Net(nn.Module):
    """22,510 parameters. ``dtype`` is the name of a dtype of torch."""

    def __init__(self, dtype: str = "float32") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dtype = dtype
        self.layers = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 10))
        self.to(getattr(torch, dtype))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images.to(getattr(torch, self.dtype))).float()


def load_data(partition: int, n_partitions: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A client's images ``(n, 64)`` and labels ``(n,)`` for training, and those for testing."""
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    images, labels = (images[order] / 16).float(), labels[order]
    n_test = len(labels) // 5
    mine = slice(n_test + partition, None, n_partitions)
    return images[mine], labels[mine], images[:n_test], labels[:n_test]


def train(net: nn.Module, images: Tensor, labels: Tensor, seed: int) -> None:
    """Two epochs of SGD with momentum."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(2):
        for batch in torch.randperm(len(labels), generator=generator).split(16):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()


def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((net(images).argmax(1) == labels).float().mean())
