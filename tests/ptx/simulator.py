"""Builds GPGPU-Sim from a copy of a checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import edits

HEADERS = ("nvidia-cuda-runtime-cu11==11.8.89", "nvidia-cuda-nvcc-cu11==11.8.89")
"""Packages on PyPI with the version of CUDA's headers that the simulator supports."""

TOOLKIT = {
    "bin/nvcc": '#!/bin/sh\necho "Cuda compilation tools, release 11.0, V11.0.0"\n',
    # The simulator calls these as: -lptx PROGRAM, -xptx FILE PROGRAM; ptxas ... FILE ...
    "bin/cuobjdump": """#!/bin/sh
case $1 in
-lptx) n=0; for f in "$RESFED_PTX"/*.ptx; do n=$((n + 1)); echo "PTX $n: $(basename "$f")"; done ;;
-xptx) cp "$RESFED_PTX/$2" . ;;
esac
""",
    "bin/ptxas": """#!/bin/sh
for f; do case $f in *.ptx) cat "$RESFED_PTX/$(basename "$f" .ptx).info" >&2 ;; esac; done
""",
    "include/cuda_profiler_api.h": "#pragma once\n#include <cuda.h>\n",
    "include/cudaProfiler.h": """#pragma once
#include <cuda.h>
typedef enum CUoutput_mode_enum { CU_OUT_KEY_VALUE_PAIR = 0, CU_OUT_CSV = 1 } CUoutput_mode;
""",
}


def copy_sources(checkout: Path, to: Path) -> None:
    """Copy the edits' version from a clone, or a source tree without history."""
    is_bare = (checkout / "objects").is_dir()
    if is_bare or (checkout / ".git").exists():
        to.mkdir(parents=True)
        archive = subprocess.Popen(
            ["git", "-C", checkout, "archive", edits.COMMIT], stdout=subprocess.PIPE
        )
        subprocess.run(["tar", "x", "-C", to], stdin=archive.stdout, check=True)
        if archive.wait():
            raise SystemExit(f"{checkout} has no commit {edits.COMMIT}")
    else:
        shutil.copytree(checkout, to)


def make_toolkit(folder: Path) -> None:
    """Create the files that the simulator expects in CUDA_INSTALL_PATH."""
    wheels = folder / "wheels"
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", wheels, *HEADERS],
        check=True, env={**os.environ, "PIP_CONSTRAINT": ""},
    )  # fmt: skip
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                _, found, inside = name.partition("/include/")
                if found and inside and not inside.endswith("/"):
                    target = folder / "include" / inside
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(name))
    for name, text in TOOLKIT.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        if name.startswith("bin/"):
            target.chmod(0o755)


class Simulator:
    """The simulator in ``folder``; built if missing, or older than the edits."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        self.root, self.toolkit = folder / "source", folder / "toolkit"
        self.library = self.root / "lib" / "libcudart.so"
        edited = Path(edits.__file__).stat().st_mtime
        if self.library.exists() and self.library.stat().st_mtime > edited:
            return
        shutil.rmtree(folder, ignore_errors=True)
        make_toolkit(self.toolkit)
        copy_sources(checkout, self.root)
        edits.apply(self.root)
        self._build(folder / "build.log")

    def environment(self) -> dict[str, str]:
        """Environment variables for building and for programs."""
        environment = {key: value for key, value in os.environ.items() if "GPGPUSIM" not in key}
        return environment | {
            "CUDA_INSTALL_PATH": str(self.toolkit),
            "PTXAS_CUDA_INSTALL_PATH": str(self.toolkit),
            "GPGPUSIM_ROOT": str(self.root),
            "GPGPUSIM_CONFIG": "release",
            "GPGPUSIM_SETUP_ENVIRONMENT_WAS_RUN": "1",
            "PATH": f"{self.toolkit / 'bin'}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": str(self.library.parent),
            "PTX_SIM_USE_PTX_FILE": "1.ptx",
            "PTX_SIM_KERNELFILE": "_1.ptx",
            "CUOBJDUMP_SIM_FILE": "none",
        }

    def _build(self, log: Path) -> None:
        print(f"building the simulator (some minutes; {log})", flush=True)
        command = ["make", "lib/libcudart.so", "SIM_LIB_DIR=lib"]
        command += [f"SIM_OBJ_FILES_DIR={self.root / 'build'}"]
        with log.open("w") as out:
            done = subprocess.run(
                command, cwd=self.root, env=self.environment(), stdout=out, stderr=out
            )
        if done.returncode or not self.library.exists():
            raise SystemExit(f"{log}:\n" + "\n".join(log.read_text().splitlines()[-15:]))
