"""Arrays that share memory where they must not."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from resfed_codec._native import DeviceArray

if TYPE_CHECKING:
    from resfed_codec.device import Memory
    from resfed_codec.layout import View

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
    spans = [_span(view.array) for view in out]
    base = spans if out is reference else [_span(view.array) for view in reference]
    in_place, tied = spans == base, []
    written = sorted((*span, i) for i, span in enumerate(spans) if span[0] < span[1])
    for (first, end, i), (begin, other_end, j) in pairwise(written):
        if begin >= end:
            continue
        if in_place and (first, end) == (begin, other_end):
            tied.append((i, j))
            continue
        names = sorted(out[k].spec.name for k in (i, j))
        raise ValueError(
            f"out: tensors {names[0]!r} and {names[1]!r} share memory; give each memory of its own"
        )
    if in_place:
        return tied
    # Those written are disjoint by now, so they and the others can be gone through side by side.
    others = sorted((*s, i) for i, s in enumerate(base) if s[0] < s[1] and s != spans[i])
    at = 0
    for begin, end, i in others:
        while at < len(written) and written[at][1] <= begin:
            at += 1
        if at < len(written) and written[at][0] < end:
            raise ValueError(
                f"out: tensor {out[written[at][2]].spec.name!r} shares memory with tensor"
                f" {reference[i].spec.name!r} of reference; give other arrays, or out=reference to"
                " update in place"
            )
    return []


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
