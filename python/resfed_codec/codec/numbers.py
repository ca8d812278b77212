"""Many integers in little memory, as a payload counts them; and numbers that callers give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf
from numbers import Integral
from typing import Any


def as_float(value: Any) -> float:
    """A real number as a float; an integer or fraction beyond all floats is infinite."""
    try:
        return float(value)
    except OverflowError:
        return inf if value > 0 else -inf


def checked_integer(name: str, value: Any, low: int, high: int) -> int:
    """The argument ``name``; TypeError or ValueError unless it is an integer in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}={value!r}: must be an integer, not {type(value).__name__}")
    if not low <= int(value) <= high:
        raise ValueError(f"{name}={value!r}: must lie in [{low}, {high}]")
    return int(value)


class Numbers(Sequence[int]):
    """A tuple of integers that stay bytes until they are asked for.

    A payload holds as many as it has bytes, and a Python integer takes 32 of them. It equals a
    tuple of the same integers; ``tuple(numbers)`` makes one.

    Args:
        raw: The integers as they lie in memory.
        kind: Their type, as :mod:`struct` writes it.
    """

    def __init__(self, raw: bytes, kind: str) -> None:
        self._raw, self._kind = raw, kind

    @property
    def _values(self) -> memoryview[int]:
        return memoryview(self._raw).cast(self._kind)  # type: ignore[call-overload,no-any-return]

    def __getitem__(self, index: Any) -> Any:
        found = self._values[index]
        return Numbers(found.tobytes(), self._kind) if isinstance(index, slice) else found

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[int]:
        return iter(self._values)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Numbers):
            return self._values == other._values
        return tuple(self) == other if isinstance(other, tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))
