"""Fit the trained sets of tables of the entropy coder.

    python -m benchmarks.trained_tables.fit --updates updates/*.npz --weights weights/*.npz

Updates and weights come from ``benchmarks.trained_tables.updates`` and ``.weights``, which use no
data of the benchmarks. Without one of them, the tables fitted to it stay as they are.
A set has a distribution of symbols for each row of a family. The sets of a family minimize the code
length of all training lanes, each under its cheapest set: vector quantization by splitting (Linde,
Buzo and Gray, IEEE Trans. Commun. 28, 1980), with code lengths in the place of distances.

It writes ``python/resfed_codec/reference/trained_tables.py``. Afterwards, run
``python tests/support/generated_tables.py`` and build the package again. The golden payloads then
belong to another format version.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - gives NumPy bfloat16
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.common import is_matrix, load_snapshots, updates_in
from benchmarks.trained_tables.updates import RUNS
from resfed_codec import _native
from resfed_codec.config import AUTO_STEP_RATIO
from resfed_codec.reference.trained_tables import TRAINED, TRAINED_ON
from resfed_codec.tensors.layout import block_sizes

# Rows of each family.
FAMILIES = {
    "gaps": 32, "block_gaps": 72, "levels": 72, "block_levels": 72,
    "change_gaps": 32, "change_levels": 12,
}  # fmt: skip
SETS, SYMBOLS, ONE = 16, 32, 4096
LANE_LOG2 = 10
SPARSITIES = (0.9, 0.95, 0.99, 0.9975)
LANES_PER_UPDATE = 24  # of a family, at most; limits the weight of large updates together with
WEIGHT_OF_UPDATE = 8.0  # the weight of all of them, a lane weighing 1 at most
DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijkl"  # quarter octaves
ROOT = Path(__file__).parents[2]
PATTERNS = {  # an unsigned number of a float's bits, and the bits of its mantissa
    "bfloat16": (np.uint16, 7),
    "float16": (np.uint16, 10),
    "float32": (np.uint32, 23),
}

Floats = NDArray[np.float32]
Updates = Iterator[tuple[NDArray[np.int64], NDArray[np.int32], list[tuple[int, int, int, int]]]]


def updates_of(path: Path) -> Updates:
    """Indices, signed levels and matrices of every update in a file, up and down.

    At every sparsity, or at the sparsity of the codec in the training loop. Matrices are as
    ``_native.trace`` takes them.
    """
    models = load_snapshots(path)
    in_the_loop = RUNS[path.stem].sparsity
    for base, prefix in updates_in(models):
        reference, state = models[base], models[prefix]
        names = sorted(name for name, value in reference.items() if is_matrix(value))
        residual = np.concatenate([(state[n] - reference[n]).ravel() for n in names])
        shapes = [reference[n].shape for n in names]
        begins = np.cumsum([0, *(reference[n].size for n in names)]).tolist()
        matrices = [
            (begin, reference[name].size, shape[1] if len(shape) == 2 else 0, block)
            for begin, name, shape, block in zip(
                begins[:-1], names, shapes, block_sizes(shapes), strict=True
            )
        ]
        for sparsity in SPARSITIES if in_the_loop is None else (in_the_loop,):
            k = int(np.ceil(residual.size * (1 - sparsity)))
            if k >= 64:
                yield *levels_of(residual, k), matrices


def levels_of(residual: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Indices and signed levels of the k largest."""
    magnitude = np.abs(residual)
    index = np.sort(np.argpartition(magnitude, -k)[-k:])
    threshold = magnitude[index].min()
    level = 1 + np.floor((magnitude[index] - threshold) / (threshold / AUTO_STEP_RATIO))
    return index, (level * np.sign(residual[index])).astype(np.int32)


def traced_updates(paths: list[Path]) -> Iterator[dict[str, list[bytes]]]:
    """The lanes of each update by family."""
    for path in tqdm(paths, desc="updates"):
        for index, level, matrices in updates_of(path):
            own: dict[str, list[bytes]] = {}
            for blocks, gaps, levels in _native.trace(
                index.tolist(), level.tolist(), matrices, LANE_LOG2
            ):
                own.setdefault("block_gaps" if blocks else "gaps", []).append(gaps)
                own.setdefault("block_levels" if blocks else "levels", []).append(levels)
            yield own


