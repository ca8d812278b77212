"""The second implementation shares nothing with the first but its exceptions."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from resfed_codec import reference

MODULES = sorted(Path(reference.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_nothing_of_the_codec_but_errors(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            modules = [node.module or ""]
        else:
            continue
        for module in modules:
            if module.partition(".")[0] == "resfed_codec":
                assert module.startswith(("resfed_codec.errors", "resfed_codec.reference.")), module
