"""Trains small federations and keeps snapshots of their models.

    python -m benchmarks.initial_states.make_updates --out updates/

The entropy coder's initial probability states are fitted on the differences between these
snapshots. The data are scikit-learn's bundled digits and the source text of Python's standard
library: anybody has both, nothing is downloaded. CIFAR-10 is left out on purpose, because the
benchmark reports on it and nothing may be fitted to the data it is judged by.

The runs differ in what shapes an update: architecture (MLP, CNN with BatchNorm or GroupNorm, wide
fully connected layers, Transformer), local optimizer (SGD with and without momentum, Adam), how
unlike the clients' data are, and how far training has come.

Each phase of a run is one file, ``{run}_r{T}.npz``, where T is its last round. ``g{t}|name`` is a
tensor of the global model after round t, for the rounds T-4 to T; ``l0_{t}|name`` is client 0's
model, trained in round t from the global model of round t-1, for the rounds T-3 to T. Names are
those of ``state_dict()``. Parameters are float32, BatchNorm's counters int64.

Seeds are fixed and one thread is used. The text follows the Python version that runs this.
"""

from __future__ import annotations

import argparse
import copy
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from tqdm import tqdm

SEED = 0
KEPT_LOCALS = 4  # rounds of a phase with client 0's model; the globals start one round earlier
COPIES = 8  # jittered copies of each training digit
TEST_DIGITS = 297  # of 1797
CONTEXT = 64  # bytes the Transformer sees
TEXT_CLIENTS = 6
TEXT_BYTES = 400_000  # of one client, at most

Examples = tuple[torch.Tensor, torch.Tensor]  # inputs, targets
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Data:
    clients: list[Examples]
    test: Examples


def jitter(images: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Images (n, 1, h, w) at size x size, each under a small random affine map."""
    noise = torch.rand(len(images), 2, 3, generator=generator) * 2 - 1
    theta = torch.eye(2, 3) + noise * torch.tensor([0.15, 0.15, 0.12])
    grid = functional.affine_grid(theta, [len(images), 1, size, size], align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def digits(size: int, classes_per_client: int, n_clients: int = 10) -> Data:
    """Digits at size x size; client c holds some consecutive classes from c on (10: IID)."""
    generator = torch.Generator().manual_seed(SEED)
    bunch = load_digits()
    images = torch.tensor(bunch.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=generator)
    test, train = order[:TEST_DIGITS], order[TEST_DIGITS:].repeat(COPIES)
    test_images = functional.interpolate(
        images[test], size=size, mode="bilinear", align_corners=False
    )
    train_images, train_labels = jitter(images[train], size, generator), labels[train]

    shares: list[list[torch.Tensor]] = [[] for _ in range(n_clients)]
    for digit in range(10):
        holders = [c for c in range(n_clients) if (digit - c) % 10 < classes_per_client]
        members = (train_labels == digit).nonzero().ravel()
        members = members[torch.randperm(len(members), generator=generator)]
        for client, part in zip(holders, members.tensor_split(len(holders)), strict=True):
            shares[client].append(part)
    pools = [torch.cat(parts) for parts in shares]
    return Data([(train_images[p], train_labels[p]) for p in pools], (test_images, labels[test]))


def stdlib_text() -> Data:
    """Windows of bytes and the bytes that follow; clients and test have different source files."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))

    def windows(part: int) -> Examples:
        text = b"".join(path.read_bytes() for path in files[part :: TEXT_CLIENTS + 1])[:TEXT_BYTES]
        tokens = torch.tensor(np.frombuffer(text, np.uint8).astype(np.int64))
        blocks = tokens[: len(tokens) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
        return blocks[:, :-1], blocks[:, 1:]

    inputs, targets = windows(TEXT_CLIENTS)
    return Data([windows(c) for c in range(TEXT_CLIENTS)], (inputs[:500], targets[:500]))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 256),
        nn.ReLU(),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def conv(n_in: int, n_out: int, norm: nn.Module) -> list[nn.Module]:
    return [nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), norm, nn.ReLU()]


def cnn_batchnorm() -> nn.Module:
    """For 16x16 images."""
    return nn.Sequential(
        *conv(1, 16, nn.BatchNorm2d(16)),
        nn.MaxPool2d(2),
        *conv(16, 32, nn.BatchNorm2d(32)),
        *conv(32, 64, nn.BatchNorm2d(64)),
        nn.MaxPool2d(2),
        *conv(64, 128, nn.BatchNorm2d(128)),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 128, bias=False),
        nn.ReLU(),
        nn.Linear(128, 10, bias=False),
    )


def cnn_groupnorm() -> nn.Module:
    """For 16x16 images."""
    return nn.Sequential(
        *conv(1, 24, nn.GroupNorm(8, 24)),
        nn.MaxPool2d(2),
        *conv(24, 48, nn.GroupNorm(8, 48)),
        nn.MaxPool2d(2),
        *conv(48, 80, nn.GroupNorm(8, 80)),
        *conv(80, 112, nn.GroupNorm(8, 112)),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(448, 10),
    )


