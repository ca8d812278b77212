"""All files have the same version, and the policy lists the versions of the formats."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import resfed_codec as rfc

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("pyproject.toml", r'^version = "(.+)"$'),
        ("CITATION.cff", r"^version: (.+)$"),
        ("CHANGELOG.md", r"^## (\S+)"),
    ],
)
def test_the_version_is_the_same_everywhere(file: str, pattern: str) -> None:
    found = re.search(pattern, (ROOT / file).read_text(), re.MULTILINE)
    assert found
    assert found[1] == rfc.__version__


def test_the_policy_lists_the_written_formats() -> None:
    model = [np.zeros((2, 2), np.float32)]
    written = {
        "payload, with links": rfc.encode(model, model),
        "keyframe": rfc.encode_keyframe(model),
        "message": rfc.ServerSession(model).send("ada"),
    }
    text = (ROOT / "docs" / "versioning.md").read_text()
    rows = re.findall(r"^\| ([a-z, ]+) \| (\d+) \| ", text, re.MULTILINE)
    newest = {name: int(version) for name, version in rows}  # later rows are newer
    assert newest == {name: data[3] for name, data in written.items()}
