"""Train small federations and store their models, the data for fitting the trained tables.

    python -m benchmarks.trained_tables.updates --out updates/

The data are scikit-learn's digits (as 16x16 images, shifted at random, or over crops of its two
photographs) and the source text of Python's standard library, which need no download. CIFAR-10 is
excluded because docs/benchmarks.md reports figures on it, and nothing may be fitted to test data.

Each run is one ``.npz``; ``benchmarks/small_federation.py`` describes its contents.
"""

from __future__ import annotations

import argparse
import sysconfig
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits, load_sample_images
from torch import nn
from torch.nn import functional

from benchmarks.small_federation import Batches, Run, text_batches, train
from benchmarks.trained_tables.networks import (
    CONTEXT,
    SIDE,
    Adapters,
    Gru,
    NGrams,
    Transformer,
    cnn,
    eight_groups,
    lenet,
    mlp,
    resnet,
)

CLIENTS = 10
BATCH = 64


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images (1797, 1, SIDE, SIDE) between 0 and 1, and their labels (1797,)."""
    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32)[:, None]
    images = functional.interpolate(images, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return images, torch.tensor(data.target)


def pools_of(labels: torch.Tensor, classes_per_client: int) -> list[torch.Tensor]:
    """Indices of each client's images. 10 classes mean IID."""
    pools = []
    for client in range(CLIENTS):
        wanted = [(client * 3 + j) % 10 for j in range(classes_per_client)]
        pools.append(torch.isin(labels, torch.tensor(wanted)).nonzero().ravel())
    return pools


