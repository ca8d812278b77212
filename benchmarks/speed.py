"""Time per parameter of encode and decode, with memory traffic measured in the same run.

    python -m benchmarks.speed [--snapshots fedavg_cnn.npz] [--threads 1 2]

What ``resfed-codec bench`` measures, for several models and numbers of threads, as a result. The
measure is ``torch.sub(w, p, out=r)`` with as many threads: it reads two models and writes one.

The large model is made up, like a Transformer (``resfed_codec.bench.synthetic_update``).
``--snapshots`` adds a real update (g6 to l0_7).
"""

from __future__ import annotations

import argparse
import resource
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: F401  what is compared with, and named in the result

import resfed_codec as rfc
from benchmarks.common import Model, load_snapshots, write_results
from resfed_codec import bench


def measure(model: str, pair: tuple[Model, Model], args: Any, threads: int) -> list[dict[str, Any]]:
    rfc.set_num_threads(threads)
    report = bench.measure(*pair, sparsity=args.sparsity, turns=args.repeats)
    measure_of = {timing.task: timing.median_ms for timing in report.timings}["torch.sub"]
    return [
        {
            "model": model,
            "threads": threads,
            "what": timing.task,
            "median ms": timing.median_ms,
            "least": timing.least_ms,
            "greatest": timing.greatest_ms,
            "ns per parameter": timing.ns_per_parameter,
            "times torch.sub": timing.median_ms / measure_of,
        }
        for timing in report.timings
    ]


def floats(model: Model) -> Model:
    return {name: value for name, value in model.items() if value.dtype == np.float32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--elements", type=int, nargs="*", default=[32_000_000])
    parser.add_argument("--snapshots", type=Path, help=".npz that holds g6 and l0_7")
    parser.add_argument("--sparsity", type=float, default=0.99)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    pairs: dict[str, tuple[Model, Model]] = {}
    if args.snapshots:
        snapshots = load_snapshots(args.snapshots)
        pairs["CNN, g6 to l0_7"] = (floats(snapshots["l0_7"]), floats(snapshots["g6"]))
    pairs |= {f"synthetic, {n:,}": bench.synthetic_update(n) for n in args.elements}
    rows = [row for name, pair in pairs.items() for t in args.threads
            for row in measure(name, pair, args, t)]  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    note = (
        f"Sparsity {args.sparsity:g}, float32. Peak resident memory of the process: {peak:.2f} GB."
    )
    print(write_results("speed", "Speed on the CPU", rows, note))


if __name__ == "__main__":
    main()
