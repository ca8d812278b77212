"""A chart of finished trainings: score over rounds or megabytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

from benchmarks.federated.curves import is_loss, mean, read
from benchmarks.federated.names import NAMES

mpl.use("Agg")
import matplotlib.pyplot as plt

OVER = ("total", "up", "down", "round")
OURS = ("tab:red", "tab:orange", "tab:pink", "tab:brown", "gold", "darkred")
OTHERS = ("tab:blue", "tab:green", "black", "tab:purple", "tab:cyan", "tab:olive")
STYLES = ("-", "--", ":", "-.")


def draw(
    folder: Path,
    path: Path,
    patterns: Sequence[str] = ("*",),
    *,
    over: str = "total",
    title: str = "",
    unfinished: bool = False,
) -> None:
    """Draw the mean and the range over seeds to ``path``; ours is thick and red, or near red.

    Args:
        folder, patterns, unfinished: As in :func:`benchmarks.federated.curves.read`.
        over: The horizontal axis: ``round``, or megabytes ``up``, ``down`` or in ``total``.
    """
    groups = read(folder, patterns, unfinished=unfinished)
    figure, axes = plt.subplots(figsize=(7.2, 4.4))
    ours = [name for name in groups if name.startswith(NAMES["codec"])]
    others = [name for name in groups if name not in ours]
    for name, group in groups.items():
        names, colors, width = (ours, OURS, 2.4) if name in ours else (others, OTHERS, 1.4)
        lap, place = divmod(names.index(name), len(colors))
        color, style = colors[place], STYLES[lap % len(STYLES)]
        scores = np.array([c.score for c in group]) * (1 if is_loss(groups) else 100)
        rounds = np.arange(1, scores.shape[1] + 1)
        x = rounds if over == "round" else np.mean([c.megabytes[over] for c in group], axis=0)
        axes.plot(x, scores.mean(axis=0), style, color=color, lw=width, label=name)
        if len(group) > 1:
            low, high = scores.min(axis=0), scores.max(axis=0)
            axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
    if over == "round":
        axes.set_xlabel("round")
    else:
        way = {"total": "up and down"}.get(over, over)
        axes.set(xlabel=f"megabytes {way}, per client", xscale="log")
        axes.xaxis.set_major_formatter("{x:g}")
    score = "test loss, nats a byte" if is_loss(groups) else "test accuracy, %"
    seeds = mean(len(group) for group in groups.values())
    axes.set_ylabel(f"{score}{'; mean and range over seeds' if seeds > 1 else ''}")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3, which="both")
    figure.legend(
        loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=2, fontsize=9, frameon=False
    )
    figure.tight_layout()
    mpl.rcParams["svg.hashsalt"] = "resfed"  # reproducible files
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    figure.savefig(path, dpi=110, metadata=metadata, bbox_inches="tight")
    plt.close(figure)
