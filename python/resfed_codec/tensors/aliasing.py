"""Arrays that share memory where they must not."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from resfed_codec import _native
from resfed_codec._native import DeviceArray

if TYPE_CHECKING:
    from resfed_codec.tensors.layout import View
    from resfed_codec.tensors.memory import Memory

Span = tuple[int, int]
"""First address, and the one after the last."""


def _span(memory: Memory) -> Span:
    if isinstance(memory, DeviceArray):
        return memory.pointer, memory.pointer + memory.nbytes
    first: int = memory.__array_interface__["data"][0]  # half the time of array.ctypes.data
    return first, first + memory.nbytes


def check_out(out: Sequence[View], reference: Sequence[View] = ()) -> list[tuple[int, int]]:
    """Pairs of tied tensors of ``out`` that are updated in place; mostly none.

    A tensor of ``out`` may be that of the same name in the reference, as a whole. Only where all
    are, and two of them are the same memory in both, may they be so in ``out``.

    Raises:
        ValueError: Writing one tensor of ``out`` would change another, or the reference's.
    """
    written = [view.array for view in out]
    read = written if out is reference else [view.array for view in reference]
    in_place, of_out, of_reference = _native.overlaps(written, read)
    for i, j, same in of_out:
        if not (in_place and same):
            names = sorted(out[k].spec.name for k in (i, j))
            raise ValueError(
                f"out: tensors {names[0]!r} and {names[1]!r} share memory; give each memory of its"
                " own"
            )
    for i, j in of_reference:
        raise ValueError(
            f"out: tensor {out[i].spec.name!r} shares memory with tensor"
            f" {reference[j].spec.name!r} of reference; give other arrays, or out=reference to"
            " update in place"
        )
    return [(i, j) for i, j, _ in of_out]


def warn_if_shared(state: Sequence[View], reference: Sequence[View]) -> None:
    """Warn the caller of the caller's caller if all of a model's memory is the reference's."""
    pairs = [(a.array, b.array) for a, b in zip(state, reference, strict=True) if a.array.nbytes]
    if pairs and all(_span(a) == _span(b) for a, b in pairs):
        warnings.warn(
            "state and reference are the same memory, so nothing has changed between them: a"
            " reference must be a copy, such as {name: tensor.clone() for name, tensor in"
            " net.state_dict().items()}",
            UserWarning,
            stacklevel=5,
        )
