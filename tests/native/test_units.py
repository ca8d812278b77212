"""Tests in C++ of headers alone: the codec's arithmetic, and sizes on a CUDA device.

The same programs run under ``ctest`` in a build with ``-DRESFED_TESTS=ON``.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from programs import FLAGS, ROOT, find

COMPILER = find(os.environ.get("CXX", "c++"))


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("name", ["entropy", "numeric", "geometry"])
def test_headers(name: str, tmp_path: Path) -> None:
    source, program = ROOT / "tests/native" / f"{name}.cpp", tmp_path / name
    subprocess.run(
        [str(COMPILER), *FLAGS, "-O1", f"-I{ROOT / 'csrc'}", str(source), "-o", str(program)],
        check=True,
    )
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
