"""Random and extreme cases of max_norm; the benchmark has a million."""

from __future__ import annotations

import pytest

pytest.importorskip("ml_dtypes")

from benchmarks.norm import UPDATES, cases


def test_no_change_exceeds_the_bound() -> None:
    found = [ratio for seed in range(150) for ratio in cases(seed)]
    assert len(found) == 150 * UPDATES
    ratios = [ratio for ratio in found if ratio is not None]
    assert max(ratios) <= 1
    assert sum(ratio > 0.999 for ratio in ratios) > len(ratios) / 5
