"""Fit the initial states of the contexts of slices of nonzeros.

    python -m benchmarks.initial_states.fit updates/*.npz

The updates come from ``benchmarks.initial_states.updates``, which uses no data of the benchmarks.
For each context it selects the initial probability and count that cost the fewest bits over the
beginnings of all training slices, with the codec's integer arithmetic. It writes
``python/resfed_codec/reference/initial_states.py``. Afterwards, run
``python tests/support/context_tables.py`` and build the package again. The golden payloads then
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
from benchmarks.initial_states.updates import RUNS
from resfed_codec import _native
from resfed_codec.config import AUTO_STEP_RATIO
from resfed_codec.reference.contexts import SLICE, UNTRAINED
from resfed_codec.tensors.layout import block_sizes

SPARSITIES = (0.9, 0.95, 0.98, 0.99, 0.995, 0.9975, 0.999)
SLICES_PER_UPDATE = 3  # first, middle, last: limits the weight of models at 0.9
OBSERVATIONS = 256  # of a context in a slice; later ones hardly depend on the initial state
SEQUENCES = 400  # of a context, from slices spread over all
COUNTS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
ROOT = Path(__file__).parents[2]

Rows = list[tuple[int, int, int]]  # where a tensor begins, length of its rows and its blocks
Updates = Iterator[tuple[NDArray[np.uint64], NDArray[np.int32], Rows]]


def updates_of(path: Path) -> Updates:
    """Indices, signed levels and rows of every update in a file, up and down.

    At every sparsity, or at the sparsity of the codec in the training loop.
    """
    models = load_snapshots(path)
    in_the_loop = RUNS[path.stem].sparsity
    for base, prefix in updates_in(models):
        reference, state = models[base], models[prefix]
        names = sorted(name for name, value in reference.items() if is_matrix(value))
        residual = np.concatenate([(state[n] - reference[n]).ravel() for n in names])
        begins = np.cumsum([0, *(reference[n].size for n in names)]).tolist()
        blocks = block_sizes([reference[n].shape for n in names])
        rows = [
            (begin, reference[name][0].size, block)
            for begin, name, block in zip(begins[:-1], names, blocks, strict=True)
        ]
        for sparsity in SPARSITIES if in_the_loop is None else (in_the_loop,):
            k = int(np.ceil(residual.size * (1 - sparsity)))
            if k >= 64:
                yield *levels_of(residual, k), rows


def levels_of(
    residual: NDArray[np.float32], k: int
) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    magnitude = np.abs(residual)
    index = np.sort(np.lexsort((np.arange(residual.size), -magnitude))[:k])
    threshold = magnitude[index].min()
    level = 1 + np.floor((magnitude[index] - threshold) / (threshold / AUTO_STEP_RATIO))
    return index.astype(np.uint64), (level * np.sign(residual[index])).astype(np.int32)


def training_slices(paths: list[Path], slice_log2: int) -> list[NDArray[np.uint16]]:
    """Decisions of each training slice, as [15 bits] context, [1 bit] bit."""
    slices = []
    for path in tqdm(paths, desc="updates"):
        for index, level, rows in updates_of(path):
            raw, ends = _native.trace(index, level, rows, slice_log2)  # type: ignore[arg-type]
            parts = np.split(np.frombuffer(raw, np.uint16), ends[:-1])
            chosen = {0, len(parts) // 2, len(parts) - 1} if SLICES_PER_UPDATE == 3 else {0}
            slices += [parts[i] for i in sorted(chosen)]
    return slices


def costs(
    bits: NDArray[np.int64], prob: NDArray[np.int64], count: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Code length in bits for each candidate (prob, count).

    ``bits`` is (slices, observations), -1 where a slice has no more; ``prob``, in 1/256, and
    ``count`` are (candidates,). The arithmetic is that of csrc/entropy/probability.hpp.
    """
    fast = np.repeat(prob[:, None] * 256, bits.shape[0], axis=1)
    slow, n = fast.copy(), np.repeat(count[:, None], bits.shape[0], axis=1)
    total = np.zeros(prob.size)
    for bit in bits.T:
        here = bit >= 0
        one = bit == 1
        p = np.clip((fast + slow) >> 3, 1, 16383) / 16384
        total += np.where(here, -np.log2(np.where(one, p, 1 - p)), 0).sum(axis=1)
        young = 131072 // (2 * n + 3)
        for estimate, floor in ((fast, 4096), (slow, 512)):
            rate = np.maximum(young, floor)
            up = estimate + ((65535 - estimate) * rate >> 16)
            down = estimate - (estimate * rate >> 16)
            np.copyto(estimate, np.where(one, up, down), where=here)
        n = np.minimum(n + 1, 127)
    return total


def fit_context(sequences: list[NDArray[np.int64]]) -> tuple[int, int]:
    """The cheapest (probability in 1/256, count) for the given slices' bits."""
    sequences = sequences[:: 1 + len(sequences) // SEQUENCES]
    # Two extra slices, one bit each, prevent extreme probabilities in rare contexts.
    sequences = [*sequences, np.array([0]), np.array([1])]
    bits = np.full((len(sequences), min(OBSERVATIONS, max(map(len, sequences)))), -1, np.int64)
    for row, sequence in zip(bits, sequences, strict=True):
        row[: len(sequence)] = sequence[: row.size]
    logits = np.linspace(-5.5, 5.5, 34)
    probs = np.unique(np.clip(np.round(256 / (1 + np.exp(-logits))), 1, 255).astype(np.int64))
    counts, prob, count = np.array(COUNTS), 128, 6
    for _ in range(2):  # optimize one of the two at a time
        prob = int(probs[np.argmin(costs(bits, probs, np.full_like(probs, count)))])
        count = int(counts[np.argmin(costs(bits, np.full_like(counts, prob), counts))])
    return prob, count


def write_states(states: list[tuple[int, int]], trained_on: list[str]) -> None:
    runs = "\n".join(textwrap.wrap(", ".join(trained_on) + ".", 96))
    text = f'''"""Trained initial states of the contexts: part of the payload format.

Generated by benchmarks/initial_states/fit.py from the runs
{runs}
"""

# By family of contexts.py: (probability of a 1 in 1/256, count) of each of its contexts.
# fmt: off
TRAINED: dict[str, tuple[tuple[int, int], ...]] = {{
'''
    for family in SLICE.families:
        items = [str(states[family.first + i]) for i in range(family.size)]
        rows = [f"        {', '.join(items[i : i + 8])},\n" for i in range(0, len(items), 8)]
        text += f'    "{family.name}": (\n{"".join(rows)}    ),\n'
    module = ROOT / "python/resfed_codec/reference/initial_states.py"
    module.write_text(text + "}\n# fmt: on\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("updates", type=Path, nargs="+")
    args = parser.parse_args()
    slices = training_slices(args.updates, slice_log2=11)
    sequences: list[list[NDArray[np.int64]]] = [[] for _ in SLICE.states]
    for decisions in slices:
        order = np.argsort(decisions >> 1, kind="stable")
        contexts, bits = (decisions >> 1)[order], (decisions & 1)[order].astype(np.int64)
        starts = np.flatnonzero(np.r_[True, contexts[1:] != contexts[:-1]])
        for context, part in zip(contexts[starts], np.split(bits, starts[1:]), strict=True):
            sequences[context].append(part)
    states = [fit_context(s) if s else UNTRAINED for s in tqdm(sequences, desc="contexts")]
    write_states(states, sorted(path.stem for path in args.updates))


if __name__ == "__main__":
    main()
