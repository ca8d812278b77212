"""Quantizer steps for a threshold: bytes at equal error for several ratios threshold/step.

    python -m benchmarks.steps fedavg_cnn.npz snapshots/transformer_*.npz

For each ratio, measures payload bytes and relative squared error at many sparsities and
interpolates the bytes at given errors (log bytes against error). The table has means over a file's
updates, two up and one down, relative to the default.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import resfed_codec as rfc
from benchmarks.common import (
    Model,
    is_matrix,
    load_snapshots,
    relative_squared_error,
    updates_in,
    write_results,
)
from resfed_codec.config import AUTO_STEP_RATIO

RATIOS = (0.3, 0.4, 0.5, AUTO_STEP_RATIO, 0.6, 0.7, 0.85, 1.0)
ERRORS = (0.03, 0.06, 0.12, 0.25, 0.4, 0.55, 0.7, 0.85)
SPARSITIES = 1 - np.geomspace(0.3, 0.001, 24)


def bytes_at(state: Model, reference: Model, ratio: float) -> NDArray[np.float64]:
    """Payload bytes at each of ERRORS; NaN for an error out of reach."""
    curve = []
    for sparsity in SPARSITIES.tolist():
        payload = rfc.encode(state, reference, sparsity=sparsity, step=ratio)
        recovered = rfc.decode(payload, reference)
        error = relative_squared_error(state, reference, recovered, list(reference))
        curve.append((error, np.log(len(payload))))
    errors, sizes = np.array(sorted(curve)).T
    wanted = np.array(ERRORS)
    outside = (wanted < errors[0]) | (wanted > errors[-1])
    return np.where(outside, np.nan, np.exp(np.interp(wanted, errors, sizes)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("snapshots", type=Path, nargs="+", help=".npz of prefix|name arrays")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for path in tqdm(args.snapshots):
        models = load_snapshots(path)
        pairs = updates_in(models)
        up = [pair for pair in pairs if pair[1].startswith("l")]
        down = [pair for pair in pairs if not pair[1].startswith("l")]
        found = []
        for base, new in (up[0], up[-2], down[-2]):
            names = [name for name, value in models[base].items() if is_matrix(value)]
            state, reference = ({n: models[p][n] for n in names} for p in (new, base))
            found.append([bytes_at(state, reference, ratio) for ratio in RATIOS])
        relative = np.array(found) / np.array(found)[:, RATIOS.index(AUTO_STEP_RATIO)][:, None]
        means = np.exp(np.log(relative).mean(axis=0))
        for j, error in enumerate(ERRORS):
            if not np.isnan(means[:, j]).all():
                cells = {f"ratio {r:g}": float(means[i, j]) for i, r in enumerate(RATIOS)}
                rows.append({"models": path.stem, "error": error, **cells})
    note = f"Bytes at equal error, relative to ratio {AUTO_STEP_RATIO:g}."
    print(write_results("steps", "Threshold over step", rows, note))


if __name__ == "__main__":
    main()
