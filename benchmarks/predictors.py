"""Predictors on a real federated run: residual energy, payload bytes and error in each round.

    python -m benchmarks.predictors --snapshots fedavg_cnn.npz

The snapshots are the global models g4 ... g8 and the models l0_5 ... l0_8 that client 0 trained
from them (l0_5 from g4). Both ends start from g4. In round t the client sends l0_t, then the server
sends g_t. "open" predicts from the exact models, "closed" from the models recovered from payloads
of the same sparsity in both directions; the other direction uses its simplest rule ("previous"
down, "global" up). As in sessions, "adaptive" down is the same for all clients, so it predicts only
from global models.

A row of the table has rounds 5 to 8. Energies are sums of squares over the matrices (two or more
dimensions), in float64, relative to those of the model minus the newest global model that both ends
hold (up: the one that the client trained from; down: the previous one). Error is the same ratio for
the model minus the recovered one. Bytes are those of whole payloads, including vectors and link.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import resfed_codec as rfc
from benchmarks.common import Model, is_matrix, load_snapshots, write_results
from resfed_codec.stream.link import Link, version_digest
from resfed_codec.stream.predictor import predictor_of
from resfed_codec.stream.update_encoder import UpdateEncoder
from resfed_codec.stream.versions import Version, at_place
from resfed_codec.tensors.layout import read_model
from resfed_codec.tensors.memory import Memory, on_host

RULES = {
    "up": ("global", "previous", "res1", "res2", "adaptive"),
    "down": ("previous", "res1", "res2", "adaptive"),
}  # res0 is "previous"
SIMPLEST = {"up": "global", "down": "previous"}


@dataclass
class Direction:
    """One direction's encoder and the versions it may predict from, newest first."""

    name: str
    encoder: UpdateEncoder
    history: list[Version] = field(default_factory=list)

    def push(self, model: list[Memory], digest: int) -> None:
        parent = self.history[0] if self.history else None
        self.history.insert(0, Version(len(self.history), digest, model, parent))


def squares(arrays: Sequence[Memory], others: Sequence[Memory]) -> float:
    """sum (a - b)^2 over the matrices, in float64."""
    return sum(
        float(np.square(a.astype(np.float64) - b).sum())
        for a, b in zip(map(on_host, arrays), map(on_host, others), strict=True)
        if is_matrix(a)
    )


def prediction(link: Link, own: list[Version], others: list[Version]) -> list[Memory]:
    """What a link's coefficients make of the history."""
    newest = own[0].model
    assert newest is not None
    result: list[Memory] = []
    for i in range(len(newest)):
        terms = link.per_tensor.get(i, link.terms)
        total = np.zeros(newest[i].shape)
        for place, numerator in enumerate(terms):
            if numerator:
                model = at_place(place, own[: link.n_own], others[: link.n_other]).model
                assert model is not None
                total += numerator / 2**link.coef_log2 * on_host(model[i])
        result.append(total)
    return result


def run(
    snapshots: dict[str, Model], rules: dict[str, str], sparsity: float, *, closed: bool
) -> list[dict[str, Any]]:
    """One pass over the rounds: of each, what both directions measured."""
    layout, _ = read_model(snapshots["g4"], "g4")
    config = rfc.CodecConfig(sparsity=sparsity, dense=())
    up, down = (
        Direction(name, UpdateEncoder(layout, config, predictor_of(rules[name]), two_way=two_way))
        for name, two_way in (("up", True), ("down", rules["down"] in ("res1", "res2")))
    )
    for direction in (up, down):
        direction.push(layout.model_of(snapshots["g4"], "g4"), 0)
    rows = []
    for number in range(5, 9):
        row: dict[str, Any] = {}
        for direction, other, name in ((up, down, f"l0_{number}"), (down, up, f"g{number}")):
            current = layout.model_of(snapshots[name], name)
            own, others = direction.history, other.history
            out = layout.empty()
            payload = direction.encoder.encode(
                current,
                tag=0,
                number=number,
                base=own[0],
                other=others[0] if direction.encoder.two_way else None,
                keep=1,
                out=out,
                feedback=None,
            )
            link = rfc.inspect(payload).link
            newest_global = down.history[0].model
            assert link is not None
            assert newest_global is not None
            unit = squares(current, newest_global)
            row[direction.name] = {
                "energy": squares(current, prediction(link, own, others)) / unit,
                "bytes": len(payload),
                "error": squares(current, out) / unit,
            }
            direction.push(out if closed else current, version_digest(payload))
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--snapshots", type=Path, required=True, help=".npz with g4 ... l0_8")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.95, 0.985, 0.99])
    args = parser.parse_args()
    snapshots = load_snapshots(args.snapshots)
    rows = []
    for direction, rules in RULES.items():
        for sparsity in args.sparsities:
            for closed in (False, True):
                for rule in rules:
                    rounds = run(snapshots, {**SIMPLEST, direction: rule}, sparsity, closed=closed)
                    row: dict[str, Any] = {
                        "direction": direction,
                        "sparsity": sparsity,
                        "loop": "closed" if closed else "open",
                        "rule": rule,
                    }
                    for what in ("energy", "bytes", "error"):
                        for number, found in enumerate(rounds, start=5):
                            row[f"{what} {number}"] = found[direction][what]
                    rows.append(row)
    note = (
        "Up: l0_t; down: g_t, in rounds t = 5 to 8. Energy: of the residual; error: of what the"
        " receiver is left without; both sums of squares over matrices, relative to the model minus"
        " the newest global model held. Rounds 5 and 6 have a short history: the oldest model"
        " stands for those before it, so that some rules coincide there. res0 is previous."
    )
    print(write_results("predictors", "Predictors on a real federated run", rows, note))


if __name__ == "__main__":
    main()
