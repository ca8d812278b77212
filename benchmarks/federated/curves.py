"""The finished trainings of a suite as curves: score and megabytes by round."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.federated.config import RunConfig
from benchmarks.federated.runs import Line, read_runs

LAST = 5
"""The final accuracy is the mean over this number of last rounds, because it fluctuates."""

DIRECTIONS = ("up", "down", "total")


@dataclass(frozen=True)
class Curve:
    """One training: score and cumulative megabytes per client by round, all ``(rounds,)``."""

    config: RunConfig
    header: dict[str, Any]
    score: NDArray[np.float64]
    is_loss: bool
    """Whether the score is a loss (lower is better), not an accuracy."""
    megabytes: dict[str, NDArray[np.float64]]
    errors: dict[str, float]
    """Squared error relative to the energy of the residual, mean over rounds, if the run has it."""

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
    """The finished trainings of a folder by name, best first; in a group only the seed differs.

    A training with a second kind of score (:func:`_readings`) appears twice.

    Args:
        patterns: Names to take (:mod:`fnmatch`).
        unfinished: Include unfinished trainings; their names have the number of rounds.

    Raises:
        FileNotFoundError: The folder has no such training.
        ValueError: Trainings differ in more than method and seed, so they are not comparable.
    """
    groups: dict[str, Group] = defaultdict(list)
    settings: dict[str, str] = {}
    for name, run in sorted(read_runs(folder).items()):
        config, lines = run.config, run.lines
        label = config.name
        if not any(fnmatch(label, pattern) for pattern in patterns):
            continue
        if not run.is_finished:
            if not (unfinished and lines):
                continue
            label += f" ({len(lines)} of {config.rounds} rounds)"
        common = {**config.as_dict(), "method": "", "options": {}, "seed": 0}
        settings.setdefault(json.dumps(common), name)
        for reading, found in _readings(lines).items():
            groups[label + reading].append(_curve(config, run.header, found))
    if not groups:
        raise FileNotFoundError(
            f"no {'training' if unfinished else 'finished training'} in {folder}"
        )
    if len(settings) > 1:
        raise ValueError(f"{folder}: different trainings: {' and '.join(settings.values())}")
    sign = 1 if is_loss(groups) else -1
    return dict(sorted(groups.items(), key=lambda item: sign * mean(c.final for c in item[1])))


def is_loss(groups: dict[str, Group]) -> bool:
    return next(iter(groups.values()))[0].is_loss


def mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _readings(lines: list[Line]) -> dict[str, list[Line]]:
    """The lines, and the lines with another score or byte count, by the suffix of their label."""
    readings = {"": lines}
    for name in [name for name in lines[0] if name.startswith("accuracy_")]:
        readings[f", statistics {name.removeprefix('accuracy_')}"] = [
            {**line, "accuracy": line[name]} for line in lines
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
        name: mean(line[f"error_{name}"] for line in lines)
        for name in ("up", "down")
        if f"error_{name}" in lines[0]
    }
    return Curve(
        config, header, score, is_loss, {"up": up, "down": down, "total": up + down}, errors
    )
