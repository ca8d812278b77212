"""Train federations whose models the byte benchmarks use, in addition to the paper's CNN.

    python -m benchmarks.snapshots --out snapshots/ [--data FOLDER_WITH_CIFAR10] [--only NAME ...]

Writes one ``.npz`` per run; ``benchmarks/small_federation.py`` describes its contents. A run takes
a few minutes on one core. Text is the source of packages of Python's standard library, so it
depends on the version of Python. Images are CIFAR-10, in a form that ``benchmarks.federated``
reads; runs on images are left out without ``--data``. The trained tables are fitted to other
networks and data, those of ``benchmarks/trained_tables``.
"""

from __future__ import annotations

import argparse
import sysconfig
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.federated.data import load
from benchmarks.federated.models import build
from benchmarks.federated.splits import split
from benchmarks.small_federation import Batches, Run, text_batches, train

CONTEXT = 96
WIDTH = 160
PACKAGES = (  # one client each
    ("asyncio", "concurrent", "multiprocessing"),
    ("email", "html", "http", "urllib"),
    ("xml", "xmlrpc", "json", "ctypes"),
    ("unittest", "logging", "importlib", "distutils"),
)


class Block(nn.Module):
    """Attention and a feed-forward network, pre-normalised, without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.project = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            part.view(batch, length, 4, WIDTH // 4).transpose(1, 2)
            for part in self.attention(self.norm1(x)).split(WIDTH, 2)
        )
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(seen.transpose(1, 2).reshape(batch, length, WIDTH))
        result: torch.Tensor = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return result


class Decoder(nn.Module):
    """A byte-level language model: four blocks, width 160, output tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(256, WIDTH)
        self.place = nn.Embedding(CONTEXT, WIDTH)
        for table in (self.token, self.place):
            nn.init.normal_(table.weight, std=0.02)
        self.blocks = nn.Sequential(*(Block() for _ in range(4)))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (batch, 256, length) for tokens (batch, length)."""
        x = self.token(tokens) + self.place(torch.arange(tokens.shape[1]))
        logits = functional.linear(self.norm(self.blocks(x)), self.token.weight)
        return logits.transpose(1, 2)


def package_batches() -> Batches:
    library = Path(sysconfig.get_paths()["stdlib"])
    files = [
        [p for name in own for p in sorted((library / name).rglob("*.py"))] for own in PACKAGES
    ]
    return text_batches(files, 1_000_000, 12, CONTEXT)


def image_batches(folder: Path, clients: int) -> Batches:
    """CIFAR-10, four classes a client, in batches of 64."""
    data = load("cifar10", folder)
    shards = split("classes:4", data.labels, clients, seed=0)
    images = torch.from_numpy(data.images.astype(np.float32))
    labels = torch.from_numpy(data.labels)

    def draw(client: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        pool = torch.from_numpy(shards[client])
        index = pool[torch.randint(len(pool), (64,), generator=generator)]
        return images[index], labels[index]

    return draw


def image_model(name: str) -> nn.Module:
    return build(name, (3, 32, 32), 10, seed=0)


def runs(data: Path | None) -> dict[str, Run]:
    """All runs by name; those on images only if their folder is given."""
    text = partial(Run, Decoder, package_batches, steps=12, clients=len(PACKAGES))
    found = {
        "transformer_adam": text(1e-3, None, 8),
        "transformer_sgd": text(0.1, 0.9, 8),
        "transformer_adam_loop_0.99": text(1e-3, None, 8, sparsity=0.99),
        "transformer_adam_loop_0.95": text(1e-3, None, 8, sparsity=0.95),
        # 64 of 4,096 elements, the density of SparseLoCo (arXiv:2508.15706).
        "transformer_adam_loop_0.984375": text(1e-3, None, 8, sparsity=0.984375),
        "transformer_sgd_loop_0.99": text(0.1, 0.9, 8, sparsity=0.99),
    }
    if data is not None:
        batches = partial(image_batches, data, 10)
        small = partial(Run, partial(image_model, "groupnorm_cnn"), batches, 0.05, 0.9, 20, 16)
        paper = partial(Run, partial(image_model, "resfed_cnn"), batches, 0.01, 0.9, 7, 6, 6)
        found |= {
            "groupnorm_cnn": small(),
            "groupnorm_cnn_loop_0.95": small(sparsity=0.95),
            "groupnorm_cnn_loop_0.99": small(sparsity=0.99),
            "resfed_cnn_loop_0.99": paper(sparsity=0.99),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for the .npz files")
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10")
    parser.add_argument("--only", nargs="*", help="names of runs (default: all)")
    args = parser.parse_args()
    known = runs(args.data)
    if unknown := set(args.only or ()) - set(known):
        parser.error(f"no such run, or it needs --data: {', '.join(sorted(unknown))}")
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in args.only or known:
        print(name, flush=True)
        np.savez(args.out / f"{name}.npz", **train(known[name]))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
