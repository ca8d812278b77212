"""Which step goes best with a threshold: bytes at equal error, for several ratios threshold/step.

    python -m benchmarks.steps --snapshots fedavg_cnn.npz

For each ratio, payload bytes and relative squared error over many sparsities; then bytes at given
errors by interpolation (log bytes against error), as means over updates relative to the default.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

import resfed_codec as rfc
from benchmarks.common import is_matrix, load_snapshots, relative_squared_error, write_results
from resfed_codec.config import AUTO_STEP_RATIO

RATIOS = (0.3, 0.4, 0.5, AUTO_STEP_RATIO, 0.6, 0.7, 0.85, 1.0)
ERRORS = (0.03, 0.06, 0.12, 0.25, 0.4, 0.55, 0.7)
SPARSITIES = 1 - np.geomspace(0.3, 0.001, 24)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--snapshots", type=Path, required=True)
    pairs = ["g6:l0_7", "g4:l0_5", "g6:g7"]
    parser.add_argument("--pairs", nargs="+", default=pairs, help="reference:new")
    args = parser.parse_args()
    snapshots = load_snapshots(args.snapshots)
    bytes_at = np.zeros((len(args.pairs), len(RATIOS), len(ERRORS)))
    for p, pair in enumerate(tqdm(args.pairs)):
        base, new = (snapshots[name] for name in pair.split(":"))
        names = [name for name, value in base.items() if is_matrix(value)]
        reference, state = ({n: model[n] for n in names} for model in (base, new))
        for r, ratio in enumerate(RATIOS):
            curve = []
            for sparsity in SPARSITIES.tolist():
                payload = rfc.encode(state, reference, sparsity=sparsity, step=ratio)
                recovered = rfc.decode(payload, reference)
                error = relative_squared_error(state, reference, recovered, names)
                curve.append((error, np.log(len(payload))))
            errors, sizes = np.array(sorted(curve)).T
            outside = (np.array(ERRORS) < errors[0]) | (np.array(ERRORS) > errors[-1])
            at = np.exp(np.interp(ERRORS, errors, sizes))
            bytes_at[p, r] = np.where(outside, np.nan, at)
    relative = bytes_at / bytes_at[:, RATIOS.index(AUTO_STEP_RATIO)][:, None]
    means = np.exp(np.log(relative).mean(axis=0))
    rows = [
        {"error": error, **{f"ratio {r:g}": float(means[i, j]) for i, r in enumerate(RATIOS)}}
        for j, error in enumerate(ERRORS)
    ]
    note = f"Bytes at equal error, relative to ratio {AUTO_STEP_RATIO:g}; {', '.join(args.pairs)}."
    print(write_results("steps", "Threshold over step", rows, note))


if __name__ == "__main__":
    main()
