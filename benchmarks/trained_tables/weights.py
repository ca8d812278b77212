"""Train small networks and store their weights step by step, the data for the gaps of changes.

    python -m benchmarks.trained_tables.weights --out weights/

Each run is one ``.npz`` with float32 weights ``{i}|name``, before and after a step of the optimizer
for i = 0, 1, after training at a larger learning rate. The data are those of ``updates.py``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from benchmarks.small_federation import Batches
from benchmarks.trained_tables.networks import Gru, NGrams, Transformer
from benchmarks.trained_tables.updates import (
    four_classes,
    four_photo_classes,
    groupnorm_cnn,
    library_batches,
    wide_cnn,
)

FIRST_STEPS, STEPS = 80, 12


class Weights(NamedTuple):
    """A network, its data and the learning rates after the first steps; ``sgd`` or AdamW."""

    model: Callable[[], nn.Module]
    batches: Callable[[], Batches]
    first_rate: float
    rates: tuple[float, ...]
    sgd: bool = False


RUNS = {
    "transformer": Weights(Transformer, library_batches, 1e-3, (1e-7, 1e-6, 1e-5, 1e-4, 1e-3)),
    "ngrams": Weights(NGrams, library_batches, 2e-3, (1e-6, 1e-5, 1e-4)),
    "gru": Weights(Gru, library_batches, 2e-3, (1e-6, 1e-5, 1e-4)),
    "cnn": Weights(groupnorm_cnn, four_classes, 1e-3, (1e-6, 1e-5, 1e-4)),
    "cnn_sgd": Weights(wide_cnn, four_photo_classes, 0.01, (1e-4, 1e-3, 1e-2), sgd=True),
}


def train(run: Weights, rate: float) -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    model, draw = run.model(), run.batches()
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, np.ndarray] = {}

    def step(optimizer: torch.optim.Optimizer) -> None:
        inputs, targets = draw(0, generator)
        loss = functional.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def keep(prefix: int) -> None:
        for name, value in model.named_parameters():
            weights[f"{prefix}|{name}"] = value.detach().numpy().copy()

    for n_steps, lr in ((FIRST_STEPS, run.first_rate), (STEPS, rate)):
        optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(model.parameters(), lr, 0.9)
            if run.sgd
            else torch.optim.AdamW(model.parameters(), lr)
        )
        for _ in range(n_steps):
            step(optimizer)
    keep(0)
    step(optimizer)
    keep(1)
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for the .npz files")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name, run in tqdm(RUNS.items()):
        for rate in run.rates:
            np.savez(args.out / f"{name}_{rate:g}.npz", **train(run, rate))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
