"""The Python code in these pages runs and prints the output below it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from page_outputs import BLOCK, outputs

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "docs/quickstart.md", "docs/guide.md", "docs/implementers.md"]


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run_in_order_and_print_their_output(page: str) -> None:
    text = (ROOT / page).read_text()
    stated = [block[2] for block in BLOCK.finditer(text)]
    assert stated, "there is no code"
    for said, printed in zip(stated, outputs(text, page), strict=True):
        if said is not None:
            assert said == printed


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_two_commands_exist(target: str) -> None:
    assert f"make {target}" in (ROOT / "README.md").read_text()
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_each_term_is_defined_once() -> None:
    terms = re.findall(r"\*\*(.+?)\*\*", (ROOT / "docs" / "concepts.md").read_text())
    assert {"Slice", "Chunk", "Lane"} < set(terms)
    assert len(terms) == len({term.lower() for term in terms})
