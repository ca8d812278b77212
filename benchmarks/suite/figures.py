"""The figures of the comparison, from the rows of its tables."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from PIL import Image

from benchmarks.peers import OURS
from benchmarks.suite.scale import COPY, IN_PLACE, SUB
from benchmarks.suite.targets import INTEGERS, geometric_mean, model_of

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

Row = dict[str, Any]
COLORS = [*(plt.get_cmap("tab10")(i) for i in (0, 2, 1, 4, 5, 6, 7, 8, 9)), "gold", "black", "navy"]
MARKS = "s^vDPX*"
RATIOS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
ERRORS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)


def _style(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Ours is thick and red; the others cycle through colors and markers."""
    style: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(name for name in names if not name.startswith(OURS)):
        color, mark = COLORS[i % len(COLORS)], MARKS[i % len(MARKS)]
        style[name] = {"color": color, "marker": mark, "lw": 1, "ms": 4}
    ours = [name for name in names if name.startswith(OURS)]
    for name, dashes in zip(ours, ("-", "--", ":"), strict=False):
        style[name] = {"color": "tab:red", "marker": "o", "lw": 2.2, "ms": 5, "ls": dashes}
    return style


def _grid(n: int, width: float, height: float) -> tuple[Any, list[Axes]]:
    columns = min(n, 3 if n > 4 else 2)
    lines = -(-n // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(width * columns, height * lines), squeeze=False
    )
    flat = list(axes.flat)
    for unused in flat[n:]:
        unused.axis("off")
    return figure, flat


def _legend(figure: Any, axes: Sequence[Axes], columns: int) -> None:
    """One legend for all panels, below them."""
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        ncols=columns,
        fontsize=9,
        frameon=False,
    )


def _save(figure: Any, path: Path) -> None:
    """Save a PNG with a reduced palette, a quarter of the size."""
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, bbox_inches="tight")
    Image.open(buffer).convert("RGB").quantize(128).save(path, optimize=True)
    plt.close(figure)


def _one_of_each(rows: Sequence[Row]) -> list[str]:
    """The first update of each model."""
    return list({model_of(r): r["update"] for r in reversed(rows)}.values())[::-1]


def equal_error(rows: Sequence[Row], path: Path) -> None:
    """Bytes over relative squared error, a panel for one update of each model."""
    updates = _one_of_each(rows)
    names = list(dict.fromkeys(r["peer"] for r in rows))
    style = _style(names)
    figure, axes = _grid(len(updates), 3.9, 3.2)
    for update, ax in zip(updates, axes, strict=False):
        mine = [r for r in rows if r["update"] == update]
        error = {r["sparsity"]: r["error"] for r in mine if r["peer"] == OURS}
        for name in names:
            line = sorted((error[r["sparsity"]], r["bytes"]) for r in mine if r["peer"] == name)
            if line:
                ax.loglog(*zip(*line, strict=True), label=name, **style[name])
        ax.set(title=update, xlabel="relative squared error", ylabel="bytes")
        seen = [x for x in ERRORS if min(error.values()) < x < max(error.values())]
        ax.set_xticks(seen, [f"{x:g}" for x in seen])
        ax.set_xticks([], minor=True)
        ax.grid(alpha=0.3, which="both")
    _legend(figure, axes, 3)
    _save(figure, path)


def identical_integers(rows: Sequence[Row], path: Path) -> None:
    """Our bytes over each peer's, for identical integers, with the goals against NNCodec.

    A panel for each model; lines are geometric means over its updates.
    """
    models = list(dict.fromkeys(model_of(r) for r in rows))
    names = [n for n in dict.fromkeys(r["peer"] for r in rows) if n != OURS]
    sparsities = sorted({r["sparsity"] for r in rows})
    style = _style(names)
    figure, axes = _grid(len(models), 3.9, 3.2)
    for model, ax in zip(models, axes, strict=False):
        for name in names:
            ratios: dict[float, list[float]] = {}
            for r in rows:
                if (model_of(r), r["peer"]) == (model, name):
                    ratios.setdefault(r["sparsity"], []).append(r["ours / peer"])
            line = [(1 - s, geometric_mean(ratios[s])) for s in sparsities if s in ratios]
            ax.loglog(*zip(*line, strict=True), label=name, **style[name])
        goals = [(1 - sparsity, goal) for sparsity, goal in INTEGERS.items()]
        ax.plot(*zip(*goals, strict=True), "k_", ms=14, mew=2, label="goal against NNCodec")
        ax.axhline(1, color="k", lw=0.8)
        ax.set(title=model, xlabel="sparsity", ylabel="our bytes / peer's")
        ax.set_xticks([1 - s for s in sparsities], [f"{s:g}" for s in sparsities])
        ax.set_yticks(RATIOS, [f"{x:g}" for x in RATIOS])
        ax.minorticks_off()
        ax.set_ylim(0.02, 2)
        ax.grid(alpha=0.3)
    _legend(figure, axes, 3)
    _save(figure, path)


