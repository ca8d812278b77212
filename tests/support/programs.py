"""Builds programs from csrc/cpu and one more source, with any compiler.

Tests use it for other compilers and processors, sanitizers and fuzzing. CMake builds the package.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ("-std=c++20", "-ffp-contract=off", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-pthread")
"""As in CMakeLists.txt."""

SOURCE_FLAGS = {
    "lanes_avx512": (
        "-mavx512f",
        "-mavx512bw",
        "-mpopcnt",
        "-Wno-maybe-uninitialized",
        "-Wno-unknown-warning-option",
    ),
    "lanes_avx2": ("-mavx2", "-mpopcnt"),
    "residual_avx2": ("-mavx2", "-mf16c"),
    "residual_avx512": ("-mavx512f", "-Wno-maybe-uninitialized", "-Wno-unknown-warning-option"),
}
DEFINITIONS = {"x86_64": "-DRESFED_X86", "aarch64": "-DRESFED_NEON"}
OTHERS = {"x86_64": ("_neon",), "aarch64": ("_avx2", "_avx512")}


def find(*names: str) -> str | None:
    """The first of these programs that is installed."""
    return next((path for name in names if (path := shutil.which(name))), None)


def find_clang() -> str | None:
    return find("clang++", *(f"clang++-{version}" for version in range(22, 13, -1)))


def run(command: Sequence[str | Path]) -> None:
    subprocess.run([str(part) for part in command], check=True)


class Library:
    """The objects of csrc/cpu, compiled once for several programs."""

    def __init__(
        self, folder: Path, compiler: str, options: Sequence[str], processor: str = "x86_64"
    ) -> None:
        self._folder, self._processor = folder, processor
        self._command = [compiler, *FLAGS, *options, DEFINITIONS[processor], "-I", ROOT / "csrc"]
        folder.mkdir(parents=True, exist_ok=True)
        self._newest = max(path.stat().st_mtime for path in (ROOT / "csrc").rglob("*"))
        sources = [
            source
            for source in sorted((ROOT / "csrc/cpu").glob("*.cpp"))
            if not source.stem.endswith(OTHERS[processor])
        ]
        with ThreadPoolExecutor(2) as pool:
            self._objects = list(pool.map(self._compile, sources))

    def _compile(self, source: Path) -> Path:
        target = self._folder / f"{source.stem}.o"
        if target.exists() and target.stat().st_mtime > self._newest:
            return target
        flags = SOURCE_FLAGS.get(source.stem, ())
        run([*self._command, *flags, "-c", source, "-o", target])
        return target

    def program(self, source: Path, *options: str) -> Path:
        """Build a program with one more source; ``options`` are for compiling it and linking."""
        target = self._folder / source.stem
        run([*self._command, *options, source, *self._objects, "-o", target])
        return target
