"""Interleaved timing: every codec runs once per turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from tqdm import tqdm

from benchmarks.peers.base import Turn


def time_interleaved(
    contestants: Mapping[str, Callable[[], Turn]], turns: int, what: str
) -> dict[str, dict[str, Any]]:
    """Columns of each codec's row: milliseconds to encode and decode.

    Median, minimum and maximum over ``turns`` after a warm-up; None for a codec without times.
    ``what`` labels the progress bar.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for turn in tqdm(range(turns + 1), desc=what, leave=False, disable=None):
        for name, run in contestants.items():
            done = run()
            if turn:
                times[name].append((done.encode_s, done.decode_s))
            del done  # two large models may not fit into memory
    return {name: _columns(pairs) for name, pairs in times.items()}


def _columns(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for task, seconds in zip(("encode", "decode"), zip(*pairs, strict=True), strict=True):
        measured = seconds[0] == seconds[0]  # false for NaN
        for key, reduce in (("ms", statistics.median), ("least", min), ("greatest", max)):
            columns[f"{task} {key}"] = 1e3 * reduce(seconds) if measured else None
    return columns
