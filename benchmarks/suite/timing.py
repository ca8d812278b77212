"""Timing by turns: every contestant once, then all again."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from tqdm import tqdm

from benchmarks.peers.base import Turn


def time_interleaved(
    contestants: Mapping[str, Callable[[], Turn]], turns: int, what: str
) -> dict[str, dict[str, Any]]:
    """Columns of each contestant's row: milliseconds to encode and decode.

    Medians, least and greatest of so many turns after one that warms up; None where a contestant
    has no times. ``what`` stands beside the progress bar.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for turn in tqdm(range(turns + 1), desc=what, leave=False, disable=None):
        for name, run in contestants.items():
            done = run()
            if turn:
                times[name].append((done.encode_s, done.decode_s))
            del done  # a large model has no room for two
    return {name: _columns(pairs) for name, pairs in times.items()}


def _columns(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for task, seconds in zip(("encode", "decode"), zip(*pairs, strict=True), strict=True):
        measured = seconds[0] == seconds[0]  # else not a number
        for key, reduce in (("ms", statistics.median), ("least", min), ("greatest", max)):
            columns[f"{task} {key}"] = 1e3 * reduce(seconds) if measured else None
    return columns