def times(rows: Sequence[Row], path: Path, sparsity: float = 0.99) -> None:
    """Bars of encode and decode time at one sparsity, with the range: one update of each model."""
    chosen = [r for r in rows if r["sparsity"] == sparsity and r["encode ms"] is not None]
    updates = _one_of_each(chosen)
    if not updates:
        return
    figure, axes = _grid(len(updates), 4.6, 3.1)
    for update, ax in zip(updates, axes, strict=False):
        mine = [r for r in chosen if r["update"] == update][::-1]
        for shift, task, color in ((0.2, "encode", "tab:red"), (-0.2, "decode", "tab:blue")):
            middle = [r[f"{task} ms"] for r in mine]
            spread = [
                [m - r[f"{task} least"] for m, r in zip(middle, mine, strict=True)],
                [r[f"{task} greatest"] - m for m, r in zip(middle, mine, strict=True)],
            ]
            places = [i + shift for i in range(len(mine))]
            ax.barh(places, middle, 0.38, xerr=spread, color=color, label=task, ecolor="0.4")
        ax.set_yticks(range(len(mine)), [r["peer"] for r in mine], fontsize=8)
        ax.set(xscale="log", xlabel="milliseconds", title=update)
        ax.grid(alpha=0.3, axis="x")
    _legend(figure, axes, 2)
    _save(figure, path)


def scale(rows: Sequence[Row], path: Path) -> None:
    """Times and bytes against the number of parameters at sparsity 0.99.

    Bytes are drawn only where the error is within a quarter of ours.
    """
    chosen = [r for r in rows if r["sparsity"] == 0.99]
    error = {r["parameters"]: r["error"] for r in chosen if r["peer"] == OURS}
    names = list(dict.fromkeys(r["peer"] for r in chosen))
    style = _style([n for n in names if n not in (COPY, SUB)])
    style[COPY] = {"color": "k", "lw": 1, "ls": "--"}
    style[SUB] = {"color": "0.5", "lw": 1, "ls": "--"}
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.9))
    titles = {"encode ms": "encode, ms", "decode ms": "decode, ms", "bytes": "payload, bytes"}
    for ax, (column, title) in zip(axes, titles.items(), strict=True):
        for name in names:
            line = [
                (r["parameters"], r[column])
                for r in chosen
                if r["peer"] == name
                and r[column] is not None
                and (column != "bytes" or abs(r["error"] / error[r["parameters"]] - 1) < 0.25)
            ]
            if line and (column, name) != ("encode ms", IN_PLACE):  # encodes like the other one
                ax.loglog(*zip(*line, strict=True), label=name, **style[name])
        ax.set(title=title, xlabel="parameters")
        ax.grid(alpha=0.3, which="both")
    _legend(figure, axes, 3)
    _save(figure, path)


def memory(rows: Sequence[Row], path: Path) -> None:
    """Bars of the memory that encoding needs beyond its inputs, in bytes per parameter."""
    updates = list(dict.fromkeys(r["update"] for r in rows))
    figure, axes = _grid(len(updates), 5.6, 3)
    for update, ax in zip(updates, axes, strict=False):
        mine = [r for r in rows if r["update"] == update][::-1]
        colors = ["tab:red" if r["peer"].startswith(OURS) else "tab:blue" for r in mine]
        ax.barh([r["peer"] for r in mine], [r["bytes per parameter"] for r in mine], color=colors)
        ax.set(title=update, xlabel="bytes per parameter beyond the two models")
        ax.tick_params(labelsize=8)
        ax.grid(alpha=0.3, axis="x")
    _save(figure, path)
