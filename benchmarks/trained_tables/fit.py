"""Fit the trained sets of tables of the entropy coder.

    python -m benchmarks.trained_tables.fit updates/*.npz

The updates come from ``benchmarks.trained_tables.updates``, which uses no data of the benchmarks.
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

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.common import is_matrix, load_snapshots, updates_in
from benchmarks.trained_tables.updates import RUNS
from resfed_codec import _native
from resfed_codec.config import AUTO_STEP_RATIO
from resfed_codec.tensors.layout import block_sizes

FAMILIES = {"gaps": 32, "block_gaps": 72, "levels": 72, "block_levels": 72}  # rows of each
SETS, SYMBOLS, ONE = 16, 32, 4096
LANE_LOG2 = 10
SPARSITIES = (0.9, 0.95, 0.99, 0.9975)
LANES_PER_UPDATE = 24  # of a family, at most; limits the weight of large updates together with
WEIGHT_OF_UPDATE = 8.0  # the weight of all of them, a lane weighing 1 at most
DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijkl"  # quarter octaves
ROOT = Path(__file__).parents[2]

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


def training_lanes(paths: list[Path]) -> dict[str, tuple[Floats, Floats]]:
    """For each family how often each symbol occurs in each row, by lane, and the lanes' weights."""
    histograms: dict[str, list[NDArray[np.int64]]] = {family: [] for family in FAMILIES}
    weights: dict[str, list[float]] = {family: [] for family in FAMILIES}
    for path in tqdm(paths, desc="updates"):
        for index, level, matrices in updates_of(path):
            own: dict[str, list[bytes]] = {family: [] for family in FAMILIES}
            for blocks, gaps, levels in _native.trace(
                index.tolist(), level.tolist(), matrices, LANE_LOG2
            ):
                own["block_gaps" if blocks else "gaps"].append(gaps)
                own["block_levels" if blocks else "levels"].append(levels)
            for family, lanes in own.items():
                chosen = np.unique(
                    np.linspace(0, len(lanes) - 1, min(LANES_PER_UPDATE, len(lanes))).astype(int)
                )
                size = FAMILIES[family] * SYMBOLS
                histograms[family] += [
                    np.bincount(np.frombuffer(lanes[i], np.uint16), minlength=size) for i in chosen
                ]
                weights[family] += [min(1.0, WEIGHT_OF_UPDATE / max(len(chosen), 1))] * len(chosen)
    return {
        family: (np.array(histograms[family], np.float32), np.array(weights[family], np.float32))
        for family in FAMILIES
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


def write_tables(sets: dict[str, Floats], trained_on: list[str]) -> None:
    runs = "\n".join(textwrap.wrap(", ".join(trained_on) + ".", 96))
    text = f'''"""The trained sets of tables, section 5.6 of docs/format.md, by family.

The source of ``csrc/entropy/tables_v1.hpp``, which ``tests/support/generated_tables.py`` makes from
it. A row has a digit for each symbol, 0 to 9, A to Z, a to l: a weight in quarter octaves.

Generated by benchmarks/trained_tables/fit.py from the runs
{runs}
"""

from __future__ import annotations

# fmt: off
TRAINED: dict[str, list[list[str]]] = {{
'''
    for family, tables in sets.items():
        text += f'    "{family}": [\n'
        for table in tables:
            rows = [f'"{digits_of(row)}"' for row in table]
            lines = [f"            {', '.join(rows[i : i + 2])},\n" for i in range(0, len(rows), 2)]
            text += f"        [\n{''.join(lines)}        ],\n"
        text += "    ],\n"
    path = ROOT / "python/resfed_codec/reference/trained_tables.py"
    path.write_text(text + "}\n# fmt: on\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("updates", type=Path, nargs="+")
    args = parser.parse_args()
    lanes = training_lanes(args.updates)
    sets = {}
    for family, (histograms, weights) in lanes.items():
        sets[family] = fit_family(histograms, weights)
        cost = (histograms @ sets[family].reshape(SETS, -1).T).min(1)
        per_symbol = (weights * cost).sum() / (weights * histograms.sum(1)).sum()
        print(f"{family}: {len(histograms)} lanes, {per_symbol:.3f} bits a symbol")
    write_tables(sets, sorted(path.stem for path in args.updates))


if __name__ == "__main__":
    main()
