"""The trained sets, and what is generated from them."""

from __future__ import annotations

import pytest

import generated_tables
from resfed_codec.reference.tables import DIGITS, FAMILIES, N_ROWS, N_TRAINED, trained
from resfed_codec.reference.trained_tables import TRAINED


def test_trained_sets_are_complete() -> None:
    assert tuple(TRAINED) == FAMILIES
    for family, sets in TRAINED.items():
        assert len(sets) == N_TRAINED
        for rows in sets:
            assert len(rows) == N_ROWS[family]
            assert all(len(row) == 32 and set(row) <= set(DIGITS) for row in rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_frequencies_are_legal(family: str) -> None:
    for table in trained(family):
        for row in table:
            assert min(row) >= 1
            assert sum(row) == 4096


def test_the_header_is_current() -> None:
    """Else run tests/support/generated_tables.py."""
    header = generated_tables.TABLES.read_text(encoding="utf-8")
    assert header == generated_tables.tables()
