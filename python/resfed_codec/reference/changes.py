"""Section 5.7 of docs/format.md as NumPy: what is coded of the lossless group's changed elements.

A change is a nonzero: its index is its place in the order of exponents, its level is how far the
element's bit pattern moves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from resfed_codec.errors import PayloadError
from resfed_codec.reference.symbols import Nonzeros
from resfed_codec.reference.values import Tensor, Writes, check_term, locate, patterns

MANTISSA_BITS = {
    **{"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52},
    **{"complex32": 10, "bcomplex32": 7, "complex64": 23, "complex128": 52},
}
"""Of floats, and of the parts of complex numbers."""


# ---- Levels


def is_negative(bits: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether the highest bit is set."""
    highest: NDArray[np.bool_] = bits >> (8 * bits.itemsize - 1) == 1
    return highest


def ascending(bits: NDArray[Any]) -> NDArray[Any]:
    """Patterns of floats as signed numbers that ascend with the value; its own inverse."""
    return np.where(is_negative(bits), bits ^ (np.iinfo(bits.dtype).max >> 1), bits)


def levels_between(old: NDArray[Any], new: NDArray[Any], is_float: bool) -> NDArray[Any]:
    """How far patterns of w bits move, as signed numbers of w bits; floats: away from zero."""
    moved: NDArray[Any] = new - old
    if is_float:
        moved = ascending(new) - ascending(old)
        moved = np.where(is_negative(old), 0 - moved, moved)
    return moved.view(f"i{old.itemsize}")


def moved_by(old: NDArray[Any], levels: NDArray[Any], is_float: bool) -> NDArray[Any]:
    """The counterpart: the new patterns."""
    distance: NDArray[Any] = levels.view(old.dtype)
    if is_float:
        distance = np.where(is_negative(old), 0 - distance, distance)
        return ascending(ascending(old) + distance)
    new: NDArray[Any] = old + distance
    return new


def to_levels(changes: list[int]) -> list[int]:
    """Of integers, by element number: the change of the one before is 1, or -1 by its sign."""
    levels, last = [], 1
    for change in changes:
        one = -1 if last < 0 else 1
        between = 0 < change * one < last * one
        levels.append(one if change == last else change + one if between else change)
        last = change
    return levels


def to_changes(levels: list[int]) -> list[int]:
    """The counterpart."""
    changes, last = [], 1
    for level in levels:
        one = -1 if last < 0 else 1
        between = 0 < (level - one) * one < last * one
        last = last if level == one else level - one if between else level
        changes.append(last)
    return changes


# ---- The order of exponents


def exponent_classes(t: Tensor) -> NDArray[np.int64]:
    bits = patterns(t.reference)
    if t.dtype not in MANTISSA_BITS:
        return np.zeros(bits.size, np.int64)
    without_sign = bits & (np.iinfo(bits.dtype).max >> 1)
    exponents = (without_sign >> MANTISSA_BITS[t.dtype]).astype(np.int64)
    return exponents if t.reference.itemsize < 8 else np.clip(exponents - 896, 0, 255)


def coding_order(group: list[Tensor]) -> NDArray[np.int64]:
    """Element numbers of the lossless group in the order in which their changes are coded."""
    classes = np.concatenate([np.zeros(0, np.int64), *map(exponent_classes, group)])
    return np.argsort(classes, kind="stable")


# ---- Changes


def integers(group: list[Tensor]) -> NDArray[np.bool_]:
    """Which elements are no floats."""
    kinds = [np.full(t.reference.size, t.dtype not in MANTISSA_BITS) for t in group]
    return np.concatenate([np.zeros(0, bool), *kinds])


def find_changes(group: list[Tensor]) -> Nonzeros:
    moved = [np.zeros(0, object)]
    for t in group:
        assert t.state is not None
        bits = patterns(t.reference), patterns(t.state)
        moved.append(levels_between(*bits, t.dtype in MANTISSA_BITS).astype(object))
    levels = np.concatenate(moved)
    changed = integers(group) & (levels != 0)
    levels[changed] = to_levels(levels[changed].tolist())
    return [(i, int(level)) for i, level in enumerate(levels[coding_order(group)]) if level]


def restore_group(group: list[Tensor], changes: Nonzeros) -> tuple[Writes, int]:
    """(tensor, where, new value) of each changed element, and the group's term of the check."""
    order, is_integer = coding_order(group), integers(group)
    levels = {int(order[index]): level for index, level in changes}
    of_integers = [element for element in sorted(levels) if is_integer[element]]
    restored = to_changes([levels[element] for element in of_integers])
    levels |= dict(zip(of_integers, restored, strict=True))
    writes, check = [], 0
    for element, level in levels.items():
        t, where = locate(group, element)
        old = patterns(t.reference[where : where + 1])
        limit = 1 << (8 * old.itemsize - 1)
        if not -limit <= level < limit:
            raise PayloadError("payload: a change is too large")
        new = moved_by(old, np.array([level], f"i{old.itemsize}"), t.dtype in MANTISSA_BITS)
        check += check_term(element, int(old[0]), int(new[0]))
        writes.append((t, where, new.view(t.reference.dtype)[0]))
    return writes, check
