"""The training loop: rounds, bytes, checkpoints, one JSON line per round."""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.federated.clients import Clients, make_clients
from benchmarks.federated.config import RunConfig
from benchmarks.federated.data import Data
from benchmarks.federated.methods import Method, State, make
from benchmarks.federated.runs import FILE, Line, append, read_runs
from benchmarks.federated.text import Text

CHECKPOINT_EVERY = 5  # rounds
CHECKPOINT_SECONDS = 60
"""Maximum time between checkpoints."""


def is_finished(folder: Path, config: RunConfig) -> bool:
    """Whether ``folder`` holds all rounds of this training.

    Raises:
        ValueError: It holds another training with the same id.
    """
    found = read_runs(folder).get(config.id)
    if found is None:
        return False
    if json.dumps(found.config.as_dict()) != json.dumps(config.as_dict()):
        raise ValueError(
            f"{folder / FILE}: {config.id} is of another configuration; name another folder"
        )
    return found.is_finished


def run(
    config: RunConfig,
    data: Data | Text,
    folder: Path,
    stamp: dict[str, str],
    *,
    device: str = "cpu",
    threads: int = 1,
    deadline: float = float("inf"),
    on_round: Callable[[Line], None] = lambda line: None,
) -> bool:
    """Train, and append a header line and one line per round to ``folder``'s ``runs.jsonl``.

    ``accuracy``, or ``loss`` of a language model, is that of the clients' model after the round
    (client 0's if they differ; a method's docstring names any other model).
    ``accuracy_recomputed`` is that of the same model with BatchNorm's statistics recomputed from
    training images (:meth:`Trainer.recomputed`), if it has any. ``up`` and ``down`` are the bytes
    of all clients in this round. A method may add fields.

    A stopped run continues from its last checkpoint and produces the same lines as an uninterrupted
    one. A checkpoint is a pickle in ``folder``: never use one from an untrusted source.

    Args:
        data: All of the data set; the run takes its subset.
        threads: Number of clients that train in parallel. The lines do not depend on it.
        stamp: Machine, versions and so on, for the header.
        deadline: The ``time.time()`` after which the run stops before the next round.
        on_round: Called with every line, including those of earlier processes.

    Returns:
        Whether all rounds are done.
    """
    if is_finished(folder, config):
        return True
    if time.time() >= deadline:
        return False
    checkpoint = folder / f"{config.id}.checkpoint"
    clients = make_clients(config, data, device, threads)
    method: Method
    lines: list[Line]
    found = read_runs(folder).get(config.id)
    if found and checkpoint.exists():
        lines, method, memory = pickle.loads(checkpoint.read_bytes())
        clients.remember(memory)
        written = found.rounds
    else:
        append(folder, config.id, {**stamp, **clients.about(), "config": config.as_dict()})
        first = clients.state()
        method = make(config.method, config.options, first, config.clients, config.seed)
        lines, written = [], {}

    def keep(line: Line) -> None:
        """Write a line unless the file already has it from before a stop."""
        if written.get(line["round"]) != line:
            append(folder, config.id, line)
        on_round(line)

    for line in lines:
        keep(line)
    saved = time.monotonic()
    while len(lines) < config.rounds:
        if time.time() >= deadline:
            _save(checkpoint, (lines, method, clients.memory()))
            return False
        line = _round(len(lines) + 1, clients, method)
        lines.append(line)
        keep(line)
        is_due = time.monotonic() - saved > CHECKPOINT_SECONDS
        if (is_due or len(lines) % CHECKPOINT_EVERY == 0) and len(lines) < config.rounds:
            _save(checkpoint, (lines, method, clients.memory()))
            saved = time.monotonic()
    checkpoint.unlink(missing_ok=True)
    return True


def _round(number: int, clients: Clients, method: Method) -> Line:
    """Run a round: clients train and send; the server averages, weighted by examples, and sends."""
    begin = method.begin() if number == 1 else [0]
    bytes_up = 0
    mean: dict[str, Any] = {}
    examples = sum(clients.weights)
    trained = clients.train(number, method.held)
    for client, (local, weight) in enumerate(zip(trained, clients.weights, strict=True)):
        recovered, n_bytes = method.up(client, local)
        bytes_up += n_bytes
        for name, value in recovered.items():
            mean[name] = mean.get(name, 0.0) + value.astype(np.float64) * (weight / examples)
    new: State = {name: value.astype(np.float32) for name, value in mean.items()}
    bytes_down = sum(begin) + sum(method.down(new))
    found = clients.test(method.tested)
    return {"round": number, **found, "up": bytes_up, "down": bytes_down, **method.notes()}


def _save(path: Path, content: object) -> None:
    """Write a file atomically."""
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("wb") as file:
        pickle.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
