"""The table of contexts, and what is generated from it."""

from __future__ import annotations

import pytest

import context_tables
from resfed_codec import _native
from resfed_codec.reference.contexts import LOSSLESS, SLICE, ContextTable


@pytest.mark.parametrize("table", [SLICE, LOSSLESS])
def test_every_context_has_a_number_of_its_own(table: ContextTable) -> None:
    end = 0
    for family in table.families:
        assert family.first == end
        end += family.size
        last = [n - 1 for _, n in family.axes]
        assert (family(*[0] * len(last)), family(*last)) == (family.first, end - 1)
        for axis, n in enumerate(last):
            with pytest.raises(IndexError):
                family(*last[:axis], n + 1, *last[axis + 1 :])
    assert len(table.states) == end


@pytest.mark.parametrize("table", [SLICE, LOSSLESS])
def test_states_are_legal(table: ContextTable) -> None:
    assert all(1 <= probability <= 255 and 0 <= count <= 127 for probability, count in table.states)


def test_the_native_code_has_these_states() -> None:
    assert _native.initial_states() == SLICE.states


def test_generated_files_are_current() -> None:
    """Else run tests/support/context_tables.py."""
    assert context_tables.HEADER.read_text(encoding="utf-8") == context_tables.header()
    page = context_tables.PAGE.read_text(encoding="utf-8")
    assert context_tables.page(page) == page
