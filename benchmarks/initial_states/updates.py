"""Trains small federations and keeps their models: the data that initial states are fitted on.

    python -m benchmarks.initial_states.updates --out updates/

Two sources that anybody has: scikit-learn's digits (as 16x16 images, shifted at random) and the
source text of Python's standard library. CIFAR-10 is left out on purpose: the figures in
docs/benchmarks.md are measured on it, and nothing may be fitted to what it is judged by.

Each run is one ``.npz`` in the convention of the benchmark's snapshots: ``g{t}|name`` is the global
model after round t, ``l0_{t}|name`` client 0's model, trained in round t from ``g{t-1}``.
"""

from __future__ import annotations

import argparse
import copy
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from tqdm import tqdm

CLIENTS = 10
BATCH = 64
CONTEXT = 64  # bytes of text a Transformer sees

Batches = Callable[[int, torch.Generator], tuple[torch.Tensor, torch.Tensor]]


def digits_batches(classes_per_client: int) -> Batches:
    """Batches of one client: images (64, 1, 16, 16), labels (64,). 10 classes mean IID."""
    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32)[:, None]
    images = functional.interpolate(images, size=(16, 16), mode="bilinear", align_corners=False)
    labels = torch.tensor(data.target)
    pools = []
    for client in range(CLIENTS):
        wanted = [(client * 3 + j) % 10 for j in range(classes_per_client)]
        pools.append(torch.isin(labels, torch.tensor(wanted)).nonzero().ravel())

    def draw(client: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        pool = pools[client]
        index = pool[torch.randint(len(pool), (BATCH,), generator=generator)]
        dx, dy = torch.randint(-2, 3, (2,), generator=generator).tolist()
        return torch.roll(images[index], (dx, dy), dims=(2, 3)), labels[index]

    return draw


def text_batches() -> Batches:
    """Batches of one client: bytes (16, 64) and the bytes that follow them."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    pools = []
    for client in range(CLIENTS):
        text = b"".join(path.read_bytes() for path in files[client::CLIENTS])[:200_000]
        pools.append(torch.tensor(np.frombuffer(text, np.uint8).astype(np.int64)))

    def draw(client: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        pool = pools[client]
        starts = torch.randint(len(pool) - CONTEXT - 1, (16,), generator=generator)
        block = torch.stack([pool[s : s + CONTEXT + 1] for s in starts.tolist()])
        return block[:, :-1], block[:, 1:]

    return draw


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(),
        nn.Linear(256, 10),
    )  # fmt: skip


def cnn(norm: Callable[[int], nn.Module], widths: tuple[int, ...]) -> nn.Module:
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(zip((1, *widths), widths, strict=False)):
        layers += [nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), norm(n_out), nn.ReLU()]
        if i % 2:
            layers.append(nn.MaxPool2d(2))
    side = 16 >> (len(widths) // 2)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * side * side, 10, bias=False))


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 24, 5), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 400), nn.ReLU(), nn.Linear(400, 300),
        nn.ReLU(), nn.Linear(300, 10),
    )  # fmt: skip


class Transformer(nn.Module):
    """A causal byte-level language model of two blocks, width 128."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(256, 128)
        self.place = nn.Embedding(CONTEXT, 128)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(128, 4, 512, 0.0, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(128)
        self.head = nn.Linear(128, 256, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (batch, 256, length) for tokens (batch, length)."""
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.token(tokens) + self.place(torch.arange(length))
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        logits: torch.Tensor = self.head(self.norm(x)).transpose(1, 2)
        return logits


@dataclass(frozen=True)
class Run:
    model: Callable[[], nn.Module]
    batches: Callable[[], Batches]
    learning_rate: float
    momentum: float | None  # None: Adam
    rounds: int
    steps: int = 24  # minibatches of one client in one round


RUNS = {
    "mlp_noniid": Run(mlp, lambda: digits_batches(4), 0.02, 0.9, 8),
    "mlp_late": Run(mlp, lambda: digits_batches(4), 0.02, 0.9, 25),
    "cnn_batchnorm_noniid": Run(
        lambda: cnn(nn.BatchNorm2d, (16, 32, 64, 64, 128, 128)),
        lambda: digits_batches(4), 0.01, 0.9, 8,
    ),
    "cnn_groupnorm_iid": Run(
        lambda: cnn(lambda n: nn.GroupNorm(8, n), (16, 32, 64, 96)),
        lambda: digits_batches(10), 0.05, 0.0, 12,
    ),
    "lenet_noniid": Run(lenet, lambda: digits_batches(2), 0.02, 0.9, 10),
    "transformer_sgd": Run(Transformer, text_batches, 0.05, 0.9, 6, steps=12),
    "transformer_adam": Run(Transformer, text_batches, 1e-3, None, 6, steps=12),
}  # fmt: skip


def train(run: Run, seed: int = 0) -> dict[str, np.ndarray]:
    """Federated averaging; the snapshots of the last four rounds."""
    torch.manual_seed(seed)
    server, draw = run.model(), run.batches()
    generator = torch.Generator().manual_seed(seed)
    snapshots: dict[str, np.ndarray] = {}

    def keep(prefix: str, state: dict[str, torch.Tensor]) -> None:
        snapshots.update({f"{prefix}|{k}": v.detach().numpy().copy() for k, v in state.items()})

    for t in tqdm(range(1, run.rounds + 1), leave=False):
        kept = t > run.rounds - 4
        if kept and t == run.rounds - 3:
            keep(f"g{t - 1}", server.state_dict())
        total: dict[str, torch.Tensor] = {}
        for client in range(CLIENTS):
            model = copy.deepcopy(server).train()
            optimizer = (
                torch.optim.Adam(model.parameters(), run.learning_rate)
                if run.momentum is None
                else torch.optim.SGD(model.parameters(), run.learning_rate, run.momentum)
            )
            for _ in range(run.steps):
                inputs, targets = draw(client, generator)
                loss = functional.cross_entropy(model(inputs), targets)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            state = model.state_dict()
            if client == 0 and kept:
                keep(f"l0_{t}", state)
            for name, value in state.items():
                total[name] = total.get(name, torch.zeros(())) + value.double() / CLIENTS
        server.load_state_dict({k: v.to(server.state_dict()[k].dtype) for k, v in total.items()})
        if kept:
            keep(f"g{t}", server.state_dict())
    print(f"last loss of the last client: {loss.item():.3f}")
    return snapshots


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for the .npz files")
    parser.add_argument("--only", choices=RUNS, nargs="*", help="runs to make (default: all)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in args.only or RUNS:
        print(name)
        np.savez(args.out / f"{name}.npz", **train(RUNS[name]))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
