"""Small federated trainings that produce models, with or without the codec in the loop.

A run is a mapping with the names of the benchmarks' snapshots:

- ``g{t}|name``: the model that all clients hold after round t;
- ``l0_{t}|name``: what client 0 sends in round t, trained from ``g{t-1}``. With the codec in the
  loop it includes what earlier uplinks left out (error feedback, the default for uplinks);
- ``s{t}|name``, only with the codec in the loop: what the server sends in round t, the mean of the
  recovered uplinks. ``g{t}`` is the model that clients recover from it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from benchmarks.common import Model
from resfed_codec.codec.update import encode_and_recover

KEPT_ROUNDS = 4  # the last ones

Batches = Callable[[int, torch.Generator], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Run:
    """A federation: its network, its data, and how it is trained."""

    model: Callable[[], nn.Module]
    batches: Callable[[], Batches]
    learning_rate: float
    momentum: float | None  # None: Adam
    rounds: int
    steps: int = 24  # minibatches of one client in one round
    clients: int = 10
    sparsity: float | None = None  # of the codec in the loop, both directions; None: no codec


def text_batches(files: Sequence[Sequence[Path]], limit: int, batch: int, context: int) -> Batches:
    """Batches of bytes (batch, context) and the next bytes; client i has ``files[i]``."""
    pools = []
    for own in files:
        text = b"".join(path.read_bytes() for path in own)[:limit]
        pools.append(torch.tensor(np.frombuffer(text, np.uint8).astype(np.int64)))

    def draw(client: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        pool = pools[client]
        starts = torch.randint(len(pool) - context - 1, (batch,), generator=generator)
        block = torch.stack([pool[s : s + context + 1] for s in starts.tolist()])
        return block[:, :-1], block[:, 1:]

    return draw


def train(run: Run, seed: int = 0) -> dict[str, np.ndarray]:
    """Federated averaging; returns the snapshots of the last ``KEPT_ROUNDS`` rounds."""
    torch.manual_seed(seed)
    server, draw = run.model(), run.batches()
    generator = torch.Generator().manual_seed(seed)
    snapshots: dict[str, np.ndarray] = {}
    left_out: list[Model] = [{} for _ in range(run.clients)]

    def keep(prefix: str, model: Model) -> None:
        snapshots.update({f"{prefix}|{k}": v.copy() for k, v in model.items()})

    for t in tqdm(range(1, run.rounds + 1), leave=False):
        kept = t > run.rounds - KEPT_ROUNDS
        held = _arrays(server)
        if kept and t == run.rounds - KEPT_ROUNDS + 1:
            keep(f"g{t - 1}", held)
        total = {name: np.zeros(value.shape) for name, value in held.items()}
        for client in range(run.clients):
            sent, loss = _train_client(run, server, client, draw, generator)
            arrived = sent
            if run.sparsity is not None:
                for name, value in left_out[client].items():
                    sent[name] = sent[name] + value
                arrived = _through_codec(sent, held, run.sparsity)
                left_out[client] = {
                    n: v - arrived[n] for n, v in sent.items() if v.dtype == np.float32
                }
            if client == 0 and kept:
                keep(f"l0_{t}", sent)
            for name, value in arrived.items():
                total[name] += value.astype(np.float64) / run.clients
        mean = {name: value.astype(held[name].dtype) for name, value in total.items()}
        if run.sparsity is not None:
            if kept:
                keep(f"s{t}", mean)
            mean = _through_codec(mean, held, run.sparsity)
        if kept:
            keep(f"g{t}", mean)
        for name, value in server.state_dict().items():
            value.copy_(torch.from_numpy(mean[name]))
    print(f"last loss of the last client: {loss:.3f}")
    return snapshots


def _arrays(model: nn.Module) -> Model:
    return {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}


def _train_client(
    run: Run, server: nn.Module, client: int, draw: Batches, generator: torch.Generator
) -> tuple[Model, float]:
    """The client's model after a round, and its last loss."""
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
    return _arrays(model), loss.item()


def _through_codec(state: Model, held: Model, sparsity: float) -> Model:
    # The sparsity budget would damage these.
    statistics = [name for name in held if "running_" in name]
    recovered = encode_and_recover(state, held, sparsity=sparsity, exclude=statistics)[1]
    return cast(Model, recovered)
