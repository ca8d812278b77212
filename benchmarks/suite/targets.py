"""What the tables say: goals met or missed, and means over updates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.peers import OURS

Row = dict[str, Any]
INTEGERS = {0.95: 0.92, 0.99: 0.88, 0.9975: 0.80}
"""Goals of our bytes over NNCodec's for identical integers, by sparsity, on each real update."""
EQUAL_ERROR = 0.75
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
        found += _goal(f"identical integers, sparsity {sparsity:g}, each update", ratios, goal, max)
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
    text = "equal error, geometric mean over sparsities 0.95, 0.98, 0.99 and updates"
    return _goal(text, ratios, EQUAL_ERROR, geometric_mean)


def _goal(what: str, ratios: dict[str, float], goal: float, judge: Any) -> list[Row]:
    if not ratios:
        return []
    reached = judge(list(ratios.values()))
    row = {
        "ours / NNCodec": what,
        "goal": f"<= {goal:g}",
        "reached": f"{reached:.3f}",
        "": "met" if reached <= goal else "**missed**",
        "by update": "; ".join(f"{name}: {ratio:.3f}" for name, ratio in ratios.items()),
    }
    return [row]


def means(rows: Sequence[Row]) -> list[Row]:
    """Ours over each peer's bytes: geometric means over real updates (all, where none is real)."""
    chosen = [r for r in rows if r["data"] == "real"] or list(rows)
    sparsities = sorted({r["sparsity"] for r in chosen})
    table = []
    for peer in dict.fromkeys(r["peer"] for r in chosen if r["peer"] != OURS):
        row: Row = {"ours / peer, bytes": peer}
        for sparsity in sparsities:
            ratios = [
                r["ours / peer"] for r in chosen if r["peer"] == peer and r["sparsity"] == sparsity
            ]
            row[f"{sparsity:g}"] = f"{geometric_mean(ratios):.3f}" if ratios else None
        table.append(row)
    return table


def times(rows: Sequence[Row], sparsity: float) -> list[Row]:
    """Milliseconds at one sparsity, geometric means over real updates (all, where none is real)."""
    chosen = [r for r in rows if r["data"] == "real"] or list(rows)
    chosen = [r for r in chosen if r["sparsity"] == sparsity]
    table = []
    for peer in dict.fromkeys(r["peer"] for r in chosen):
        mine = [r for r in chosen if r["peer"] == peer]
        row: Row = {f"at sparsity {sparsity:g}": peer, "updates": len(mine)}
        for column in ("encode ms", "decode ms"):
            values = [r[column] for r in mine if r[column] is not None]
            row[column] = geometric_mean(values) if values else None
        table.append(row)
    return table
