"""Little to train: LoRA adapters, and a head on a frozen network. What a sparsity costs them.

    python -m benchmarks.adapters [--seeds 0 1 2] [--jobs 2]

A network of two hidden layers is trained on handwritten digits. Then ten clients adapt it to digits
that are turned by 90 degrees, five classes each. Either they train low-rank updates of its three
matrices (LoRA, Hu et al., arXiv:2106.09685), and only these are sent; or they train the last layer
anew, and the whole network is sent, whose other layers are frozen. The settings of the sessions are
the defaults but for the sparsity.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from tqdm import tqdm

import resfed_codec as rfc
from benchmarks.common import write_results

CLIENTS, CLASSES, HIDDEN = 10, 5, 512
LEARNING_RATE = 0.05
RANKS = (1, 4, 16)
ELEMENTS = (512, 2048)
"""Of an update, between a hundredth and all."""

Model = dict[str, Any]


class LoRA(nn.Module):
    """A frozen linear layer plus the product of two small matrices."""

    def __init__(self, layer: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        down = torch.randn(rank, layer.in_features, generator=generator)
        self.down = nn.Parameter(down / layer.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(x) + x @ self.down.T @ self.up.T
        return result


class Task:
    """A base network, and a training of adapters to it, or of its head (``rank`` None)."""

    def __init__(self, seed: int, rank: int | None) -> None:
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
        if rank is None:
            self.net = base.requires_grad_(False)
            base[-1].requires_grad_(True)
        else:
            self.net = nn.Sequential(
                *(LoRA(m, rank, generator) if isinstance(m, nn.Linear) else m for m in base)
            )
        self._frozen = ("layer.weight", "layer.bias")  # not sent with adapters
        self.first = self.model()
        self.n_trained = sum(p.numel() for p in self.net.parameters() if p.requires_grad)
        rng = np.random.default_rng(seed)
        classes = [rng.permutation(10)[:CLASSES] for _ in range(CLIENTS)]
        self.shards = [
            np.flatnonzero(np.isin(self.labels.numpy(), own))[i::CLASSES]
            for i, own in enumerate(classes)
        ]

    def model(self) -> Model:
        """What is sent."""
        state = self.net.state_dict()
        return {n: v.numpy().copy() for n, v in state.items() if not n.endswith(self._frozen)}

    def _load(self, model: Model) -> None:
        state = {name: torch.from_numpy(value) for name, value in model.items()}
        self.net.load_state_dict(state, strict=False)

    def train(self, model: Model, shard: Any) -> Model:
        self._load(model)
        self._fit(self.net, self.images[shard], self.labels[shard], epochs=2, lr=LEARNING_RATE)
        return self.model()

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

    def test(self, model: Model) -> tuple[float, float]:
        """Loss and accuracy."""
        self._load(model)
        with torch.inference_mode():
            output = self.net(self.test_images)
            loss = nn.functional.cross_entropy(output, self.test_labels)
            right = output.argmax(1) == self.test_labels
        return float(loss), float(right.float().mean())


@dataclass(frozen=True)
class Result:
    """Loss and accuracy, means of the last five rounds; elements and bytes of an update."""

    loss: float
    accuracy: float
    n_elements: float
    n_bytes: float


def run(task: Task, rounds: int, config: rfc.CodecConfig | None) -> Result | None:
    """A federated training; None if it diverges. Without a config it uses no codec."""
    torch.manual_seed(0)
    server = rfc.ServerSession(task.first, config, config)
    clients = [rfc.ClientSession(task.first, config, config) for _ in task.shards]
    elements, sizes, results, model = [], [], [], task.first
    for _ in range(rounds):
        server.update(model)
        mean = server.aggregator() if config else rfc.Aggregator(model)
        for i, (client, shard) in enumerate(zip(clients, task.shards, strict=True)):
            held = client.receive(server.send(i)) if config else model
            local = task.train(held, shard)
            if not all(np.isfinite(value).all() for value in local.values()):
                return None
            if not config:
                mean.add_state(local, len(shard))
                sizes.append(sum(value.nbytes for value in local.values()))
                elements.append(sizes[-1] // 4)
                continue
            payload = client.send(local)
            elements.append(rfc.inspect(payload).n_nonzero)
            sizes.append(len(payload))
            server.receive_into(i, payload, mean, len(shard))
        model = mean.result()
        results.append(task.test(model))
    loss, accuracy = (statistics.mean(column) for column in zip(*results[-5:], strict=True))
    return Result(loss, accuracy, statistics.mean(elements), statistics.mean(sizes))


def settings(task: Task) -> dict[str, rfc.CodecConfig | None]:
    """What is compared, by name."""
    n_trained, n_sent = task.n_trained, sum(value.size for value in task.first.values())
    found: dict[str, rfc.CodecConfig | None] = {}
    if n_sent > n_trained:
        share = n_sent / 100 / n_trained  # what a hundredth is if frozen layers count
        found["0.99 of all"] = rfc.CodecConfig(sparsity=1 - share)
    found["0.99"] = rfc.CodecConfig(sparsity=0.99)
    for n in ELEMENTS:
        if n_trained / 100 < n < n_trained:
            found[f"{1 - n / n_trained:.3f}"] = rfc.CodecConfig(sparsity=1 - n / n_trained)
    return {**found, "default": rfc.CodecConfig(), "no codec": None}


def row(seeds: list[int], rounds: int, rank: int | None, name: str) -> dict[str, Any]:
    """All trainings of one setting."""
    torch.set_num_threads(1)
    tasks = [Task(seed, rank) for seed in seeds]
    results = [run(task, rounds, settings(task)[name]) for task in tasks]
    found = [result for result in results if result]

    def of(choose: Callable[[list[float]], float], field: str) -> float | None:
        return choose([getattr(result, field) for result in found]) if found else None

    return {
        "trained": "head" if rank is None else f"LoRA, rank {rank}",
        "parameters": tasks[0].n_trained,
        "sparsity": name,
        "elements of an update": of(lambda v: round(statistics.mean(v)), "n_elements"),
        "bytes of an update": of(lambda v: round(statistics.mean(v)), "n_bytes"),
        "loss": of(statistics.mean, "loss"),
        "greatest loss": of(max, "loss"),
        "accuracy": of(statistics.mean, "accuracy"),
        "least accuracy": of(min, "accuracy"),
        "diverged": len(results) - len(found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    wanted = [(rank, name) for rank in (*RANKS, None) for name in settings(Task(0, rank))]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(row, args.seeds, args.rounds, *one) for one in wanted]
        rows = [job.result() for job in tqdm(jobs)]
    note = (
        f"{CLIENTS} clients, {args.rounds} rounds, seeds {args.seeds}. Loss (cross-entropy) and"
        " accuracy: means of the last five rounds, of the trainings that do not diverge. With the"
        ' head a whole network is sent, the rest of which is frozen; "0.99 of all" counts it, too.'
    )
    print(write_results("adapters", "Adapters, and a head on a frozen network, digits", rows, note))


if __name__ == "__main__":
    main()
