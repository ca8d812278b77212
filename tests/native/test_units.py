"""Tests in C++ of small parts: the codec's arithmetic, lossless tensors, sizes on a CUDA device.

The same programs run under ``ctest`` in a build with ``-DRESFED_TESTS=ON``.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from programs import FLAGS, ROOT, find

COMPILER = find(os.environ.get("CXX", "c++"))


SOURCES = {
    "entropy": (),
    "geometry": (),
    "lossless": ("byte_planes", "lossless", "scratch", "threads"),
    "numeric": (),
}
"""Of each program, what it needs besides headers."""


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("name", SOURCES)
def test_units(name: str, tmp_path: Path) -> None:
    program = tmp_path / name
    sources = [ROOT / "tests/native" / f"{name}.cpp"]
    sources += [ROOT / "csrc/cpu" / f"{source}.cpp" for source in SOURCES[name]]
    command = [COMPILER, *FLAGS, "-O1", f"-I{ROOT / 'csrc'}", *sources, "-o", program]
    subprocess.run([str(part) for part in command], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
