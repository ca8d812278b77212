"""Clustering of the residuals in the comparison: synthetic ones compared with real ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import resfed_codec as rfc
from benchmarks.suite.integers import levels_of
from benchmarks.updates import Source

TITLE = "How residuals cluster"
NOTE = """\
Shares of the nonzeros of our payload, in order: "directly" and "within 8" follow their predecessor
at a distance of 1, and of at most 8; "same sign" have the predecessor's sign among those at a
distance of at most 2; "level" is their mean level. Bits are those of the whole payload."""


def measure(sources: Sequence[Source], sparsities: Sequence[float]) -> list[dict[str, Any]]:
    """A row for each update and sparsity."""
    rows = []
    for source in sources:
        update = source.load()
        for sparsity in sparsities:
            levels = levels_of(update, sparsity)
            flat = np.concatenate([value.ravel() for value in levels.values()])
            index = np.flatnonzero(flat)
            gaps = np.diff(index)
            same = np.diff(np.sign(flat[index])) == 0
            payload = rfc.encode(update.state, update.reference, sparsity=sparsity)
            rows.append(
                {
                    **source.columns(update),
                    "sparsity": sparsity,
                    "directly": float(np.mean(gaps == 1)),
                    "within 8": float(np.mean(gaps <= 8)),
                    "same sign": float(np.mean(same[gaps <= 2])) if (gaps <= 2).any() else None,
                    "level": float(np.mean(np.abs(flat[index]))),
                    "bits per nonzero": 8 * len(payload) / index.size,
                }
            )
    return rows