def digits_batches(classes_per_client: int) -> Batches:
    """Batches of one client: images (64, 1, 16, 16), labels (64,)."""
    images, labels = digits()
    pools = pools_of(labels, classes_per_client)

    def draw(client: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        pool = pools[client]
        index = pool[torch.randint(len(pool), (BATCH,), generator=generator)]
        dx, dy = torch.randint(-2, 3, (2,), generator=generator).tolist()
        return torch.roll(images[index], (dx, dy), dims=(2, 3)), labels[index]

    return draw


def photo_batches(classes_per_client: int) -> Batches:
    """Batches of one client: colored digits over photographs (32, 3, 16, 16), labels (32,)."""
    images, labels = digits()
    pools = pools_of(labels, classes_per_client)
    photos = torch.tensor(np.stack(load_sample_images().images)[:, ::2, ::2] / 255)
    photos = photos.permute(0, 3, 1, 2).float()
    height, width = photos.shape[2:]

    def draw(client: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        pool = pools[client]
        index = pool[torch.randint(len(pool), (BATCH // 2,), generator=generator)]
        n = len(index)
        photo = torch.randint(2, (n,), generator=generator).tolist()
        y = torch.randint(height - SIDE, (n,), generator=generator).tolist()
        x = torch.randint(width - SIDE, (n,), generator=generator).tolist()
        crops = torch.stack(
            [photos[p, :, i : i + SIDE, j : j + SIDE] for p, i, j in zip(photo, y, x, strict=True)]
        )
        color = torch.rand((n, 3, 1, 1), generator=generator)
        return (crops + images[index] * (color - crops)) * 4 - 2, labels[index]

    return draw


def library_batches() -> Batches:
    """Batches of one client: bytes (16, 64) of the library's modules, and the next bytes."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return text_batches([files[i::CLIENTS] for i in range(CLIENTS)], 200_000, 16, CONTEXT)


def groupnorm_cnn() -> nn.Module:
    return cnn(eight_groups, (16, 32, 64, 96))


def batchnorm_cnn() -> nn.Module:
    return cnn(nn.BatchNorm2d, (16, 32, 64, 96))


def wide_cnn() -> nn.Module:
    return cnn(nn.BatchNorm2d, (32, 64, 128, 192), n_channels=3)


def deep_cnn() -> nn.Module:
    return cnn(eight_groups, (16, 16, 32, 32, 64, 64, 96), n_channels=3)


def cnn_5x5() -> nn.Module:
    return cnn(eight_groups, (24, 48, 96), kernel=5, n_channels=3)


def adapters(rank: int) -> nn.Module:
    return Adapters(rank, library_batches(), client=9)


def iid_digits() -> Batches:
    return digits_batches(10)


def four_classes() -> Batches:
    return digits_batches(4)


def four_photo_classes() -> Batches:
    return photo_batches(4)


def iid_photos() -> Batches:
    return photo_batches(10)


BATCHNORM = Run(batchnorm_cnn, four_classes, 0.01, 0.9, 8, clients=4)
GROUPNORM = Run(groupnorm_cnn, four_classes, 0.02, 0.9, 12, clients=4)
WIDE = Run(wide_cnn, four_photo_classes, 0.01, 0.9, 8, steps=16, clients=4)
DEEP = Run(deep_cnn, iid_photos, 0.02, 0.9, 12, steps=16, clients=4)
LARGE_KERNELS = Run(cnn_5x5, four_photo_classes, 0.02, 0.9, 10, steps=16, clients=4)
RESNET = Run(partial(resnet, nn.BatchNorm2d), four_photo_classes, 0.05, 0.9, 10, 16, 4)
TRANSFORMER = Run(Transformer, library_batches, 0.05, 0.9, 6, steps=12, clients=4)
ADAM = replace(TRANSFORMER, learning_rate=1e-3, momentum=None)
NGRAMS = Run(NGrams, library_batches, 1.0, 0.9, 8, steps=24, clients=4)
GRU = Run(Gru, library_batches, 0.5, 0.9, 8, steps=12, clients=4)

# "loop": with the codec in the loop, and with error feedback up. "early": rounds 1 to 4.
RUNS = {
    "mlp_noniid": Run(mlp, four_classes, 0.02, 0.9, 8),
    "mlp_late": Run(mlp, four_classes, 0.02, 0.9, 25),
    "cnn_batchnorm_noniid": BATCHNORM,
    "cnn_groupnorm_iid": Run(groupnorm_cnn, iid_digits, 0.05, 0.0, 12),
    "lenet_noniid": Run(lenet, lambda: digits_batches(2), 0.02, 0.9, 10),
    "transformer_sgd": TRANSFORMER,
    "transformer_adam": ADAM,
    "mlp_loop_0.99": Run(mlp, four_classes, 0.02, 0.9, 15, sparsity=0.99),
    "cnn_groupnorm_loop_0.95": Run(groupnorm_cnn, four_classes, 0.05, 0.9, 12, sparsity=0.95),
    "lenet_loop_0.98": Run(lenet, lambda: digits_batches(2), 0.02, 0.9, 15, sparsity=0.98),
    "transformer_adam_loop_0.99": replace(ADAM, sparsity=0.99),
    "cnn_wide": WIDE,
    "cnn_wide_loop_0.99": replace(WIDE, sparsity=0.99),
    "cnn_wide_early": replace(WIDE, rounds=4),
    "cnn_deep": DEEP,
    "cnn_deep_loop_0.95": replace(DEEP, sparsity=0.95),
    "cnn_5x5": LARGE_KERNELS,
    "cnn_5x5_loop_0.98": replace(LARGE_KERNELS, sparsity=0.98),
    "resnet": RESNET,
    "resnet_loop_0.98": replace(RESNET, sparsity=0.98),
    "resnet_adam": replace(RESNET, learning_rate=1e-3, momentum=None),
    "cnn_batchnorm_late": replace(BATCHNORM, rounds=25),
    "cnn_batchnorm_loop_0.9": replace(BATCHNORM, rounds=12, sparsity=0.9),
    "cnn_batchnorm_loop_0.95": replace(BATCHNORM, rounds=12, sparsity=0.95),
    "cnn_batchnorm_loop_0.99": replace(BATCHNORM, rounds=15, sparsity=0.99),
    "cnn_groupnorm_early": replace(GROUPNORM, rounds=4),
    "cnn_groupnorm_loop_0.9": replace(GROUPNORM, sparsity=0.9),
    "cnn_groupnorm_loop_0.99": replace(GROUPNORM, rounds=15, sparsity=0.99),
    "transformer_sgd_early": replace(TRANSFORMER, rounds=4),
    "transformer_sgd_loop_0.95": replace(TRANSFORMER, sparsity=0.95),
    "transformer_sgd_loop_0.99": replace(TRANSFORMER, rounds=10, sparsity=0.99),
    "transformer_adam_late": replace(ADAM, rounds=20),
    "transformer_adam_loop_0.95": replace(ADAM, sparsity=0.95),
    "lora_4_adam": Run(partial(adapters, 4), library_batches, 2e-3, None, 8, 12, 4),
    "lora_16_sgd": Run(partial(adapters, 16), library_batches, 0.1, 0.9, 8, 12, 4),
    "lora_8_adam_loop_0.9": Run(
        partial(adapters, 8), library_batches, 2e-3, None, 8, 12, 4, sparsity=0.9
    ),
    "ngrams_sgd": NGRAMS,
    "ngrams_adam": replace(NGRAMS, learning_rate=2e-3, momentum=None),
    "ngrams_sgd_loop_0.99": replace(NGRAMS, rounds=12, sparsity=0.99),
    "gru_sgd": GRU,
    "gru_adam_loop_0.98": replace(GRU, learning_rate=2e-3, momentum=None, sparsity=0.98),
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
