"""Fuzz the native code with libFuzzer, under the address and undefined-behaviour sanitizers, and
sessions in Python.

    python tests/fuzz --seconds 60        each target for this time, with a new seed
    python tests/fuzz --runs 20000        a fixed number of executions from a fixed seed
    python tests/fuzz --faults            first, every allocation fails once
    python tests/fuzz --races             calls from several threads, under the thread sanitizer

The native targets need clang with its runtime libraries (Debian: clang, libclang-rt-dev). The
target `sessions` (sessions.py) needs the installed package and its test requirements. Targets
without their tools are skipped with a message. New inputs go to build/fuzz/corpus, and inputs that
crash to build/fuzz. Add a crash to tests/fuzz/crashes/TARGET after its fix.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from programs import ROOT, Library, find_clang, run

FOLDER = ROOT / "tests" / "fuzz"
BUILD = ROOT / "build" / "fuzz"
NATIVE = sorted(path.stem for path in FOLDER.glob("*.cpp"))
SESSIONS = "sessions"

SESSIONS_NEED = ("resfed_codec", "pytest", "hypothesis", "ml_dtypes")
RUNS_PER_SESSION = 3
"""An execution of `sessions` is slow, so it runs only --runs divided by this number."""

MAX_LENGTH = 4096
MEGABYTES_AT_ONCE = 3
"""Limit of one allocation: the models are small, the trained tables take 2.2 megabytes."""

OPTIONS = (
    "-O1",
    "-g",
    "-fsanitize=fuzzer-no-link,address,undefined,float-cast-overflow",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
    "-DRESFED_EAGER_THREADS",  # several threads also for small models
)


THREAD_SANITIZER = ("-O1", "-g", "-fsanitize=thread", "-DRESFED_EAGER_THREADS")


def works(clang: str) -> bool:
    """Whether this clang can build fuzzers."""
    BUILD.mkdir(parents=True, exist_ok=True)
    source = BUILD / "probe.cc"
    source.write_text(
        'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }'
    )
    command = [clang, "-std=c++20", "-fsanitize=fuzzer,address,undefined", source]
    return not subprocess.run([*command, "-o", BUILD / "probe"], capture_output=True).returncode


def fuzz(program: Path, seeds: list[Path], *options: str) -> int:
    """Run one target; return the number of executions."""
    command = [
        program,
        *options,
        f"-max_len={MAX_LENGTH}",
        "-len_control=0",
        f"-malloc_limit_mb={MEGABYTES_AT_ONCE}",
        "-rss_limit_mb=2048",
        "-timeout=20",
        "-print_final_stats=1",
        f"-artifact_prefix={BUILD}/{program.stem}-",
        *seeds,
    ]
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=BUILD
    )
    executions = re.search(r"stat::number_of_executed_units: *(\d+)", done.stderr)
    if done.returncode or not executions:
        print(done.stderr[-8000:])
        raise SystemExit(f"{program.stem}: FAILED")
    return int(executions.group(1))


def fuzz_sessions(*options: str) -> None:
    """Run the Python target in its own process, which prints its results."""
    missing = [name for name in SESSIONS_NEED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"sessions: skipped: {sys.executable} has no {', '.join(missing)}")
        return
    program = FOLDER / "sessions.py"
    done = subprocess.run([sys.executable, program, *options])
    if done.returncode < 0:
        number = (BUILD / "sessions.number").read_text().strip()
        print(f"signal {-done.returncode}; again: python {program} --repeat {number}")
    if done.returncode:
        raise SystemExit("sessions: FAILED")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/fuzz")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    length.add_argument("--runs", type=int, help="executions of each target, from a fixed seed")
    parser.add_argument("--faults", action="store_true", help="tests/native/faults.cpp, first")
    parser.add_argument("--races", action="store_true", help="tests/native/races.cpp, and no more")
    parser.add_argument(
        "--target", choices=[*NATIVE, SESSIONS], action="append", help="default: all"
    )
    args = parser.parse_args()

    if not args.races and (args.target is None or SESSIONS in args.target):
        runs = ("--runs", str(max(1, (args.runs or 0) // RUNS_PER_SESSION)))
        fuzz_sessions(*(runs if args.runs else ("--seconds", str(args.seconds))))
    targets = [target for target in args.target or NATIVE if target != SESSIONS]
    if not (targets or args.races or args.faults):
        return 0
    clang = find_clang()
    if clang is None or not works(clang):
        print(
            "native fuzzing skipped: needs clang and its runtime libraries (clang, libclang-rt-dev)"
        )
        return 0
    native = ROOT / "tests" / "native"
    if args.races:
        library = Library(BUILD / "thread", clang, THREAD_SANITIZER)
        run([library.program(native / "races.cpp")])
        return 0
    library = Library(BUILD, clang, OPTIONS)
    if args.faults:
        wrapped = "-Wl,--wrap=malloc,--wrap=calloc"
        run([library.program(native / "faults.cpp", wrapped)])
    with ThreadPoolExecutor(2) as pool:
        sources = [FOLDER / f"{target}.cpp" for target in targets]
        programs = list(pool.map(lambda s: library.program(s, "-fsanitize=fuzzer"), sources))
    total = 0
    for target, program in zip(targets, programs, strict=True):
        # libFuzzer writes new inputs to the first folder, so that is not one of the repository.
        if args.runs:
            options = [f"-runs={args.runs}", "-seed=1"]
            new = BUILD / "temporary" / target  # deleted, so that runs are reproducible
            shutil.rmtree(new, ignore_errors=True)
        else:
            options = [f"-max_total_time={args.seconds}"]
            new = BUILD / "corpus" / target
        new.mkdir(parents=True, exist_ok=True)
        seeds = [new, FOLDER / "corpus" / target, FOLDER / "crashes" / target]
        n = fuzz(program, [folder for folder in seeds if folder.is_dir()], *options)
        total += n
        print(f"{target}: {n:,} executions, nothing found", flush=True)
    print(f"native targets: {total:,} executions ({os.path.basename(clang)})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