def lenet() -> nn.Module:
    """For 32x32 images; nearly all parameters are in the fully connected layers."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 500),
        nn.ReLU(),
        nn.Linear(500, 200),
        nn.ReLU(),
        nn.Linear(200, 10),
    )


class Transformer(nn.Module):
    """A causal byte-level language model: two pre-norm blocks of width 128."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(256, 128)
        self.position = nn.Embedding(CONTEXT, 128)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(128, 4, 512, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(128)
        self.head = nn.Linear(128, 256, bias=False)
        for embedding in (self.token, self.position):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (n, 256, length) for bytes (n, length)."""
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.token(tokens) + self.position(torch.arange(length))
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        logits: torch.Tensor = self.head(self.norm(x))
        return logits.transpose(1, 2)


@dataclass(frozen=True)
class Run:
    model: Callable[[], nn.Module]
    data: Callable[[], Data]
    optimizer: Callable[[Any], torch.optim.Optimizer]  # made anew by every client in every round
    phases: tuple[int, ...] = (8,)  # the last round of each phase to keep
    batch: int = 64
    steps: int = 20  # minibatches of a client in a round, at most one epoch


def sgd(lr: float, momentum: float = 0.9) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr, momentum)


def adam(lr: float) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.Adam(parameters, lr)


RUNS = {
    "mlp_noniid": Run(mlp, lambda: digits(8, 4), sgd(0.05), phases=(8, 25)),
    "cnn_batchnorm_noniid": Run(cnn_batchnorm, lambda: digits(16, 4), sgd(0.02)),
    "cnn_groupnorm_iid": Run(cnn_groupnorm, lambda: digits(16, 10), sgd(0.05, 0.0), phases=(8, 25)),
    "lenet_noniid": Run(lenet, lambda: digits(32, 3), sgd(0.03), phases=(8, 25)),
    "transformer_sgd": Run(Transformer, stdlib_text, sgd(0.05), batch=32),
    "transformer_adam": Run(Transformer, stdlib_text, adam(1e-3), batch=32),
}


def train_client(
    server: nn.Module, examples: Examples, run: Run, generator: torch.Generator
) -> State:
    """One client's model after its local training."""
    model = copy.deepcopy(server).train()
    optimizer = run.optimizer(model.parameters())
    inputs, targets = examples
    order = torch.randperm(len(inputs), generator=generator)[: run.steps * run.batch]
    for index in torch.split(order, run.batch):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs[index]), targets[index])
        torch.autograd.backward(loss)
        optimizer.step()
    return model.state_dict()


def average(states: list[State]) -> State:
    """The unweighted mean, in the type of each tensor."""
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(like.dtype)
        for name, like in states[0].items()
    }


@torch.no_grad()
def evaluate(model: nn.Module, test: Examples) -> tuple[float, float]:
    """Mean loss and accuracy."""
    inputs, targets = test
    logits = model.eval()(inputs)
    accuracy = (logits.argmax(1) == targets).double().mean()
    return functional.cross_entropy(logits, targets).item(), accuracy.item()


def train(name: str, run: Run, out: Path) -> None:
    """Federated averaging; writes a file after the last round of each phase."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    data, server = run.data(), run.model()
    n_parameters = sum(p.numel() for p in server.parameters())
    kept: dict[str, State] = {}
    start = time.perf_counter()
    loss, accuracy = evaluate(server, data.test)
    tqdm.write(f"{name}: {n_parameters} parameters, untrained: {loss:.3f}, {accuracy:.1%}")
    progress = tqdm(range(1, max(run.phases) + 1), desc=name, leave=False)
    for t in progress:
        locals_ = [train_client(server, examples, run, generator) for examples in data.clients]
        server.load_state_dict(average(locals_))
        kept[f"g{t}"], kept[f"l0_{t}"] = copy.deepcopy(server.state_dict()), locals_[0]
        loss, accuracy = evaluate(server, data.test)
        progress.set_postfix(loss=f"{loss:.3f}", accuracy=f"{accuracy:.1%}")
        if t in run.phases:
            prefixes = [f"g{i}" for i in range(t - KEPT_LOCALS, t + 1)]
            prefixes += [f"l0_{i}" for i in range(t - KEPT_LOCALS + 1, t + 1)]
            arrays: dict[str, Any] = {
                f"{prefix}|{tensor}": value.numpy()
                for prefix in prefixes
                for tensor, value in kept[prefix].items()
            }
            np.savez(out / f"{name}_r{t}.npz", **arrays)
            seconds = time.perf_counter() - start
            tqdm.write(f"{name}_r{t}.npz: loss {loss:.3f}, {accuracy:.1%}, {seconds:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for the .npz files")
    parser.add_argument("--only", choices=RUNS, nargs="+", help="runs to make (default: all)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in args.only or RUNS:
        train(name, RUNS[name], args.out)


if __name__ == "__main__":
    main()
