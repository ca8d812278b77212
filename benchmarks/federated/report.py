"""Figures and tables from the JSON lines of finished trainings."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from statistics import stdev
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from benchmarks.federated.config import RunConfig
from benchmarks.federated.runner import Line, read_lines

mpl.use("Agg")
import matplotlib.pyplot as plt

LAST = 5
"""The final accuracy is the mean over so many last rounds: it swings from round to round."""

CHOICE = re.compile(r" --(method \S+|seeds( \d+)+)")
"""What a command chose of a suite; left out where many commands are listed."""

DIRECTIONS = ("up", "down", "total")


@dataclass(frozen=True)
class Curve:
    """One training: by round, its score and megabytes per client so far, all ``(rounds,)``."""

    config: RunConfig
    header: dict[str, Any]
    score: NDArray[np.float64]
    is_loss: bool
    """Whether the score is a loss, the less the better, and not an accuracy."""
    megabytes: dict[str, NDArray[np.float64]]
    errors: dict[str, float]
    """Squared error of what was sent over its energy, mean over rounds, where the run has it."""

    @property
    def is_finished(self) -> bool:
        return len(self.score) == self.config.rounds

    @property
    def final(self) -> float:
        return float(self.score[-LAST:].mean())

    @property
    def best(self) -> float:
        return float(self.score.min() if self.is_loss else self.score.max())

    def until(self, target: float) -> dict[str, float] | None:
        """Megabytes after the first round that reached the score; None if no round did."""
        hits = np.flatnonzero(self.score <= target if self.is_loss else self.score >= target)
        if not len(hits):
            return None
        return {
            "rounds": float(hits[0] + 1),
            **{name: float(self.megabytes[name][hits[0]]) for name in DIRECTIONS},
        }


Group = list[Curve]


def read(
    folder: Path, patterns: Sequence[str] = ("*",), *, unfinished: bool = False
) -> dict[str, Group]:
    """The finished trainings of a folder by label, best first; in a group only the seed differs.

    A training whose lines have a second reading (:func:`_readings`) is there twice.

    Args:
        patterns: Labels to take (:mod:`fnmatch`).
        unfinished: Take what there is of the others, too; labels say how many rounds that is.

    Raises:
        FileNotFoundError: There is none.
        ValueError: Trainings differ in more than method and seed, so that they cannot be compared.
    """
    groups: dict[str, Group] = defaultdict(list)
    settings: dict[str, Path] = {}
    for path in sorted(folder.glob("*.jsonl")):
        header, *lines = read_lines(path)
        config = RunConfig(**header["config"])
        label = config.label
        if not any(fnmatch(label, pattern) for pattern in patterns):
            continue
        if len(lines) < config.rounds:
            if not (unfinished and lines):
                continue
            label += f" ({len(lines)} of {config.rounds} rounds)"
        common = {**config.as_dict(), "method": "", "options": {}, "seed": 0}
        settings.setdefault(json.dumps(common), path)
        for reading, found in _readings(lines).items():
            groups[label + reading].append(_curve(config, header, found))
    if not groups:
        raise FileNotFoundError(
            f"no {'training' if unfinished else 'finished training'} in {folder}"
        )
    if len(settings) > 1:
        raise ValueError(f"{' and '.join(map(str, settings.values()))}: different trainings")
    sign = 1 if next(iter(groups.values()))[0].is_loss else -1
    return dict(sorted(groups.items(), key=lambda item: sign * _mean(c.final for c in item[1])))


def _readings(lines: list[Line]) -> dict[str, list[Line]]:
    """The lines as they are, and as they are with another reading, by what a label adds for it."""
    readings = {"": lines}
    if "accuracy_recomputed" in lines[0]:
        readings[", statistics recomputed"] = [
            {**line, "accuracy": line["accuracy_recomputed"]} for line in lines
        ]
    if "up_packed" in lines[0]:
        readings[", as packed"] = [
            {**line, "up": line["up_packed"], "down": line["down"] * line["up_packed"] / line["up"]}
            for line in lines
        ]
    return readings


def _curve(config: RunConfig, header: dict[str, Any], lines: list[Line]) -> Curve:
    up, down = (
        np.cumsum([line[name] for line in lines]) / config.clients / 1e6 for name in ("up", "down")
    )
    is_loss = "loss" in lines[0]
    score = np.array([line["loss" if is_loss else "accuracy"] for line in lines])
    errors = {
        name: _mean(line[f"error_{name}"] for line in lines)
        for name in ("up", "down")
        if f"error_{name}" in lines[0]
    }
    return Curve(
        config, header, score, is_loss, {"up": up, "down": down, "total": up + down}, errors
    )


def write(
    folder: Path,
    targets: Sequence[float],
    name: str,
    patterns: Sequence[str] = ("*",),
    *,
    unfinished: bool = False,
) -> str:
    """Write NAME.md and NAME_*.png beside ``folder``; returns the Markdown.

    Args:
        folder, patterns, unfinished: As in :func:`read`.
        targets: Accuracies of the table, from 0 to 1, or losses; empty takes what half the methods
            reach, and two that are easier.
    """
    groups = read(folder, patterns, unfinished=unfinished)
    if not targets:
        middle = float(np.median([_mean(c.best for c in g) for g in groups.values()]))
        parts = (1.2, 1.1, 1) if _is_loss(groups) else (0.8, 0.9, 1)
        targets = [round(middle * part, 2) for part in parts]
    text = "\n".join(
        [
            *_heading(groups, name),
            *_final_table(groups),
            *_target_tables(groups, targets),
            *[f"\n![{kind}]({path.name})" for kind, path in _figures(groups, folder, name)],
        ]
    )
    (folder.parent / f"{name}.md").write_text(text + "\n")
    return text


def _heading(groups: dict[str, Group], name: str) -> list[str]:
    curves = [curve for group in groups.values() for curve in group]
    config = curves[0].config.as_dict()
    for key in ("method", "options", "seed"):
        del config[key]
    score = "Loss" if _is_loss(groups) else "Accuracy"
    lines = [f"# {score} against bytes: {name}", ""]
    lines += [f"- {key}: `{value}`" for key, value in config.items()]
    for key in ("machine", "versions", "command", "commit", "date"):
        values = sorted({CHOICE.sub("", curve.header[key]) for curve in curves})
        lines.append(f"- {key}: " + ", ".join(f"`{value}`" for value in values))
    return [*lines, "", "Each training's own command, commit and date are in its `.jsonl`."]


def _final_table(groups: dict[str, Group]) -> list[str]:
    score = "loss" if _is_loss(groups) else "accuracy"
    lines = [
        "",
        f"Final {score}: mean of the last {LAST} rounds. MB: megabytes (10^6 bytes) per client,"
        " all rounds together. Mean ± standard deviation over seeds.",
    ]
    if _is_loss(groups):
        lines[-1] += " Loss: cross-entropy in nats a byte."
    unit = "" if _is_loss(groups) else ", %"
    columns = ["method", "seeds", f"final {score}{unit}", "MB up", "MB down", "MB both"]
    errors = sorted({name for group in groups.values() for c in group for name in c.errors})[::-1]
    if errors:
        lines[-1] += (
            " Error: squared error of an update (with feedback: of update and feedback) over its"
            " own square, mean over rounds."
        )
        columns += [f"error {name}" for name in errors]
    columns.append("commit")
    lines += ["", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for label, group in groups.items():
        cells = [_scores([c.final for c in group], is_loss=_is_loss(groups))]
        cells += [_spread([c.megabytes[d][-1] for c in group]) for d in DIRECTIONS]
        for name in errors:
            found = [c.errors[name] for c in group if name in c.errors]
            cells.append(_spread(found) if found else "")
        cells.append(", ".join(sorted({c.header["commit"] for c in group})))
        lines.append(f"| {label} | {len(group)} | " + " | ".join(cells) + " |")
    return lines


def _target_tables(groups: dict[str, Group], targets: Sequence[float]) -> list[str]:
    lines = [
        "",
        f"## Megabytes to {'a loss' if _is_loss(groups) else 'an accuracy'}",
        "",
        "Per client, until the first round whose model reached it. Mean ± standard deviation over"
        " the seeds that did; how many did stands beside it. Mbit: both directions, in megabits.",
    ]
    for target in targets:
        lines += ["", f"### To {target:.3g}" if _is_loss(groups) else f"### To {target:.0%}", ""]
        lines += ["| method | reached by | rounds | MB up | MB down | MB both | Mbit |"]
        lines += ["|---" * 7 + "|"]
        never: dict[str, list[str]] = {"Never": [], "Not so far": []}
        for label, group in groups.items():
            found = [reached for c in group if (reached := c.until(target)) is not None]
            if not found:
                never["Never" if all(c.is_finished for c in group) else "Not so far"].append(label)
                continue
            cells = [label, f"{len(found)} of {len(group)}", _spread([f["rounds"] for f in found])]
            cells += [_spread([f[d] for f in found]) for d in DIRECTIONS]
            cells.append(f"{8 * _mean(f['total'] for f in found):.3g}")
            lines.append("| " + " | ".join(cells) + " |")
        for word, labels in never.items():
            if labels:
                lines += ["", f"{word}: " + "; ".join(labels) + "."]
    return lines


def _figures(groups: dict[str, Group], folder: Path, name: str) -> list[tuple[str, Path]]:
    """The score over rounds, and over megabytes in each direction and both."""
    written = []
    is_loss = _is_loss(groups)
    score = "test loss, nats a byte" if is_loss else "test accuracy, %"
    for kind in ("round", *DIRECTIONS):
        figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
        styles = ["-", "--", ":", "-."]
        for i, (label, group) in enumerate(groups.items()):
            scores = np.array([c.score for c in group]) * (1 if is_loss else 100)
            rounds = np.arange(1, scores.shape[1] + 1)
            x = rounds if kind == "round" else np.mean([c.megabytes[kind] for c in group], axis=0)
            style = styles[i // 10 % len(styles)]
            (line,) = axes.plot(x, scores.mean(axis=0), style, label=label, linewidth=1.2)
            if len(group) > 1:
                low, high = scores.min(axis=0), scores.max(axis=0)
                axes.fill_between(x, low, high, color=line.get_color(), alpha=0.08, linewidth=0)
        if kind == "round":
            axes.set_xlabel("round")
        else:
            what = "up and down" if kind == "total" else kind
            axes.set(xlabel=f"megabytes {what}, per client", xscale="log")
        axes.set_ylabel(f"{score}; mean and range over seeds")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=6)
        path = folder.parent / f"{name}_{kind}.png"
        figure.savefig(path, dpi=110, metadata={"Software": None})
        plt.close(figure)
        written.append((f"{'Loss' if is_loss else 'Accuracy'} over {kind}", path))
    return written


def _is_loss(groups: dict[str, Group]) -> bool:
    return next(iter(groups.values()))[0].is_loss


def _scores(values: Sequence[float], *, is_loss: bool) -> str:
    return _spread(values, ".4f") if is_loss else _spread([100 * v for v in values], ".1f")


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def _spread(values: Sequence[float], form: str = ".3g") -> str:
    """Mean, and the sample standard deviation where there are several."""
    mean = format(_mean(values), form)
    return f"{mean} ± {stdev(values):.2g}" if len(values) > 1 else mean
