"""Tables of finished trainings, in Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import stdev
from textwrap import fill

import numpy as np

from benchmarks.federated.curves import DIRECTIONS, LAST, Group, is_loss, mean, read
from benchmarks.federated.runs import FILE

WIDTH = 100

CHOICE = re.compile(r" --(method \S+|seeds( \d+)+)")
"""What a command chose of a suite; left out where many commands are listed."""


def write(folder: Path, targets: Sequence[float] = (), *, unfinished: bool = False) -> str:
    """Write the tables to ``FOLDER.md``, beside the folder; return the Markdown.

    Args:
        folder, unfinished: As in :func:`read`.
        targets: Accuracies of the table, from 0 to 1, or losses. If empty, the score that half the
            methods reach, and two easier ones.
    """
    groups = read(folder, unfinished=unfinished)
    if not targets:
        middle = float(np.median([mean(c.best for c in g) for g in groups.values()]))
        parts = (1.2, 1.1, 1) if is_loss(groups) else (0.8, 0.9, 1)
        targets = [round(middle * part, 2) for part in parts]
    lines = [
        *_heading(groups, folder.name),
        *_final_table(groups),
        *_target_tables(groups, targets),
    ]
    text = "\n".join(lines) + "\n"
    (folder.parent / f"{folder.name}.md").write_text(text)
    return text


def _heading(groups: dict[str, Group], name: str) -> list[str]:
    curves = [curve for group in groups.values() for curve in group]
    config = curves[0].config.as_dict()
    for key in ("method", "options", "seed"):
        del config[key]
    score = "Loss" if is_loss(groups) else "Accuracy"
    lines = [f"# {score} against bytes: {name}", ""]
    lines += [f"- {key}: `{value}`" for key, value in config.items()]
    for key in ("machine", "versions", "command", "commit"):
        values = sorted({CHOICE.sub("", curve.header[key]) for curve in curves})
        lines.append(f"- {key}: " + ", ".join(f"`{value}`" for value in values))
    dates = sorted(curve.header["date"] for curve in curves)
    lines.append(f"- date: `{dates[0]}`" + (f" to `{dates[-1]}`" if dates[-1] > dates[0] else ""))
    source = f"[{name}/{FILE}]({name}/{FILE})"
    return [
        *lines,
        "",
        f"Each training's command, commit, date and all its rounds: {source}.",
    ]


def _final_table(groups: dict[str, Group]) -> list[str]:
    score = "loss" if is_loss(groups) else "accuracy"
    text = (
        f"Final {score}: mean of the last {LAST} rounds. MB: megabytes (10^6 bytes) per client, all"
        " rounds together. Mean ± standard deviation over seeds."
    )
    if is_loss(groups):
        text += " Loss: cross-entropy in nats a byte."
    unit = "" if is_loss(groups) else ", %"
    columns = ["method", "seeds", f"final {score}{unit}", "MB up", "MB down", "MB both"]
    errors = sorted({name for group in groups.values() for c in group for name in c.errors})[::-1]
    if errors:
        text += (
            " Error: squared error of an update (with feedback: of update and feedback) over its"
            " own square, mean over rounds."
        )
        columns += [f"error {name}" for name in errors]
    columns.append("commit")
    lines = ["", fill(text, WIDTH), "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for label, group in groups.items():
        cells = [_scores([c.final for c in group], is_loss=is_loss(groups))]
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
        f"## Megabytes to {'a loss' if is_loss(groups) else 'an accuracy'}",
        "",
        fill(
            "Per client, until the first round whose model reached it. Mean ± standard deviation"
            " over the seeds that did, with the number of these seeds. Mbit: both directions, in"
            " megabits.",
            WIDTH,
        ),
    ]
    for target in targets:
        lines += ["", f"### To {target:.3g}" if is_loss(groups) else f"### To {target:.0%}", ""]
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
            cells.append(f"{8 * mean(f['total'] for f in found):.3g}")
            lines.append("| " + " | ".join(cells) + " |")
        for word, labels in never.items():
            if labels:
                lines += ["", fill(f"{word}: {'; '.join(labels)}.", WIDTH)]
    return lines


def _scores(values: Sequence[float], *, is_loss: bool) -> str:
    return _spread(values, ".4f") if is_loss else _spread([100 * v for v in values], ".1f")


def _spread(values: Sequence[float], form: str = ".3g") -> str:
    """Mean and, for several values, the sample standard deviation."""
    text = format(mean(values), form)
    return f"{text} ± {stdev(values):.2g}" if len(values) > 1 else text
