"""The mean of many payloads: Aggregator compared with decoding each and averaging in NumPy.

    python -m benchmarks.aggregate --snapshots fedavg_cnn.npz

NumPy averages in three ways: ``np.average`` of all decoded models at once, which holds them all and
is left out above 200 clients, and a running sum in float64 and in float32.

The payloads come from N clients. Each sends the real update g6 to l0_7 with its values scaled by a
factor near 1 and some rows exchanged, so that no two clients send the same. All variants run in
turn; times are medians. The mean of each variant is compared with one in float64.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import resfed_codec as rfc
from benchmarks.common import Model, load_snapshots, write_results


def client_updates(state: Model, reference: Model, n_clients: int) -> list[Model]:
    """Different updates for all clients: rows scaled and, one in four, exchanged."""
    rng = np.random.default_rng(0)
    models = []
    for _ in range(n_clients):
        model = {}
        for name, base in reference.items():
            change = state[name] - base
            if base.ndim:
                rows = np.arange(len(change))
                moved = rng.permutation(len(change))[: len(change) // 4]
                rows[np.sort(moved)] = moved
                scale = rng.uniform(0.5, 1.5, (len(change),) + (1,) * (change.ndim - 1))
                change = (change[rows] * scale).astype(base.dtype)
            model[name] = base + change
        models.append(model)
    return models


def decode_and_average(payloads: list[bytes], weights: list[float], reference: Model) -> Model:
    """Hold all models in memory, then ``np.average`` tensor by tensor."""
    models = [rfc.decode(payload, reference) for payload in payloads]
    return {
        name: np.average([m[name] for m in models], axis=0, weights=weights).astype(value.dtype)
        for name, value in reference.items()
    }


def decode_and_add_up(
    payloads: list[bytes], weights: list[float], reference: Model, dtype: type[np.floating[Any]]
) -> Model:
    """Decode one model after another and add it in ``dtype``; divide at the end."""
    sums: dict[str, NDArray[Any]] = {n: np.zeros(v.shape, dtype) for n, v in reference.items()}
    for payload, weight in zip(payloads, weights, strict=True):
        for name, value in rfc.decode(payload, reference).items():
            sums[name] += dtype(weight) * value
    total = dtype(sum(weights))
    return {name: (value / total).astype(reference[name].dtype) for name, value in sums.items()}


def aggregate(payloads: list[bytes], weights: list[float], reference: Model) -> Model:
    aggregator = rfc.Aggregator(reference)
    for payload, weight in zip(payloads, weights, strict=True):
        aggregator.add(payload, weight)
    mean: Model = aggregator.result()
    return mean


def greatest_error(mean: Model, exact: Model) -> float:
    """The largest error over all float tensors, in float32 ULPs."""
    worst = 0.0
    for name, value in exact.items():
        if value.dtype == np.float32:
            difference = np.abs(mean[name].astype(np.float64) - value)
            worst = max(worst, float((difference / np.spacing(np.abs(value))).max()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--snapshots", type=Path, required=True, help=".npz that holds g6 and l0_7")
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sparsity", type=float, default=0.99)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    snapshots = load_snapshots(args.snapshots)
    reference = snapshots["g6"]
    rows = []
    for n_clients, threads in itertools.product(args.clients, args.threads):
        rfc.set_num_threads(threads)
        updates = client_updates(snapshots["l0_7"], reference, min(n_clients, 100))
        once = [rfc.encode(model, reference, sparsity=args.sparsity, dense=()) for model in updates]
        payloads = [once[i % len(once)] for i in range(n_clients)]
        weights = [float(n) for n in np.random.default_rng(1).integers(100, 2000, n_clients)]
        received = (payloads, weights, reference)
        exact = decode_and_add_up(*received, np.float64)
        todo: dict[str, Callable[[], Model]] = {
            "Aggregator": partial(aggregate, *received),
            "decode, np.average": partial(decode_and_average, *received),
            "decode, float64 sum": partial(decode_and_add_up, *received, np.float64),
            "decode, float32 sum": partial(decode_and_add_up, *received, np.float32),
        }
        if n_clients > 200:
            del todo["decode, np.average"]
        times: dict[str, list[float]] = {name: [] for name in todo}
        errors = {}
        for turn in tqdm(
            range(args.repeats + 1), desc=f"{n_clients} clients, {threads} threads", leave=False
        ):
            for name, run in todo.items():
                begin = time.perf_counter()
                mean = run()
                if turn > 0:  # the first turn is a warm-up
                    times[name].append(time.perf_counter() - begin)
                errors[name] = greatest_error(mean, exact)
        ours = statistics.median(times["Aggregator"])
        rows += [
            {
                "clients": n_clients,
                "threads": threads,
                "what": name,
                "median ms": statistics.median(seconds) * 1e3,
                "least": min(seconds) * 1e3,
                "greatest": max(seconds) * 1e3,
                "ms per client": statistics.median(seconds) / n_clients * 1e3,
                "times Aggregator": statistics.median(seconds) / ours,
                "greatest error, ulp": errors[name],
            }
            for name, seconds in times.items()
        ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    size = sum(value.nbytes for value in reference.values()) / 1e6
    note = (
        f"Sparsity {args.sparsity:g}, model of {size:.2f} MB. Times include making the"
        " Aggregator and its result. Errors against the float64 sum. Peak"
        f" resident memory of the process, 100 uncompressed updates and np.average included:"
        f" {peak:.2f} GB."
    )
    print(write_results("aggregate", "Mean of many payloads", rows, note))


if __name__ == "__main__":
    main()
