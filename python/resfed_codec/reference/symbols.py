"""Section 5.4 of docs/format.md: gaps and levels as symbols, each with its raw bits."""

from __future__ import annotations

from bisect import bisect_right
from typing import TypeAlias

Nonzeros: TypeAlias = "list[tuple[int, int]]"
"""(index, level with its sign), by ascending index."""

GAP_ESCAPE, LEVEL_ESCAPE, SIGN_CHANGED = 31, 15, 16
FIRST_ESCAPED_GAP, FIRST_ESCAPED_LEVEL = 2**15, 96
EXPONENT_BITS = 6
MAX_LEVEL, MAX_CHANGE = 2**23, 2**63
"""The largest magnitudes of levels, of sent elements and of changed ones."""
MAX_SHIFT = 57

HALF_OCTAVES = [part << (e - 1) for e in range(3, 15) for part in (2, 3)]
GAP_CLASSES = [*range(1, 8), *HALF_OCTAVES]
LEVEL_CLASSES = [*range(1, 9), *HALF_OCTAVES[:7]]
"""The first value of each class. Level 8 has a class of its own, and none begins at 9."""


def log2(n: int) -> int:
    """Rounded down."""
    return n.bit_length() - 1


def gap_symbol(gap: int) -> int:
    if gap >= FIRST_ESCAPED_GAP:
        return GAP_ESCAPE
    return bisect_right(GAP_CLASSES, gap) - 1


def level_symbol(level: int, shift: int = 0) -> int:
    """Of a magnitude."""
    high = (level - 1 >> shift) + 1
    if high >= FIRST_ESCAPED_LEVEL:
        return LEVEL_ESCAPE
    return high - 1 if high <= 8 else bisect_right(LEVEL_CLASSES, high) - 1


def gap_class(symbol: int) -> tuple[int, int]:
    """The first gap that a symbol stands for, and how many raw bits it has."""
    first = GAP_CLASSES[symbol]
    return first, 0 if symbol < 7 else log2(first) - 1


def level_class(symbol: int, shift: int) -> tuple[int, int]:
    """The first level that a symbol stands for, and how many raw bits it has."""
    first = LEVEL_CLASSES[symbol]
    return (first - 1 << shift) + 1, shift + (0 if symbol < 8 else log2(first) - 1)
