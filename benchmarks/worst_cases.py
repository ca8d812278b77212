"""Time of encode on adversarial updates, relative to a Gaussian one.

    python -m benchmarks.worst_cases [--elements 2000000] [--rounds 7] [--threads 1]

The result is the processor time of ``encode`` divided by that for the Gaussian update with the same
target in the same round. Each round measures all cases. Targets are sparsities, ``max_bytes`` and
``max_error``; the latter two search.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

import resfed_codec as rfc
from benchmarks.common import write_results

Update = Callable[[np.random.Generator, int], Any]


def signs(density: float) -> Update:
    """+1 or -1 for changed elements: all magnitudes are equal."""

    def update(rng: np.random.Generator, n: int) -> Any:
        return np.where(rng.random(n) < density, rng.choice([-1.0, 1.0], n), 0.0)

    return update


UPDATES: dict[str, Update] = {
    "Gaussian": lambda rng, n: rng.standard_normal(n),
    "+-1 everywhere": signs(1.0),
    "+-1 in 30 %": signs(0.3),
    "+-1 in 3 %": signs(0.03),
    "four magnitudes": lambda rng, n: rng.integers(-4, 5, n),
    "constant": lambda rng, n: np.ones(n),
    "+-1, few are 2": lambda rng, n: np.where(rng.random(n) < 0.005, 2.0, rng.choice([-1, 1], n)),
    "sorted": lambda rng, n: np.sort(rng.standard_normal(n)),
    "sorted magnitudes": lambda rng, n: np.sort(np.abs(rng.standard_normal(n))),
    "ramp": lambda rng, n: np.linspace(-1, 1, n),
    "all scales": lambda rng, n: 10.0 ** rng.uniform(-30, 30, n),
    "one outlier": lambda rng, n: np.where(np.arange(n) == n // 2, 1e30, rng.standard_normal(n)),
}


def targets(n: int) -> dict[str, dict[str, Any]]:
    return {
        "sparsity 0.99": {"sparsity": 0.99},
        "sparsity 0.9": {"sparsity": 0.9},
        "max_bytes": {"max_bytes": n // 100},
        "max_error 0.9": {"max_error": 0.9},
    }


def measure(n: int, rounds: int, names: list[str]) -> dict[tuple[str, str], list[float]]:
    rng = np.random.default_rng(0)
    rows = n // 1000
    shape = (rows, 1000)
    zeros = {"w": np.zeros(shape, np.float32)}
    states = {
        name: {"w": UPDATES[name](rng, rows * 1000).astype(np.float32).reshape(shape)}
        for name in names
    }
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for target, options in targets(n).items():
            for name, state in states.items():
                start = time.process_time()
                with suppress(ValueError):  # a search that fails takes as long
                    rfc.encode(state, zeros, **options)
                seconds.setdefault((name, target), []).append(time.process_time() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--only", nargs="*", choices=list(UPDATES), help="cases in addition to the Gaussian"
    )
    args = parser.parse_args()
    rfc.set_num_threads(args.threads)
    names = ["Gaussian", *(name for name in args.only or UPDATES if name != "Gaussian")]
    seconds = measure(args.elements, args.rounds, names)
    rows: list[dict[str, Any]] = []
    for name in names:
        rows.append({"update": name})
        for column in targets(args.elements):
            own, gaussian = seconds[name, column], seconds["Gaussian", column]
            ratios = [x / y for x, y in zip(own, gaussian, strict=True)]
            rows[-1][column] = (
                f"{1e3 * statistics.median(own):.1f} ms"
                if name == "Gaussian"
                else f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
            )
    note = (
        "Processor time of `encode`: of the Gaussian update in milliseconds, of the others as"
        " multiples of it with the same target. Median, least and greatest of"
        f" {args.rounds} rounds; {args.elements:,} elements, {args.threads} thread(s)."
    )
    print(write_results("worst_cases", "The slowest inputs", rows, note))


if __name__ == "__main__":
    main()
