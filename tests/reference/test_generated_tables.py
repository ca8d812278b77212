"""The tables of contexts and of trained sets, and what is generated from them."""

from __future__ import annotations

import pytest

import generated_tables
from resfed_codec.reference.contexts import LOSSLESS
from resfed_codec.reference.tables import DIGITS, FAMILIES, N_ROWS, N_TRAINED, trained
from resfed_codec.reference.trained_tables import TRAINED


def test_every_context_has_a_number_of_its_own() -> None:
    end = 0
    for family in LOSSLESS.families:
        assert family.first == end
        end += family.size
        last = [n - 1 for _, n in family.axes]
        assert (family(*[0] * len(last)), family(*last)) == (family.first, end - 1)
        for axis, n in enumerate(last):
            with pytest.raises(IndexError):
                family(*last[:axis], n + 1, *last[axis + 1 :])
    assert len(LOSSLESS.states) == end


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


def test_generated_files_are_current() -> None:
    """Else run tests/support/generated_tables.py."""
    contexts, tables = generated_tables.CONTEXTS, generated_tables.TABLES
    assert contexts.read_text(encoding="utf-8") == generated_tables.contexts()
    assert tables.read_text(encoding="utf-8") == generated_tables.tables()
    page = generated_tables.PAGE.read_text(encoding="utf-8")
    assert generated_tables.page(page) == page
