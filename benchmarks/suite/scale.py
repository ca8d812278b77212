"""Time and bytes against the number of parameters, and their fixed parts."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks.peers import OURS
from benchmarks.peers.base import Floats, LossyPeer, Turn, Update
from benchmarks.peers.ours import Ours
from benchmarks.peers.tune import error_of, tune
from benchmarks.suite.timing import time_interleaved
from benchmarks.updates import Source, short

TITLE = "Time and bytes against the number of parameters"
PEER_BYTES = 44
"""Memory for each parameter while a peer runs: three models and the largest peer's own memory."""
IN_PLACE = f"{OURS}, in place"
COPY, SUB = "copy of the model", "torch.sub(state, reference)"
NOTE = """\
Synthetic models (`resfed_codec.cli.bench.synthetic_update`, like a Transformer). Peers are tuned to
our error at sparsity 0.99, on the first tensor (of up to 4.7 M parameters); "error" is that of the
whole model. Times in milliseconds, all codecs in turn, one thread unless the name says otherwise.
The times of a plain copy of the model, and of torch.sub into an existing array, are in the column
of encoding."""


@dataclass(frozen=True)
class Limits:
    """Limits for peers: seconds of a turn, and its memory in GB (10^9 bytes)."""

    turn_s: float
    gb: float


class Memory:
    """The baselines: a plain copy of a model, and torch.sub if torch is installed."""

    def __init__(self, update: Update) -> None:
        self._update = update
        self.out: Floats = {name: np.zeros_like(value) for name, value in update.state.items()}

    def copy(self) -> Turn:
        begin = time.perf_counter()
        for name, value in self._update.state.items():
            np.copyto(self.out[name], value)
        return self._turn(time.perf_counter() - begin)

    def subtract(self) -> Turn:
        import torch

        torch.set_num_threads(1)
        begin = time.perf_counter()
        for name, value in self._update.state.items():
            reference, out = self._update.reference[name], self.out[name]
            torch.sub(
                torch.from_numpy(value), torch.from_numpy(reference), out=torch.from_numpy(out)
            )
        return self._turn(time.perf_counter() - begin)

    def _turn(self, seconds: float) -> Turn:
        return Turn(0, seconds, math.nan, self.out)


def measure(
    sizes: Sequence[int],
    sparsities: Sequence[float],
    peers: Sequence[LossyPeer],
    turns: int,
    threads: int,
    limits: Limits,
    left_out: list[str],
) -> list[dict[str, Any]]:
    """A row for each codec, size and sparsity; peers only at 0.99.

    Appends the peers that exceed the limits at a size to ``left_out``.
    """
    per_element: dict[str, float] = {}
    rows = []
    for n_elems in sizes:
        update = Source(n_elems=n_elems).load()
        memory = Memory(update)
        tuned: dict[LossyPeer, float] = {}
        if 0.99 in sparsities:
            here = _within(limits, peers, per_element, n_elems, left_out)
            tuned = _tuned(here, update, left_out)
        for sparsity in sparsities:
            contestants: dict[str, partial[Turn]] = {COPY: partial(memory.copy)}
            if find_spec("torch") is not None:
                contestants[SUB] = partial(memory.subtract)
            ours = [Ours(), Ours(target=memory.out)]
            ours += [Ours(threads, target=memory.out)] if threads > 1 else []
            results: dict[str, tuple[int | None, float | None]] = dict.fromkeys(
                contestants, (None, None)
            )
            for peer in [*ours, *(tuned if sparsity == 0.99 else [])]:
                knob = tuned.get(peer, -math.log2(1 - sparsity))
                first = peer.turn(update, knob)
                per_element[peer.name] = (first.encode_s + first.decode_s) / update.n_elems
                results[peer.name] = first.n_bytes, error_of(update, first)
                del first
                contestants[peer.name] = partial(peer.turn, update, knob)
            times = time_interleaved(contestants, turns, f"{short(n_elems)}, {sparsity:g}")
            rows += [
                {
                    "parameters": update.n_elems,
                    "sparsity": sparsity,
                    "peer": name,
                    "bytes": n_bytes,
                    "error": error,
                    **times[name],
                    "encode ns per parameter": 1e6 * times[name]["encode ms"] / update.n_elems,
                }
                for name, (n_bytes, error) in results.items()
            ]
        for peer in peers:
            peer.close()
    return rows


def _within(
    limits: Limits,
    peers: Sequence[LossyPeer],
    per_element: dict[str, float],
    n_elems: int,
    left_out: list[str],
) -> list[LossyPeer]:
    """The peers within the limits, if their time per element stays the same."""
    here = []
    for peer in peers:
        seconds = per_element.get(peer.name, 0) * n_elems
        gigabytes = PEER_BYTES * n_elems / 1e9
        if seconds > limits.turn_s or gigabytes > limits.gb:
            need = f"{seconds:.0f} s a turn, {gigabytes:.0f} GB"
            left_out.append(f"{peer.name}, {short(n_elems)}: may take {need}")
        else:
            here.append(peer)
    return here


def _tuned(
    peers: Sequence[LossyPeer], update: Update, left_out: list[str]
) -> dict[LossyPeer, float]:
    """Knobs at our error at sparsity 0.99, tuned on the first tensor of the update."""
    first = update.first_tensor()
    error = error_of(first, Ours().turn(first, -math.log2(0.01)))
    knobs = {}
    for peer in peers:
        try:
            knobs[peer] = tune(peer, first, error).knob
        except ValueError as reason:
            left_out.append(f"{peer.name}, {short(update.n_elems)}: {reason}")
    return knobs


def fit(rows: Sequence[dict[str, Any]], peer: str, column: str) -> tuple[float, float]:
    """(fixed, per parameter) of ``column``: the line with the least squared relative error."""
    points = [
        (r["parameters"], r[column]) for r in rows if r["peer"] == peer and r["sparsity"] == 0.99
    ]
    n, y = np.array(points, dtype=np.float64).T
    system = np.stack([1 / y, n / y], axis=1)
    (fixed, slope), *_ = np.linalg.lstsq(system, np.ones(len(points)), rcond=None)
    return float(fixed), float(slope)


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Our times and bytes at sparsity 0.99, one thread, and those of a copy of the model."""
    table = []
    for n_elems in dict.fromkeys(r["parameters"] for r in rows):
        found = {r["peer"]: r for r in rows if (r["parameters"], r["sparsity"]) == (n_elems, 0.99)}
        table.append(
            {
                "parameters": n_elems,
                "encode, ms": found[OURS]["encode ms"],
                "decode to new arrays, ms": found[OURS]["decode ms"],
                "decode in place, ms": found[IN_PLACE]["decode ms"],
                "copy of the model, ms": found[COPY]["encode ms"],
                "payload, bytes": found[OURS]["bytes"],
            }
        )
    return table
