"""Launch geometry and workspace sizes of the CUDA backend; the test needs no CUDA."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = os.environ.get("CXX", "c++")


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason="there is no C++ compiler")
def test_geometry(tmp_path: Path) -> None:
    program = tmp_path / "geometry"
    source = ROOT / "tests" / "native" / "geometry.cpp"
    subprocess.run(
        [COMPILER, "-std=c++20", "-O1", f"-I{ROOT / 'csrc'}", str(source), "-o", str(program)],
        check=True,
    )
    result = subprocess.run([program], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
