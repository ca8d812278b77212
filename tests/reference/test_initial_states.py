"""The two copies of the initial states are one table."""

from __future__ import annotations

from resfed_codec import _native
from resfed_codec.reference.initial_states import SLICE_STATES


def test_native_and_python_tables_are_the_same() -> None:
    assert _native.initial_states() == list(SLICE_STATES)


def test_states_are_legal() -> None:
    assert all(1 <= probability <= 255 and 0 <= count <= 127 for probability, count in SLICE_STATES)