def traced_weights(paths: list[Path]) -> Iterator[dict[str, list[bytes]]]:
    """The gaps of the weights that change in a step, as they are and in 16 bits."""
    for path in tqdm(paths, desc="weights"):
        models = load_snapshots(path)
        for dtype in ("bfloat16", "float16", "float32"):
            bits, mantissa = PATTERNS[dtype]
            before, after = (
                np.concatenate([v.astype(dtype).view(bits).ravel() for v in models[i].values()])
                for i in ("0", "1")
            )
            order = np.argsort(before << 1 >> mantissa + 1, kind="stable")
            before, after = before[order], after[order]
            index = np.flatnonzero(before != after)
            if len(index) >= 64:
                level = moved(before[index], after[index])
                traced = _native.trace_changes(index.tolist(), level.tolist(), LANE_LOG2)
                yield {
                    "change_gaps": [gaps for _, gaps, _ in traced],
                    "change_levels": [levels for _, _, levels in traced],
                }


def moved(before: NDArray[Any], after: NDArray[Any]) -> NDArray[np.int64]:
    """How far patterns of floats moved, away from zero if that is positive."""
    sign = before.dtype.type(1 << 8 * before.itemsize - 1)
    values = [np.where(x & sign, ~(x ^ sign).astype(np.int64), x) for x in (before, after)]
    return np.where(before & sign, values[0] - values[1], values[1] - values[0])


def training_lanes(traced: Iterator[dict[str, list[bytes]]]) -> dict[str, tuple[Floats, Floats]]:
    """For each family how often each symbol occurs in each row, by lane, and the lanes' weights."""
    histograms: dict[str, list[NDArray[np.int64]]] = {}
    weights: dict[str, list[float]] = {}
    for own in traced:
        for family, lanes in own.items():
            chosen = np.unique(
                np.linspace(0, len(lanes) - 1, min(LANES_PER_UPDATE, len(lanes))).astype(int)
            )
            size = FAMILIES[family] * SYMBOLS
            histograms.setdefault(family, []).extend(
                np.bincount(np.frombuffer(lanes[i], np.uint16), minlength=size) for i in chosen
            )
            weight = min(1.0, WEIGHT_OF_UPDATE / len(chosen))
            weights.setdefault(family, []).extend([weight] * len(chosen))
    return {
        family: (np.array(histograms[family], np.float32), np.array(weights[family], np.float32))
        for family in histograms
    }


def code_lengths(counts: Floats, prior: Floats) -> Floats:
    """Bits of each symbol (sets, rows * symbols) where the counts were (sets, rows * symbols)."""
    rows = counts.reshape(len(counts), -1, SYMBOLS) + prior
    share = rows / rows.sum(-1, keepdims=True)
    share = share * (1 - SYMBOLS / ONE) + 1 / ONE
    lengths: Floats = -np.log2(share).reshape(len(counts), -1).astype(np.float32)
    return lengths


