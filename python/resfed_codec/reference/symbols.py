"""What the coders of nonzeros and of changed elements have in common."""

from __future__ import annotations

from typing import TypeAlias

Symbols: TypeAlias = "list[tuple[int, int]]"
"""(index, level) or (index, change), by ascending index."""

MAX_LEVEL = 2**23


def log2(n: int) -> int:
    """Rounded down."""
    return n.bit_length() - 1


def n_parts(n_symbols: int, part_log2: int) -> int:
    """How many lanes nonzeros are divided into, or slices changed elements."""
    return max(1, (n_symbols + 2 ** (part_log2 - 1)) >> part_log2) if n_symbols else 0


def part_sizes(n_symbols: int, part_log2: int) -> list[int]:
    n = n_parts(n_symbols, part_log2)
    return [n_symbols // n + (i < n_symbols % n) for i in range(n)]
