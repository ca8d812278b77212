"""Text for language models that comes with Python: its sources and its help."""

from __future__ import annotations

import hashlib
import importlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

TEST_SHARE = 0.05
NOT_READ = {"site-packages", "test", "tests", "idle_test", "pydoc_data", "__pycache__"}
"""Folders of the standard library that are skipped."""


@dataclass(frozen=True)
class Text:
    """Bytes for training and for testing, uint8 ``(n,)``; a byte is a token."""

    train: Bytes
    test: Bytes

    def subset(self, n_train: int, n_test: int) -> Text:
        """The first bytes of both; 0 means all."""
        return Text(self.train[: n_train or None], self.test[: n_test or None])

    @property
    def digest(self) -> str:
        """Identifies the text, which depends on the version of Python."""
        return hashlib.sha256(self.train.tobytes() + self.test.tobytes()).hexdigest()[:16]


def load_text(name: str) -> Text:
    """ "python", the sources of the standard library; or "topics", the texts of ``help()``.

    Documents are in a random but fixed order; the last ones are for testing.

    Raises:
        ValueError: No text has that name.
    """
    return _divided(TEXTS[name]())


def _python() -> list[bytes]:
    """Only ``.py`` files, except those that describe a machine's build."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = {str(path.relative_to(root)): path for path in root.rglob("*.py")}
    return [
        path.read_bytes()
        for name, path in sorted(paths.items())
        if not NOT_READ & set(Path(name).parts) and not name.startswith("_sysconfigdata")
    ]


def _topics() -> list[bytes]:
    """English prose with some code: parts of Python's language reference."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    return [text.encode() for _, text in sorted(topics.items())]


TEXTS = {"python": _python, "topics": _topics}


def _divided(documents: list[bytes]) -> Text:
    order = np.random.default_rng(0).permutation(len(documents))
    ends = np.cumsum([len(documents[i]) for i in order])
    text = np.frombuffer(b"".join(documents[i] for i in order), np.uint8)
    first_of_test = ends[np.searchsorted(ends, (1 - TEST_SHARE) * len(text)) - 1]
    return Text(text[:first_of_test], text[first_of_test:])
