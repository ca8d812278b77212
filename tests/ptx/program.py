"""Builds the program of the cases, with kernels as PTX for the simulator."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from simulator import Simulator

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from programs import ROOT, Library, run

FOLDER = Path(__file__).resolve().parent
ARCHITECTURE = "75"  # the oldest target of nvcc 13 and the newest model of the simulator
FLAGS = ("-std=c++20", "--fmad=false", "--expt-relaxed-constexpr")
"""As in CMakeLists.txt."""

SHUFFLE = re.compile(r"shfl\.sync\.(\w+\.b32)(\s+[^,|;]+)(?:\|[^,;]+)?,([^;]+),[^,;]+;")
VOTE = re.compile(r"vote\.sync\.(ballot\.b32\s+[^,;]+,[^,;]+),[^;]+;")
WIDE = re.compile(r"^\s*(?:@!?%p\d+\s+)?[a-z][\w.]*\.[subf]64\s")
INTEGER = re.compile(r"(?<![\w.%$+\]])-?\d{10,}(?![\w.])")


def wide_literal(match: re.Match[str]) -> str:
    """Write an integer as a double's bits, because the simulator reads integers as 32 bits."""
    value = int(match[0])
    return match[0] if -(2**31) <= value < 2**31 else f"0d{value % 2**64:016X}"


def lowered(ptx: str, name: str) -> str:
    """Translate current PTX to the simulator's dialect, which runs warps in lockstep."""
    ptx = re.sub(r"^\.version .*", ".version 7.0", ptx, flags=re.MULTILINE)
    ptx = SHUFFLE.sub(r"shfl.\1\2,\3;", ptx)
    ptx = VOTE.sub(r"vote.\1;", ptx)
    ptx = re.sub(r"bar\.warp\.sync\s+[^;]+;", "", ptx)
    # Shared variables of inline functions are in several files; the simulator has one namespace.
    for variable in set(re.findall(r"^\.shared .* (\w+)(?:\[\d+\])?;", ptx, flags=re.MULTILINE)):
        ptx = re.sub(rf"\b{variable}\b", f"{name}_{variable}", ptx)
    lines = ptx.split("\n")
    return "\n".join(
        INTEGER.sub(wide_literal, line) if WIDE.match(line) else line for line in lines
    )


def compile_kernels(nvcc: str, source: Path, objects: Path, ptx: Path, newest: float) -> Path:
    """Compile a source to an object; PTX and ptxas output go to ``ptx``."""
    name, target = source.stem, objects / f"{source.name}.o"
    if target.exists() and target.stat().st_mtime > newest:
        return target
    architecture = f"arch=compute_{ARCHITECTURE},code=compute_{ARCHITECTURE}"
    keep = ["-keep", "-keep-dir", objects]
    run([nvcc, *FLAGS, "-I", ROOT / "csrc", "-gencode", architecture, *keep,
         "-c", source, "-o", target])  # fmt: skip
    made = objects / f"{name}.ptx"
    text = made.read_text() if source.suffix == ".cu" else ""
    if ".entry" in text:
        (ptx / f"{name}.sm_{ARCHITECTURE}.ptx").write_text(lowered(text, name))
        command = [nvcc, f"-arch=sm_{ARCHITECTURE}", "-cubin", "-Xptxas", "-v", made]
        command += ["-o", objects / f"{name}.cubin"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        wanted = [line for line in said.splitlines() if "Compile time" not in line]
        info = "\n".join(line for line in wanted if "Overriding" not in line) + "\n"
        info = re.sub(r", used \d+ barriers|, \d+ bytes cumulative stack size", "", info)
        (ptx / f"{name}.sm_{ARCHITECTURE}.info").write_text(info)
    return target


class Program:
    def __init__(self, simulator: Simulator, nvcc: str, folder: Path) -> None:
        self._simulator, self._folder = simulator, folder
        objects, self._ptx = folder / "objects", folder / "ptx"
        objects.mkdir(parents=True, exist_ok=True)
        self._ptx.mkdir(exist_ok=True)
        library = Library(folder / "cpu", "g++", ("-O2",))
        sources = [*sorted((ROOT / "csrc/cuda").glob("*.cu")), FOLDER / "arithmetic.cu"]
        sources += [FOLDER / "runtime.cpp", *sorted((ROOT / "csrc/cuda").glob("*.cpp"))]
        inputs = [*(ROOT / "csrc").rglob("*.*"), *sources, FOLDER / "runtime.hpp"]
        newest = max(path.stat().st_mtime for path in inputs)
        with ThreadPoolExecutor(2) as pool:
            compiled = [
                pool.submit(compile_kernels, nvcc, source, objects, self._ptx, newest)
                for source in sources
            ]
        kernels = [one.result() for one in compiled]
        self._program = library.program(
            FOLDER / "cases.cpp", "-O2", *kernels, simulator.library, "-ldl"
        )  # fmt: skip

    def kernels(self) -> set[str]:
        """The mangled names of the kernels."""
        texts = [path.read_text() for path in self._ptx.glob("*.ptx")]
        return {name for text in texts for name in re.findall(r"\.entry (\w+)\(", text)}

    def names(self) -> list[str]:
        text = (FOLDER / "cases.cpp").read_text()
        return re.findall(r"(?<!define )CASE\((\w+)\)", text)

    def run(self, case: str, timing: bool, limit: float) -> str:
        """The program's output; the log file also has the simulator's."""
        folder = self._folder / ("timing" if timing else "cases") / case
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._configure(folder, timing)
        log = folder / "log"
        with log.open("w") as out:
            try:
                code = subprocess.run(
                    [self._program, case], cwd=folder, env=self._environment(),
                    stdout=out, stderr=out, timeout=limit,
                ).returncode  # fmt: skip
            except subprocess.TimeoutExpired:
                code = -1
        text = log.read_text(errors="replace")
        return text if code == 0 else f"{text}\nFAILED: exit code {code}, see {log}\n"

    def _environment(self) -> dict[str, str]:
        return self._simulator.environment() | {"RESFED_PTX": str(self._ptx)}

    def _configure(self, folder: Path, timing: bool) -> None:
        """The model of an RTX 2060 with fewer processors, which does not change the results."""
        model = self._simulator.root / "configs/tested-cfgs/SM75_RTX2060"
        for path in model.iterdir():
            shutil.copy(path, folder)
        config = folder / "gpgpusim.config"
        text = config.read_text()
        settings = {
            "gpgpu_n_clusters": "2" if timing else "1",
            "gpgpu_n_mem": "4",
            "gpgpu_ptx_sim_mode": "0" if timing else "1",
            # One value more than in the model: the latency of shuffles.
            "ptx_opcode_latency_int": "4,4,4,4,21,23",
            "ptx_opcode_initiation_int": "2,2,2,2,2,4",
        }
        for name, value in settings.items():
            text, n = re.subn(rf"^-{name} .*$", f"-{name} {value}", text, flags=re.MULTILINE)
            if n != 1:
                raise SystemExit(f"{config}: {n} lines -{name}")
        config.write_text(text)
