"""Run the kernels of csrc/cuda, compiled to PTX by nvcc, in GPGPU-Sim, without a GPU.

    python tests/ptx CHECKOUT                 compare all cases with the CPU codec, bit for bit
    python tests/ptx CHECKOUT --case ties     one case
    python tests/ptx CHECKOUT --cycles        cycles of each kernel, on the model of an RTX 2060

CHECKOUT is a clone of https://github.com/accel-sim/gpgpu-sim_distribution that has the commit of
edits.py; it is not changed. Copies, builds and logs go to build/ptx. Needs nvcc (but no GPU or
driver), g++, make, pip, and the simulator's build tools (Debian: bison flex xutils-dev zlib1g-dev
libgl1-mesa-dev). If a tool is missing, prints a message and exits with 0.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path

from program import ROOT, Program
from simulator import Simulator

NEEDED = ("nvcc", "g++", "make", "bison", "flex", "makedepend")
SAID = re.compile(r"^SAYS: (.*)$", re.MULTILINE)
WRONG = re.compile(r"^(?:FAILED|WILD): .*$", re.MULTILINE)
LAUNCHED = re.compile(r"pushing kernel '(\w+)'")
TIMED = re.compile(r"^kernel_name = (\w+).*?^gpu_sim_cycle = (\d+).*?^gpu_sim_insn = (\d+)",
                   re.MULTILINE | re.DOTALL)  # fmt: skip

TIMINGS = {
    "timing": "A float32 tensor of 20,000 elements: 200 nonzeros, in one lane: 200 steps.",
    "timing_of_slice": "The same, 2,048 nonzeros, in the 32 lanes of a slice: 64 steps.",
    "timing_of_changes": "A lossless bfloat16 tensor of 32,768 elements, 2,048 of them changed, in"
    " the 32 lanes of a slice: 64 steps.",
}


def plain_name(mangled: str) -> str:
    """The last name: `encode_each` of _ZN6resfed4cuda40_GLOBAL__N__...11encode_eachE..."""
    names, rest = [], mangled.removeprefix("_ZN")
    while found := re.match(r"\d+", rest):
        n = int(found[0])
        names.append(rest[found.end() : found.end() + n])
        rest = rest[found.end() + n :]
    return names[-1]


def check(program: Program, cases: list[str], jobs: int, limit: float) -> bool:
    """Whether all cases pass and, if these are all cases, together launch every kernel."""
    with ThreadPoolExecutor(jobs) as pool:
        said = dict(zip(cases, pool.map(lambda c: _run(program, c, limit), cases), strict=True))
    failed = [case for case, text in said.items() if f"DONE: {case} passed" not in text]
    launched = {name for text in said.values() for name in LAUNCHED.findall(text)}
    missing = sorted(plain_name(name) for name in program.kernels() - launched)
    if len(cases) == len(program.names()) and missing:
        print(f"FAILED: kernels that no case launches: {', '.join(missing)}")
        failed.append("coverage")
    n_passed = len(cases) - len([case for case in cases if case in failed])
    print(f"{n_passed} of {len(cases)} cases passed, {len(launched)} kernels were launched")
    return not failed


def _run(program: Program, case: str, limit: float) -> str:
    text = program.run(case, timing=False, limit=limit)
    passed = f"DONE: {case} passed" in text
    lines = [f"{case}: {'passed' if passed else 'FAILED'}", *SAID.findall(text)]
    if not passed:
        lines += WRONG.findall(text)
    print("\n    ".join(lines), flush=True)
    return text


def print_cycles(program: Program, limit: float) -> bool:
    """Print a page for benchmarks/results/."""
    version = re.findall(r"release (\S+),", _output("nvcc", "--version"))[0]
    changed = _output("git", "-C", ROOT, "status", "--porcelain", "csrc")
    commit = _output("git", "-C", ROOT, "rev-parse", "--short", "HEAD").strip()
    print("# Cycles of the kernels in a simulator\n")
    print("- machine: `GPGPU-Sim 667834c, its RTX 2060 with 2 of 30 processors; no GPU`")
    print(f"- versions: `nvcc {version}, PTX for compute capability 7.5`")
    print("- command: `python tests/ptx CHECKOUT --cycles`")
    print(f"- commit: `{commit}{' with changes' if changed else ''}`")
    print(f"- date: `{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC`\n")
    done = True
    for case, what in TIMINGS.items():
        text = program.run(case, timing=True, limit=limit)
        print(
            f"{what}\n\n| kernel, in order | cycles | instructions of all threads |\n|---|---|---|"
        )
        for name, cycles, instructions in TIMED.findall(text):
            print(f"| {plain_name(name)} | {int(cycles):,} | {int(instructions):,} |")
        print(flush=True)
        print("\n".join(["", *WRONG.findall(text)]), file=sys.stderr)
        done &= f"DONE: {case} passed" in text
    return done


def _output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/ptx")
    parser.add_argument("checkout", type=Path, nargs="?", help="a clone of the simulator")
    parser.add_argument("--case", action="append", help="default: all")
    parser.add_argument("--cycles", action="store_true", help="of each kernel; takes minutes")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time (default: 2)")
    parser.add_argument("--limit", type=float, default=1800, help="seconds for a case")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "ptx")
    args = parser.parse_args()

    missing = [name for name in NEEDED if shutil.which(name) is None]
    if args.checkout is None or not args.checkout.is_dir():
        missing.append("checkout of the simulator")
    if missing:
        print(f"PTX in a simulator skipped: there is no {', no '.join(missing)}")
        return 0
    simulator = Simulator(args.checkout.resolve(), args.build.resolve() / "simulator")
    program = Program(simulator, "nvcc", args.build.resolve() / "program")
    if args.cycles:
        return 0 if print_cycles(program, args.limit) else 1
    cases = args.case or program.names()
    if unknown := sorted(set(cases) - set(program.names())):
        raise SystemExit(f"no case {', '.join(unknown)}; there are {', '.join(program.names())}")
    return 0 if check(program, cases, args.jobs, args.limit) else 1


if __name__ == "__main__":
    sys.exit(main())
