"""How running statistics should travel: bytes against the error of each statistic.

    python -m benchmarks.statistics --snapshots fedavg_cnn.npz

Takes real snapshots of the paper's CNN, which has BatchNorm, and encodes client updates (up) and
broadcasts (down) against the model before, at one sparsity, with the statistics in the budget of
the vectors, dense at several bits, and lossless. Errors of a mean are in units of the standard
deviation that belongs to it, errors of a variance relative to it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import resfed_codec as rfc
from benchmarks.common import Model, load_snapshots, relative_squared_error, write_results

EPS = 1e-5
ROUNDS = range(5, 9)
WAYS: dict[str, dict[str, Any]] = {
    "not sent": {},
    "in the budget": {"dense": ()},
    **{f"dense, {bits} bits": {"dense_bits": bits} for bits in (2, 3, 4, 5, 6)},
    "lossless": {"exclude": "*running_*"},
}


def is_statistic(name: str) -> bool:
    return "running_" in name


def errors(state: Model, recovered: Model) -> tuple[list[float], list[float]]:
    """Of all means, of all variances."""
    means: list[float] = []
    variances: list[float] = []
    for name, value in state.items():
        if name.endswith("running_mean"):
            variance = state[name.replace("mean", "var")]
            means += list(np.abs(recovered[name] - value) / np.sqrt(variance + EPS))
        elif name.endswith("running_var"):
            variances += list(np.abs(recovered[name] - value) / (value + EPS))
    return means, variances


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--snapshots", type=Path, required=True)
    parser.add_argument("--sparsity", type=float, default=0.99)
    args = parser.parse_args()
    snapshots = load_snapshots(args.snapshots)
    names = [name for name in snapshots["g4"] if is_statistic(name)]
    n_statistics = sum(snapshots["g4"][name].size for name in names)
    rows: list[dict[str, Any]] = []
    for direction, prefix in (("up", "l0_"), ("down", "g")):
        for way, options in WAYS.items():
            sizes, bits, squares = [], [], []
            means: list[float] = []
            variances: list[float] = []
            for t in ROUNDS:
                state, reference = snapshots[f"{prefix}{t}"], snapshots[f"g{t - 1}"]
                rest, base = (
                    {n: v for n, v in model.items() if n not in names}
                    for model in (state, reference)
                )
                without = rfc.encode(rest, base, sparsity=args.sparsity)
                payload = rfc.encode(state, reference, sparsity=args.sparsity, **options)
                recovered = rfc.decode(payload, reference)
                if way == "not sent":
                    payload, recovered = without, {**state, **{n: reference[n] for n in names}}
                sizes.append(len(payload))
                bits.append(8 * (len(payload) - len(without)) / n_statistics)
                squares.append(relative_squared_error(state, reference, recovered, names))
                more_means, more_variances = errors(state, recovered)
                means += more_means
                variances += more_variances
            rows.append({
                "direction": direction,
                "statistics": way,
                "bytes": round(np.mean(sizes)),
                "bits a statistic": float(np.mean(bits)),
                "squared error": float(np.mean(squares)),
                "mean, median": float(np.median(means)),
                "mean, 99 %": float(np.quantile(means, 0.99)),
                "mean, worst": float(max(means)),
                "variance, median": float(np.median(variances)),
                "variance, 99 %": float(np.quantile(variances, 0.99)),
                "variance, worst": float(max(variances)),
            })  # fmt: skip
    note = (
        f"{n_statistics:,} statistics, sparsity {args.sparsity}, means of {len(ROUNDS)} payloads."
        " Bits a statistic: what the payload takes more than one of the model without statistics."
        " Squared error: of all statistics together, relative to their residual's. Errors of means"
        " are in standard deviations, those of variances relative: median, 99th percentile and"
        " largest."
    )
    print(write_results("statistics", "How running statistics travel", rows, note))


if __name__ == "__main__":
    main()
