"""Time per parameter of encode and decode, with memory traffic measured in the same run.

    python -m benchmarks.speed [--snapshots fedavg_cnn.npz] [--threads 1 2]

All contestants take turns; medians of the turns, with the least and the greatest beside them. The
measure is ``torch.sub(w, p, out=r)`` with as many threads: it reads two models and writes one.

The large model is made up, like a Transformer (``resfed_codec.bench.synthetic_update``).
``--snapshots`` adds a real update (g6 to l0_7).
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import resfed_codec as rfc
from benchmarks.common import Model, load_snapshots, write_results
from resfed_codec.bench import synthetic_update


def contestants(
    state: Model, reference: Model, sparsity: float
) -> tuple[dict[str, Callable[[], object]], Callable[[], None]]:
    """What is timed, by name, and what must happen (untimed) before each turn."""
    payload = rfc.encode(state, reference, sparsity=sparsity, dense=())
    in_place = {name: value.copy() for name, value in reference.items()}
    w = torch.cat([torch.from_numpy(v).ravel() for v in state.values() if v.dtype == np.float32])
    p = torch.cat(
        [torch.from_numpy(v).ravel() for v in reference.values() if v.dtype == np.float32]
    )
    r, copy = torch.empty_like(w), torch.empty_like(w)

    def reset() -> None:
        for name, value in reference.items():
            np.copyto(in_place[name], value)

    return {
        "torch.sub": lambda: torch.sub(w, p, out=r),
        "copy": lambda: copy.copy_(w),
        "encode": lambda: rfc.encode(state, reference, sparsity=sparsity, dense=()),
        "decode, new arrays": lambda: rfc.decode(payload, reference),
        "decode, in place": lambda: rfc.decode(payload, in_place, out=in_place),
    }, reset


def measure(model: str, pair: tuple[Model, Model], args: Any, threads: int) -> list[dict[str, Any]]:
    rfc.set_num_threads(threads)
    torch.set_num_threads(threads)
    todo, reset = contestants(*pair, args.sparsity)
    n_elems = sum(value.size for value in pair[0].values())
    times: dict[str, list[float]] = {name: [] for name in todo}
    for turn in tqdm(range(args.repeats + 1), desc=f"{model}, {threads} threads", leave=False):
        for name, run in todo.items():
            reset()
            begin = time.perf_counter()
            run()
            if turn > 0:  # the first turn warms up
                times[name].append(time.perf_counter() - begin)
    measure_of = statistics.median(times["torch.sub"])
    return [
        {
            "model": model,
            "threads": threads,
            "what": name,
            "median ms": statistics.median(seconds) * 1e3,
            "least": min(seconds) * 1e3,
            "greatest": max(seconds) * 1e3,
            "ns per parameter": statistics.median(seconds) / n_elems * 1e9,
            "times torch.sub": statistics.median(seconds) / measure_of,
        }
        for name, seconds in times.items()
    ]


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
        pairs["CNN, g6 to l0_7"] = (snapshots["l0_7"], snapshots["g6"])
    pairs |= {f"synthetic, {n:,}": synthetic_update(n) for n in args.elements}
    rows = [row for name, pair in pairs.items() for t in args.threads
            for row in measure(name, pair, args, t)]  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    note = (
        f"Sparsity {args.sparsity:g}, float32. Peak resident memory of the process: {peak:.2f} GB."
    )
    print(write_results("speed", "Speed on the CPU", rows, note))


if __name__ == "__main__":
    main()
