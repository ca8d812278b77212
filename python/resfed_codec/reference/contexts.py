"""The contexts of the entropy coder, section 5.7 of docs/format.md: the only table of them.

``csrc/entropy/contexts_v1.hpp`` and the tables in docs/format.md are generated from this module by
``tests/support/generated_tables.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

State = tuple[int, int]
INITIAL_STATE: State = (128, 0)
"""Of all contexts: probability 1/2, count 0."""


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
        self.families.append(family)
        self.states += (INITIAL_STATE,) * family.size
        return family


LOSSLESS = ContextTable()
"""Of slices of changed elements, section 5.7."""

CHANGE_GAP = LOSSLESS.family(
    "change_gap", "position < e", ("scattered", 2), ("min(position, 15)", 16)
)
CHANGE_REPEAT = LOSSLESS.family("change_repeat", "change = last change", ("repeated", 2))
CHANGE_SIZE = LOSSLESS.family("change_size", "the next bit of s", ("node", 64))
