"""Import in a subinterpreter raises a clear error. Runs in its own process because it may hang."""

from __future__ import annotations

import subprocess
import sys

import pytest

INSIDE = """
import os, sys
sys.path[:0] = {path!r}
try:
    import resfed_codec
    outcome = "imported"
except ImportError as error:
    outcome = "ImportError: " + str(error)
os.write(1, outcome.encode())
"""
OUTSIDE = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
{before}
interpreters.run_string(interpreters.create({config}), {inside!r})
"""


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="CPython's subinterpreters")
@pytest.mark.parametrize("before", ["", "import resfed_codec"], ids=["first", "after the main one"])
@pytest.mark.parametrize("config", ["", "'legacy'"], ids=["isolated", "legacy"])
def test_refused_with_the_reason(before: str, config: str) -> None:
    if config and sys.version_info < (3, 13):
        pytest.skip("before Python 3.13 all are of one kind")
    inside = INSIDE.format(path=sys.path)
    program = OUTSIDE.format(before=before, config=config, inside=inside)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.startswith("ImportError: resfed_codec cannot be used in a subinterpreter")
