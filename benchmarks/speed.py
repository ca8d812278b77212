"""Time per parameter of encode and decode, with memory bandwidth measured in the same run.

    python -m benchmarks.speed [--snapshots fedavg_cnn.npz] [--threads 1 2] [--rounds 9]

Runs ``resfed-codec bench`` for several models and numbers of threads. The unit of comparison is
``torch.sub(w, p, out=r)`` with the same number of threads, which reads two models and writes one.

The large model is synthetic, like a Transformer (``resfed_codec.cli.bench.synthetic_update``).
``--snapshots`` adds a real update (g6 to l0_7).

On a shared machine the core's clock may change while the memory's speed does not, which changes the
ratios. So all tasks run in several rounds, and a sequential sum in cache measures the speed of the
core in each round.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: F401  the baseline, named in the result
from tqdm import tqdm

import resfed_codec as rfc
from benchmarks.common import Model, load_snapshots, write_results
from resfed_codec.cli import bench


def cumsum_us() -> float:
    """Microseconds for 65,536 dependent additions, which the core's clock bounds."""
    numbers = np.ones(65_536, np.int64)
    sums = np.empty_like(numbers)
    times = []
    for _ in range(51):
        start = time.perf_counter()
        np.cumsum(numbers, out=sums)
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


def measure(pair: tuple[Model, Model], args: Any, threads: int) -> dict[str, float]:
    """Median milliseconds of each task."""
    rfc.set_num_threads(threads)
    report = bench.measure(*pair, sparsity=args.sparsity, turns=args.repeats)
    return {timing.task: timing.median_ms for timing in report.timings}


def summary(rounds: list[dict[str, float]], n_parameters: int) -> list[dict[str, Any]]:
    """A row for each task: the median over rounds, and the range."""
    rows = []
    for task in rounds[0]:
        times = [medians[task] for medians in rounds]
        ratios = [medians[task] / medians["torch.sub"] for medians in rounds]
        rows.append(
            {
                "what": task,
                "median ms": statistics.median(times),
                "least": min(times),
                "greatest": max(times),
                "ns per parameter": 1e6 * statistics.median(times) / n_parameters,
                "times torch.sub": statistics.median(ratios),
                "fewest times": min(ratios),
                "most times": max(ratios),
            }
        )
    return rows


def by_round(clocks: list[float], rounds: list[dict[str, float]], case: str) -> str:
    """The core's speed in each round, as a Markdown table."""
    lines = [
        f"Each round of {case}:",
        "",
        "| np.cumsum, us | torch.sub, ms | encode, times | decode in place, times |",
        "|---|---|---|---|",
    ]
    for clock, medians in sorted(zip(clocks, rounds, strict=True), key=lambda pair: pair[0]):
        sub = medians["torch.sub"]
        lines.append(
            f"| {clock:.1f} | {sub:.2f} | {medians['encode'] / sub:.2f}"
            f" | {medians['decode, in place'] / sub:.2f} |"
        )
    return "\n".join(lines)


def floats(model: Model) -> Model:
    return {name: value for name, value in model.items() if value.dtype == np.float32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--elements", type=int, nargs="*", default=[32_000_000])
    parser.add_argument("--snapshots", type=Path, help=".npz that holds g6 and l0_7")
    parser.add_argument("--sparsity", type=float, default=0.99)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=9, help="turns of a round (default: 9)")
    parser.add_argument("--rounds", type=int, default=9, help="(default: 9)")
    args = parser.parse_args()
    pairs: dict[str, tuple[Model, Model]] = {}
    if args.snapshots:
        snapshots = load_snapshots(args.snapshots)
        pairs["CNN, g6 to l0_7"] = (floats(snapshots["l0_7"]), floats(snapshots["g6"]))
    pairs |= {f"synthetic, {n:,}": bench.synthetic_update(n) for n in args.elements}
    cases = [(name, threads) for name in pairs for threads in args.threads]
    results: dict[tuple[str, int], list[dict[str, float]]] = {case: [] for case in cases}
    clocks: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    for _ in tqdm(range(args.rounds)):
        for name, threads in cases:
            before = cumsum_us()
            results[name, threads].append(measure(pairs[name], args, threads))
            clocks[name, threads].append((before + cumsum_us()) / 2)
    rows = [
        {"model": name, "threads": threads, **row}
        for name, threads in cases
        for row in summary(results[name, threads], sum(v.size for v in pairs[name][1].values()))
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    last = (cases[-1][0], args.threads[0])
    note = (
        f"Sparsity {args.sparsity:g}, float32; medians of {args.repeats} turns, in {args.rounds}"
        f" rounds. Peak resident memory of the process: {peak:.2f} GB.\n\n"
        + by_round(clocks[last], results[last], f"{last[0]} on {last[1]} thread(s)")
    )
    print(write_results("speed", "Speed on the CPU", rows, note))


if __name__ == "__main__":
    main()
