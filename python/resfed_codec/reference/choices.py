"""What section 8 of docs/format.md says of lanes: their blocks, shifts and sets."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from resfed_codec.reference.contexts import Block
from resfed_codec.reference.scan import Matrix
from resfed_codec.reference.symbols import MAX_SHIFT, Nonzeros, log2
from resfed_codec.reference.tables import (
    N_TRAINED,
    Table,
    code_lengths,
    trained_costs,
)

MAX_BLOCK = 64


def pays(block: Block, nonzeros: Nonzeros) -> bool:
    """Whether nonzeros follow each other directly more often inside a block than across its end."""
    n, direct = [0, 0], [0, 0]  # across the end of a block, inside
    first = nonzeros[0][0]
    for (before, _), (index, _) in pairwise(nonzeros):
        inside = (block.position + before - first) % block.size < block.size - 1
        n[inside] += 1
        direct[inside] += index == before + 1
    return 8 * (direct[1] * n[0] - direct[0] * n[1]) > n[1] * (n[0] + 16)


def choose_block(nonzeros: Nonzeros, matrices: list[Matrix]) -> Block:
    """The blocks of the matrix where a lane's middle nonzero lies, if they pay."""
    middle = nonzeros[len(nonzeros) // 2][0]
    for m in matrices:
        if 0 <= middle - m.begin < m.size and 2 <= m.block <= MAX_BLOCK:
            block = Block(m.block, (nonzeros[0][0] - m.begin) % m.block)
            return block if pays(block, nonzeros) else Block()
    return Block()


def choose_shift(nonzeros: Nonzeros) -> int:
    """What leaves levels of about 8, on the geometric mean."""
    mean = sum(log2(abs(level)) for _, level in nonzeros) // len(nonzeros)
    return min(max(mean - 3, 0), MAX_SHIFT)


def choose_set(family: str, codes: list[int], fitted: dict[str, Table], last: int) -> int:
    """The cheapest set with what naming it costs; of equal ones the first.

    Args:
        family: One of the tables.
        codes: The symbols with their rows, as row * 32 + symbol.
        fitted: The payload's own sets.
        last: The set that the lane before uses.
    """
    lengths = trained_costs(family).reshape(N_TRAINED, -1)[:, codes].sum(axis=1).tolist()
    if family in fitted:
        lengths.append(int(code_lengths()[np.ravel(fitted[family])[codes]].sum()))
    costs = [length + 32 * (1 if i == last else 5) for i, length in enumerate(lengths)]
    return costs.index(min(costs))
