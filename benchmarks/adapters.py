"""A LoRA adapter of 8,500 parameters in a federated training: what a sparsity costs.

    python -m benchmarks.adapters [--seeds 0 1 2]

A network of two hidden layers is trained on handwritten digits and frozen. Then ten clients train
low-rank updates of its three matrices (LoRA, Hu et al., arXiv:2106.09685) on digits that are turned
by 90 degrees, five classes each. Only the adapter is sent, by sessions whose settings are the
defaults but for the sparsity.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from tqdm import tqdm

import resfed_codec as rfc
from benchmarks.common import write_results

CLIENTS, CLASSES, HIDDEN, RANK = 10, 5, 512, 4
LEARNING_RATE = 0.05
SPARSITIES = (0.99, 0.97, 0.94, 0.88, 0.75, 0.5, 0.0)

Model = dict[str, Any]


class LoRA(nn.Module):
    """A frozen linear layer plus the product of two small matrices."""

    def __init__(self, layer: nn.Linear, generator: torch.Generator) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        down = torch.randn(RANK, layer.in_features, generator=generator)
        self.down = nn.Parameter(down / layer.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(layer.out_features, RANK))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(x) + x @ self.down.T @ self.up.T
        return result


class Task:
    """A base network, and a training of adapters to it."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        digits = load_digits()
        images = torch.tensor(digits.images / 16, dtype=torch.float32)
        labels = torch.tensor(digits.target)
        order = torch.randperm(len(labels))
        train, test = order[:-360], order[-360:]
        base = nn.Sequential(
            nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(),
            nn.Linear(HIDDEN, 10),
        )  # fmt: skip
        self._fit(base, images[train].flatten(1), labels[train], epochs=15, lr=0.02)
        other = images.rot90(1, (1, 2)).flatten(1)
        self.images, self.labels = other[train], labels[train]
        self.test_images, self.test_labels = other[test], labels[test]
        generator = torch.Generator().manual_seed(seed)
        self.net = nn.Sequential(
            *(LoRA(m, generator) if isinstance(m, nn.Linear) else m for m in base)
        )
        self.first = self.adapter()
        rng = np.random.default_rng(seed)
        classes = [rng.permutation(10)[:CLASSES] for _ in range(CLIENTS)]
        self.shards = [
            np.flatnonzero(np.isin(self.labels.numpy(), own))[i::CLASSES]
            for i, own in enumerate(classes)
        ]

    def adapter(self) -> Model:
        state = self.net.state_dict()
        return {n: v.numpy().copy() for n, v in state.items() if not n.endswith(("weight", "bias"))}

    def _load(self, adapter: Model) -> None:
        with torch.no_grad():
            for name, parameter in self.net.named_parameters():
                if name in adapter:
                    parameter.copy_(torch.from_numpy(adapter[name]))

    def train(self, adapter: Model, shard: Any) -> Model:
        self._load(adapter)
        self._fit(self.net, self.images[shard], self.labels[shard], epochs=2, lr=LEARNING_RATE)
        return self.adapter()

    @staticmethod
    def _fit(
        net: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int, lr: float
    ) -> None:
        wanted = [p for p in net.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(wanted, lr, momentum=0.9)
        for _ in range(epochs):
            for chosen in torch.split(torch.randperm(len(labels)), 32):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(net(images[chosen]), labels[chosen])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()

    def test(self, adapter: Model) -> tuple[float, float]:
        """Loss and accuracy."""
        self._load(adapter)
        with torch.inference_mode():
            output = self.net(self.test_images)
            loss = nn.functional.cross_entropy(output, self.test_labels)
            right = output.argmax(1) == self.test_labels
        return float(loss), float(right.float().mean())


def run(task: Task, rounds: int, sparsity: float | None) -> tuple[float, float, float]:
    """Loss and accuracy, means of the last five rounds; bytes of an update. None: no codec."""
    torch.manual_seed(0)
    config = None if sparsity is None else rfc.CodecConfig(sparsity=sparsity)
    server = rfc.ServerSession(task.first, config, config)
    clients = [rfc.ClientSession(task.first, config, config) for _ in task.shards]
    n_bytes, results, model = 0, [], task.first
    for _ in range(rounds):
        server.update(model)
        mean = server.aggregator() if config else rfc.Aggregator(model)
        for i, (client, shard) in enumerate(zip(clients, task.shards, strict=True)):
            held = client.receive(server.send(i)) if config else model
            local = task.train(held, shard)
            if not config:
                mean.add_state(local, len(shard))
                n_bytes += sum(value.nbytes for value in local.values())
                continue
            payload = client.send(local)
            n_bytes += len(payload)
            server.receive_into(i, payload, mean, len(shard))
        model = mean.result()
        results.append(task.test(model))
    loss, accuracy = (statistics.mean(column) for column in zip(*results[-5:], strict=True))
    return loss, accuracy, n_bytes / rounds / len(clients)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tasks = [Task(seed) for seed in args.seeds]
    n_parameters = sum(value.size for value in tasks[0].first.values())
    rows = []
    for sparsity in tqdm([*SPARSITIES, None]):
        found = [run(task, args.rounds, sparsity) for task in tasks]
        losses, accuracies, sizes = zip(*found, strict=True)
        sent = "all" if sparsity is None else f"{round((1 - sparsity) * n_parameters):,}"
        rows.append(
            {
                "sparsity": "no codec" if sparsity is None else f"{sparsity:g}",
                "elements of an update": sent,
                "bytes of an update": statistics.mean(sizes),
                "loss": statistics.mean(losses),
                "greatest loss": max(losses),
                "accuracy": statistics.mean(accuracies),
                "least accuracy": min(accuracies),
            }
        )
    note = (
        f"An adapter of {n_parameters:,} parameters, {CLIENTS} clients, {args.rounds} rounds, seeds"
        f" {args.seeds}. Loss (cross-entropy) and accuracy: means of the last five rounds."
    )
    print(write_results("adapters", "A LoRA adapter, digits", rows, note))


if __name__ == "__main__":
    main()