def fit_family(lanes: Floats, weights: Floats) -> Floats:
    """Code lengths (SETS, rows, symbols)."""
    weighted = lanes * weights[:, None]
    total = weighted.sum(0).reshape(-1, SYMBOLS)
    pool = total.sum(0) + 1
    prior = total + 8 * pool / pool.sum()  # rows that hardly occur are like all together
    prior = (4 * prior / prior.sum(-1, keepdims=True))[None].astype(np.float32)
    lengths = code_lengths(total.reshape(1, -1), prior)
    while len(lengths) < SETS:
        cost = lanes @ lengths.T
        chosen = cost.argmin(1)
        counts = [weighted[chosen == s].sum(0) for s in range(len(lengths))]
        halves = []  # (bits that a split saves, set, lanes of either half)
        for s in range(len(lengths)):
            of_set = np.flatnonzero(chosen == s)
            per_symbol = cost[of_set, s] / np.maximum(lanes[of_set].sum(1), 1)
            second = per_symbol > np.median(per_symbol) if len(of_set) else np.zeros(0, bool)
            for _ in range(6):
                if second.all() or not second.any():
                    break
                parts = [weighted[of_set[second == half]].sum(0) for half in (False, True)]
                split = lanes[of_set] @ code_lengths(np.array(parts), prior).T
                second = split[:, 1] < split[:, 0]
            else:
                saved = (weights[of_set] * (cost[of_set, s] - split.min(1))).sum()
                halves.append((float(saved), s, of_set[~second], of_set[second]))
        if not halves:
            break
        halves.sort(key=lambda half: -half[0])
        for _, s, first_half, second_half in halves[: SETS - len(lengths)]:
            counts[s] = weighted[first_half].sum(0)
            counts.append(weighted[second_half].sum(0))
        lengths = code_lengths(np.array(counts), prior)
        for _ in range(10):
            chosen = (lanes @ lengths.T).argmin(1)
            counts = [weighted[chosen == s].sum(0) for s in range(len(lengths))]
            lengths = code_lengths(np.array(counts), prior)
    lengths = lengths[np.arange(SETS) % len(lengths)]
    return lengths.reshape(SETS, -1, SYMBOLS)


def digits_of(lengths: Floats) -> str:
    """A row's weights in quarter octaves below its most frequent symbol."""
    quarters = np.round(4 * (lengths.min() - lengths)).astype(int) + len(DIGITS) - 1
    return "".join(DIGITS[q] for q in np.maximum(quarters, 0))


def write_tables(sets: dict[str, list[list[str]]], trained_on: dict[str, list[str]]) -> None:
    text = '''"""The trained sets of tables, section 5.6 of docs/format.md, by family.

The source of ``csrc/entropy/tables_v1.hpp``, which ``tests/support/generated_tables.py`` makes from
it. A row has a digit for each symbol, 0 to 9, A to Z, a to l: a weight in quarter octaves.

Generated by benchmarks/trained_tables/fit.py.
"""

from __future__ import annotations

# fmt: off
TRAINED_ON: dict[str, list[str]] = {
'''
    for kind, names in trained_on.items():
        text += f'    "{kind}": [\n'
        text += textwrap.indent(textwrap.fill(", ".join(f'"{n}"' for n in names), 88), " " * 8)
        text += ",\n    ],\n"
    text += "}\nTRAINED: dict[str, list[list[str]]] = {\n"
    for family, tables in sets.items():
        text += f'    "{family}": [\n'
        for table in tables:
            rows = [f'"{row}"' for row in table]
            lines = [f"            {', '.join(rows[i : i + 2])},\n" for i in range(0, len(rows), 2)]
            text += f"        [\n{''.join(lines)}        ],\n"
        text += "    ],\n"
    path = ROOT / "python/resfed_codec/reference/trained_tables.py"
    path.write_text(text + "}\n# fmt: on\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--updates", type=Path, nargs="+", default=[])
    parser.add_argument("--weights", type=Path, nargs="+", default=[])
    args = parser.parse_args()
    lanes = training_lanes(traced_updates(args.updates)) | training_lanes(
        traced_weights(args.weights)
    )
    sets = dict(TRAINED)
    for family, (histograms, weights) in lanes.items():
        fitted = fit_family(histograms, weights)
        sets[family] = [[digits_of(row) for row in table] for table in fitted]
        cost = (histograms @ fitted.reshape(SETS, -1).T).min(1)
        per_symbol = (weights * cost).sum() / (weights * histograms.sum(1)).sum()
        print(f"{family}: {len(histograms)} lanes, {per_symbol:.3f} bits a symbol")
    runs = {"updates": args.updates, "weights": args.weights}
    names = {kind: sorted(path.stem for path in paths) for kind, paths in runs.items() if paths}
    write_tables(sets, TRAINED_ON | names)


if __name__ == "__main__":
    main()
