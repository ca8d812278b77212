"""Train small federations and store their models, the data for fitting the initial states.

    python -m benchmarks.initial_states.updates --out updates/

The data are scikit-learn's digits (as 16x16 images, shifted at random) and the source text of
Python's standard library, which need no download. CIFAR-10 is excluded because docs/benchmarks.md
reports figures on it, and nothing may be fitted to test data.

Each run is one ``.npz``; ``benchmarks/small_federation.py`` describes its contents.
"""

from __future__ import annotations

import argparse
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from benchmarks.small_federation import Batches, Run, text_batches, train

CLIENTS = 10
BATCH = 64
CONTEXT = 64  # context length of a Transformer, in bytes


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


def library_batches() -> Batches:
    """Batches of one client: bytes (16, 64) of the library's modules, and the next bytes."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return text_batches([files[i::CLIENTS] for i in range(CLIENTS)], 200_000, 16, CONTEXT)


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


def groupnorm_cnn() -> nn.Module:
    return cnn(lambda n: nn.GroupNorm(8, n), (16, 32, 64, 96))


def iid_digits() -> Batches:
    return digits_batches(10)


def four_classes() -> Batches:
    return digits_batches(4)


# "loop": with the codec in the loop, and with error feedback up.
RUNS = {
    "mlp_noniid": Run(mlp, four_classes, 0.02, 0.9, 8),
    "mlp_late": Run(mlp, four_classes, 0.02, 0.9, 25),
    "cnn_batchnorm_noniid": Run(
        lambda: cnn(nn.BatchNorm2d, (16, 32, 64, 96)), four_classes, 0.01, 0.9, 8, clients=4
    ),
    "cnn_groupnorm_iid": Run(groupnorm_cnn, iid_digits, 0.05, 0.0, 12),
    "lenet_noniid": Run(lenet, lambda: digits_batches(2), 0.02, 0.9, 10),
    "transformer_sgd": Run(Transformer, library_batches, 0.05, 0.9, 6, steps=12, clients=4),
    "transformer_adam": Run(Transformer, library_batches, 1e-3, None, 6, steps=12, clients=4),
    "mlp_loop_0.99": Run(mlp, four_classes, 0.02, 0.9, 15, sparsity=0.99),
    "cnn_groupnorm_loop_0.95": Run(groupnorm_cnn, four_classes, 0.05, 0.9, 12, sparsity=0.95),
    "lenet_loop_0.98": Run(lenet, lambda: digits_batches(2), 0.02, 0.9, 15, sparsity=0.98),
    "transformer_adam_loop_0.99": Run(
        Transformer, library_batches, 1e-3, None, 6, steps=12, clients=4, sparsity=0.99
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for the .npz files")
    parser.add_argument("--only", choices=RUNS, nargs="*", help="runs to make (default: all)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in args.only or RUNS:
        print(name, flush=True)
        np.savez(args.out / f"{name}.npz", **train(RUNS[name]))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
