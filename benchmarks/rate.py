"""Bytes at equal error if elements are selected for rate and distortion, not by magnitude.

    python -m benchmarks.rate --snapshots fedavg_cnn.npz transformer_adam.npz

The codec sends the largest residuals. The rule "rate" of benchmarks/federated/methods/select.py
searches for the elements that remove the most squared error for their bits. Here both code the last
update of each file, without error feedback.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import resfed_codec as rfc
from benchmarks.common import Model, write_results
from benchmarks.federated.methods.base import flat, like
from benchmarks.federated.methods.select import Costs, Matrices, by_rate, encode_nonzeros
from benchmarks.updates import Source, updates_in

SPARSITIES = (0.95, 0.98, 0.99)
DENSITIES = (0.7, 0.9, 1.1, 1.4)  # of candidates for "rate", relative to top-k's
PASSES = 3  # until its costs are those of what it selects
NOTE = """\
Float32 matrices as one model, without error feedback. The error is relative squared error, that of
top-k; bytes of "rate" are interpolated between those of four densities, in logarithms (nan: not
between them). "Rate" is the search that docs/benchmarks.md describes; its price of a bit is its
gain at the threshold."""


def measure(source: Source, sparsity: float) -> dict[str, Any]:
    """A row: the bytes of both at the error that top-k leaves."""
    update = source.load()
    residual: Model = {
        name: update.state[name] - before for name, before in update.reference.items()
    }
    zeros = {name: np.zeros_like(value) for name, value in residual.items()}
    names = sorted(residual)

    def error_of(payload: bytes) -> float:
        left = flat(residual) - flat(rfc.decode(payload, zeros))
        return float(np.square(left, dtype=np.float64).sum())

    energy = float(np.square(flat(residual), dtype=np.float64).sum())
    by_magnitude = rfc.encode(residual, zeros, config=rfc.CodecConfig(sparsity=sparsity))
    error = error_of(by_magnitude)
    matrices = Matrices(flat(residual), [residual[name].shape for name in names])
    curve = []
    for density in DENSITIES:
        costs = Costs()
        wanted = 1 - density * (1 - sparsity)
        for _ in range(PASSES):
            chosen = like(residual, by_rate(matrices, wanted, costs).values)
        payload = encode_nonzeros(chosen, zeros, wanted, names)
        curve.append((error_of(payload), len(payload)))
    errors, sizes = np.array(sorted(curve)).T
    n_bytes = float("nan")  # beyond the curve
    if errors[0] <= error <= errors[-1]:
        n_bytes = float(np.exp(np.interp(error, errors, np.log(sizes))))
    return {
        "update": source.name,
        "sparsity": sparsity,
        "error": error / energy,
        "top-k, bytes": len(by_magnitude),
        "rate, bytes": n_bytes,
        "rate / top-k": n_bytes / len(by_magnitude),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rate")
    parser.add_argument("--snapshots", type=Path, nargs="+", required=True)
    sources = [updates_in(path)[-1] for path in parser.parse_args().snapshots]
    cases = [(source, sparsity) for source in sources for sparsity in SPARSITIES]
    rows = [measure(*case) for case in tqdm(cases, disable=None)]
    print(write_results("rate", "Selection for rate and distortion, one update", rows, NOTE))


if __name__ == "__main__":
    main()
