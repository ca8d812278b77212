"""benchmarks.rate, and what results say of the machine."""

from __future__ import annotations

from benchmarks.common import stamp
from benchmarks.rate import measure
from benchmarks.updates import Source

from resfed_codec import _native


def test_selection_for_rate_needs_fewer_bytes_for_the_same_error() -> None:
    row = measure(Source(n_elems=60_000, like="cnn"), 0.95)
    assert 0 < row["error"] < 1
    assert row["rate / top-k"] == row["rate, bytes"] / row["top-k, bytes"]
    assert 0.3 < row["rate / top-k"] < 1.0


def test_results_name_the_instructions_of_the_codec() -> None:
    before = _native.kernels()
    try:
        assert _native.choose_kernels("scalar")
        assert stamp()["machine"].endswith(", scalar")
    finally:
        _native.choose_kernels(before)
