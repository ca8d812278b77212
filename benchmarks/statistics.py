"""Options for coding running statistics: bytes against the error of each statistic.

    python -m benchmarks.statistics --snapshots fedavg_cnn.npz

Encodes client updates (up) and broadcasts (down) of real snapshots of the paper's CNN, which has
BatchNorm, against the previous model at one sparsity. The statistics are in the budget of the
vectors, dense with several numbers of bits, lossless, or "apart": in a second payload that sends
all of them with a fixed number of levels between their smallest and largest residual. The error of
a mean is in units of its standard deviation, the error of a variance is relative.
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
APART = {f"apart, {bits} bits": bits for bits in (4, 5, 6)}
WAYS: dict[str, dict[str, Any]] = {
    "not sent": {},
    "in the budget": {"dense": ()},
    **{f"dense, {bits} bits": {"dense_bits": bits} for bits in (2, 3, 4, 5, 6)},
    **{way: {} for way in APART},
    "lossless": {"exclude": "*running_*"},
}


def is_statistic(name: str) -> bool:
    return "running_" in name


def send_apart(state: Model, reference: Model, names: list[str], bits: int) -> tuple[int, Model]:
    """Bytes of a payload of only these tensors, and the recovered tensors."""
    matrix = {"": np.zeros((1, 0), np.float32)}  # makes them vectors, which are scaled
    own, base = ({n: m[n] for n in names} | matrix for m in (state, reference))
    payload = rfc.encode(own, base, sparsity=0.0, bits=bits, dense=())
    return len(payload), rfc.decode(payload, base)


def errors(state: Model, recovered: Model) -> tuple[list[float], list[float]]:
    """The errors of all means and of all variances."""
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
            sizes: list[int] = []
            squares: list[float] = []
            n_extra = 0
            means: list[float] = []
            variances: list[float] = []
            for t in ROUNDS:
                state, reference = snapshots[f"{prefix}{t}"], snapshots[f"g{t - 1}"]
                rest, base = (
                    {n: v for n, v in model.items() if n not in names}
                    for model in (state, reference)
                )
                without = rfc.encode(rest, base, sparsity=args.sparsity)
                if way == "not sent":
                    n_bytes, recovered = len(without), reference
                elif way in APART:
                    own_bytes, recovered = send_apart(state, reference, names, APART[way])
                    n_bytes = len(without) + own_bytes
                else:
                    payload = rfc.encode(state, reference, sparsity=args.sparsity, **options)
                    n_bytes, recovered = len(payload), rfc.decode(payload, reference)
                sizes.append(n_bytes)
                n_extra += n_bytes - len(without)
                squares.append(relative_squared_error(state, reference, recovered, names))
                more_means, more_variances = errors(state, recovered)
                means += more_means
                variances += more_variances
            rows.append({
                "direction": direction,
                "statistics": way,
                "bytes": round(np.mean(sizes)),
                "bits a statistic": 8 * n_extra / (len(sizes) * n_statistics),
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
