"""Summaries of the tables: goals, and means over updates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.peers import OURS

Row = dict[str, Any]
INTEGERS = {0.95: 0.98, 0.99: 0.95, 0.9975: 0.84}
"""Goals of our bytes over NNCodec's for identical integers, by sparsity, on each real update."""
EQUAL_ERROR = 0.51
"""Goal of our bytes over those of NNCodec's better quantizer: mean over ERROR_SPARSITIES."""
ERROR_SPARSITIES = (0.95, 0.98, 0.99)


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def integer_goals(rows: Sequence[Row]) -> list[Row]:
    """Ours over NNCodec for identical integers, real updates: one row for each sparsity."""
    found = []
    for sparsity, goal in INTEGERS.items():
        ratios = {
            r["update"]: r["ours / peer"]
            for r in rows
            if r["data"] == "real" and r["sparsity"] == sparsity and r["peer"] == "NNCodec"
        }
        found += _goal(f"identical integers, sparsity {sparsity:g}, worst", ratios, goal, max)
    return found


def error_goals(rows: Sequence[Row]) -> list[Row]:
    """Ours over NNCodec's better quantizer at equal error, real updates."""
    ratios = {}
    for update in dict.fromkeys(r["update"] for r in rows if r["data"] == "real"):
        worst = [
            max(
                (
                    r["ours / peer"]
                    for r in rows
                    if r["update"] == update
                    and r["sparsity"] == sparsity
                    and r["peer"].startswith("NNCodec")
                ),
                default=None,
            )
            for sparsity in ERROR_SPARSITIES
        ]
        if all(ratio is not None for ratio in worst):
            ratios[update] = geometric_mean([ratio for ratio in worst if ratio is not None])
    text = "equal error, better quantizer, mean over sparsities 0.95, 0.98, 0.99"
    return _goal(text, ratios, EQUAL_ERROR, geometric_mean)


def _goal(what: str, ratios: dict[str, float], goal: float, judge: Any) -> list[Row]:
    """A row; ``judge`` computes the number to compare with the goal from ``ratios`` by update."""
    if not ratios:
        return []
    reached = judge(list(ratios.values()))
    models: dict[str, list[float]] = {}
    for update, ratio in ratios.items():
        models.setdefault(update.split(",")[0], []).append(ratio)
    row = {
        "our bytes / NNCodec's": what,
        "goal": f"<= {goal:g}",
        "reached": f"{reached:.3f}",
        "": "met" if reached <= goal else "**missed**",
        "by model: mean, and worst of its updates": "; ".join(
            f"{model}: {geometric_mean(values):.3f}, {max(values):.3f}"
            for model, values in models.items()
        ),
    }
    return [row]


def model_of(row: Row) -> str:
    """The name of the model, real or synthetic: the update's name without its snapshots."""
    return str(row["update"].split(",")[0])


def means(rows: Sequence[Row], model: str) -> list[Row]:
    """Ours over each peer's bytes: geometric means over the updates of one model."""
    sparsities = sorted({r["sparsity"] for r in rows})
    table = []
    for peer in dict.fromkeys(r["peer"] for r in rows if r["peer"] != OURS):
        row: Row = {f"our bytes / peer's, {model}": peer}
        for sparsity in sparsities:
            ratios = [
                r["ours / peer"] for r in rows if r["peer"] == peer and r["sparsity"] == sparsity
            ]
            row[f"{sparsity:g}"] = _ratio(geometric_mean(ratios)) if ratios else None
        table.append(row)
    return table


def _ratio(value: float) -> str:
    """The ratio, in bold where the peer needs fewer bytes."""
    return f"**{value:.3f}**" if value > 1 else f"{value:.3f}"


def times(rows: Sequence[Row], sparsity: float) -> list[Row]:
    """Milliseconds at one sparsity: a column for each model, geometric means over its updates."""
    chosen = [r for r in rows if r["sparsity"] == sparsity]
    models = list(dict.fromkeys(model_of(r) for r in chosen))
    table = []
    for peer in dict.fromkeys(r["peer"] for r in chosen if r["encode ms"] is not None):
        row: Row = {f"ms at sparsity {sparsity:g}": peer}
        for model in models:
            mine = [r for r in chosen if r["peer"] == peer and model_of(r) == model]
            for task in ("encode", "decode"):
                values = [r[f"{task} ms"] for r in mine]
                row[f"{task}, {model}"] = geometric_mean(values) if values else None
        table.append(row)
    return table
