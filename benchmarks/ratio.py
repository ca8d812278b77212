"""Payload bytes and relative squared error over sparsities, for a pair of model snapshots.

    python -m benchmarks.ratio --snapshots fedavg_cnn.npz --reference g6 --new l0_7

Writes a table, JSON and a plot to ``benchmarks/results/``. Every row checks that decoding gives,
bit for bit, the model that the encoder recovered.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np

import resfed_codec as rfc
from benchmarks.common import (
    RESULTS,
    Model,
    is_matrix,
    load_snapshots,
    relative_squared_error,
    write_results,
)
from resfed_codec.codec.update import encode_and_recover

mpl.use("Agg")
import matplotlib.pyplot as plt

SPARSITIES = (0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.9975, 0.999)


def measure(state: Model, reference: Model, sparsity: float, step: float | str) -> dict[str, Any]:
    payload, recovered = encode_and_recover(
        state, reference, sparsity=sparsity, step=step, dense=()
    )
    decoded = rfc.decode(payload, reference)
    for name, value in cast(Model, recovered).items():
        if decoded[name].tobytes() != value.tobytes():
            raise AssertionError(f"{name}: decoder and encoder recover different models")
    info = rfc.inspect(payload)
    floats = [name for name, value in reference.items() if value.dtype.kind == "f"]
    matrices = [name for name in floats if is_matrix(reference[name])]
    vectors = [name for name in floats if name not in matrices]
    row: dict[str, Any] = {
        "sparsity": sparsity,
        "bytes": len(payload),
        "model / payload": sum(value.nbytes for value in state.values()) / len(payload),
        "nonzeros": info.n_nonzero,
        "bits per nonzero": info.bits_per_nonzero,
        "error, matrices": relative_squared_error(state, reference, decoded, matrices),
    }
    if vectors:
        row["error, vectors"] = relative_squared_error(state, reference, decoded, vectors)
    return row


def plot(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6.4, 4))
    sizes = [row["bytes"] for row in rows]
    for key in ("error, matrices", "error, vectors"):
        if key in rows[0]:
            axes.plot(sizes, [row[key] for row in rows], "o-", label=key.removeprefix("error, "))
    for row in rows:
        axes.annotate(
            f"{row['sparsity']:g}",
            (row["bytes"], row["error, matrices"]),
            textcoords="offset points",
            xytext=(4, 5),
            fontsize=8,
        )
    axes.set(xscale="log", xlabel="payload, bytes", ylabel="relative squared error", title=title)
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--snapshots", type=Path, required=True, help=".npz of prefix|name arrays")
    parser.add_argument("--reference", default="g6", help="prefix of the reference (default g6)")
    parser.add_argument("--new", default="l0_7", help="prefix of the new model (default l0_7)")
    parser.add_argument("--matrices-only", action="store_true", help="leave out vectors, integers")
    parser.add_argument("--step", type=float, help="threshold / step (default: auto)")
    parser.add_argument("--sparsities", type=float, nargs="+", default=SPARSITIES)
    args = parser.parse_args()
    snapshots = load_snapshots(args.snapshots)
    state, reference = snapshots[args.new], snapshots[args.reference]
    if args.matrices_only:
        reference = {n: v for n, v in reference.items() if is_matrix(v)}
        state = {n: state[n] for n in reference}
    step = "auto" if args.step is None else args.step
    rows = [measure(state, reference, s, step) for s in args.sparsities]
    name = f"ratio_{args.reference}_{args.new}" + ("_matrices" if args.matrices_only else "")
    n_elems = sum(int(np.prod(v.shape)) for v in reference.values())
    title = f"{args.reference} to {args.new}, {n_elems:,} elements"
    print(write_results(name, title, rows, f"![bytes and error]({name}.png)"))
    plot(rows, title, RESULTS / f"{name}.png")


if __name__ == "__main__":
    main()
