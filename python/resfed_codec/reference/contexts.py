"""The contexts of the entropy coder, section 5 of docs/format.md: the only table of them.

``csrc/entropy/contexts_v1.hpp`` and the tables in docs/format.md are generated from this module by
``tests/support/context_tables.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from resfed_codec.reference.initial_states import TRAINED

State = tuple[int, int]
UNTRAINED: State = (128, 0)
"""Initial state of the contexts of a family without trained ones: probability 1/2, count 0."""


@dataclass(frozen=True)
class Family:
    """The contexts of one kind of decision: an array in C order, with consecutive numbers.

    Attributes:
        name: Its name in docs/format.md.
        decision: What a 1 means.
        axes: Of each dimension, what the index is and how many values it has.
        first: The number of its first context.
    """

    name: str
    decision: str
    axes: tuple[tuple[str, int], ...]
    first: int

    @property
    def size(self) -> int:
        return prod(n for _, n in self.axes)

    def __call__(self, *index: int) -> int:
        """The number of a context."""
        number = 0
        for i, (_, n) in zip(index, self.axes, strict=True):
            if not 0 <= i < n:
                raise IndexError(f"{self.name}{list(index)}: {i} is not below {n}")
            number = number * n + i
        return self.first + number


class ContextTable:
    """The contexts of a kind of slice: families, each of which begins where the last one ends."""

    def __init__(self) -> None:
        self.families: list[Family] = []
        self.states: list[State] = []

    def family(self, name: str, decision: str, *axes: tuple[str, int]) -> Family:
        family = Family(name, decision, axes, len(self.states))
        states = TRAINED.get(name, (UNTRAINED,) * family.size)
        if len(states) != family.size:
            raise ValueError(f"{name}: {len(states)} initial states for {family.size} contexts")
        self.families.append(family)
        self.states += states
        return family


SLICE = ContextTable()
"""Of slices of nonzeros, section 5.3."""

GAP = SLICE.family(
    "gap", "position < e", ("min(gap_class, 2)", 3), ("A", 4), ("min(position, 15)", 16)
)
GAP_FIRST = SLICE.family("gap_first", "first bit below the leading one", ("min(e, 24) - 1", 24))
GAP_SECOND = SLICE.family(
    "gap_second", "second bit below the leading one", ("min(e, 24) - 2", 23), ("first bit", 2)
)
SIGN = SLICE.family("sign", "positive", ("sign", 3), ("min(e, 2)", 3))
LEVEL = SLICE.family(
    "level",
    "level > position + 1",
    ("min(last level, 7) - 1", 7),
    ("min(e, 2)", 3),
    ("position", 14),
)
ESCAPE = SLICE.family("escape", "position < log2(r)", ("min(position, 23)", 24))
REPEAT = SLICE.family(
    "repeat", "gap = likely", ("B", 4), ("min(log2(likely), 5)", 6), ("agreed", 4)
)
AGREE = SLICE.family("agree", "of the sign of the nonzero above", ("agreed", 4))
LEVEL_ABOVE = SLICE.family(
    "level_above", "level > position + 1", ("min(a, 7) - 1", 7), ("position", 14)
)
PERIOD = SLICE.family("period", "the slice has a period")
BLOCK = SLICE.family("block", "the slice has blocks")
BLOCK_GAP = SLICE.family("block_gap", "position < e", ("A", 4), ("L", 9), ("position", 3))

LOSSLESS = ContextTable()
"""Of slices of changed elements, section 5.4."""

CHANGE_GAP = LOSSLESS.family(
    "change_gap", "position < e", ("scattered", 2), ("min(position, 15)", 16)
)
CHANGE_REPEAT = LOSSLESS.family("change_repeat", "change = last change", ("repeated", 2))
CHANGE_SIZE = LOSSLESS.family("change_size", "the next bit of s", ("node", 64))
