"""Codes for arrays of integers that are mostly zero, as lossless and as lossy peers.

An :class:`IntegerCode` is the adapter of a general compressor. :class:`Lossless` codes given levels
with it, :class:`TopK` the levels of top-k and this codec's quantizer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.base import (
    Floats,
    Levels,
    LosslessCoder,
    LossyCoder,
    Update,
    add_flat,
    flat_residual,
    split_like,
)

STEP_RATIO = 0.55
"""Threshold over step, as in docs/format.md, section 8."""


class IntegerCode(ABC):
    """Bytes for a flat array of integers of 8, 16 or 32 bits."""

    name: str
    package = ""

    @abstractmethod
    def pack(self, levels: NDArray[Any]) -> Any:
        """An object whose length is the number of bytes."""

    @abstractmethod
    def unpack(self, data: Any, like: NDArray[Any]) -> NDArray[Any]:
        """The decoded levels; ``like`` has their number and dtype and is read-only."""


class RawPairs(IntegerCode):
    """Index and level of each nonzero without compression: 5 bytes or a little more."""

    name = "index, level pairs"

    def pack(self, levels: NDArray[Any]) -> Any:
        index = np.flatnonzero(levels).astype(np.uint32)
        return index.tobytes() + levels[index].tobytes()

    def unpack(self, data: Any, like: NDArray[Any]) -> NDArray[Any]:
        n = len(data) // (4 + like.itemsize)
        levels = np.zeros_like(like)
        levels[np.frombuffer(data, np.uint32, n)] = np.frombuffer(data, like.dtype, n, 4 * n)
        return levels


class Lossless(LosslessCoder):
    """An integer code on given levels: all tensors concatenated, in the smallest dtype."""

    def __init__(self, code: IntegerCode) -> None:
        self._code = code
        self.name, self.package = code.name, code.package

    def encode(self, levels: Levels) -> Any:
        flat = np.concatenate([value.ravel() for value in levels.values()])
        self._like = np.empty(flat.size, np.min_scalar_type(-1 - int(np.abs(flat).max())))
        return self._code.pack(flat.astype(self._like.dtype))

    def decode(self, payload: Any, like: Levels) -> Levels:
        flat = self._code.unpack(payload, self._like).astype(np.int32)
        return split_like(flat, like)


class TopK(LossyCoder):
    """Top-k over all tensors, this codec's quantizer and an integer code.

    ``knob``: one in ``2 ** knob`` elements is sent. Levels are 8 bits; the few larger ones are
    clipped to 127. A payload begins with the threshold (float32) and, like this codec's, the
    offsets of the means of the first four levels (a byte each, in 1/256 of a step).
    """

    knobs = (0.5, 16.0)

    def __init__(self, code: IntegerCode) -> None:
        self._code = code
        self.name, self.package = f"top-k, {code.name}", code.package

    def encode(self, update: Update, knob: float) -> Any:
        residual = flat_residual(update)
        levels, threshold = top_k_levels(residual, kept(knob, residual.size))
        np.clip(levels, -127, 127, out=levels)
        index = np.flatnonzero(levels)
        step = max(float(threshold), 1e-30) / STEP_RATIO
        inside = (np.abs(residual[index]) - threshold) / step
        inside -= np.abs(levels[index]) - 1
        offsets = np.full(4, 128, np.uint8)
        for level in range(1, 5):
            here = inside[np.abs(levels[index]) == level]
            if here.size:
                offsets[level - 1] = min(255, int(256 * here.mean(dtype=np.float64) + 0.5))
        header = np.float32(threshold).tobytes() + offsets.tobytes()
        return header + bytes(self._code.pack(levels.astype(np.int8)))

    def decode(self, payload: Any, reference: Floats) -> Floats:
        n_elems = sum(value.size for value in reference.values())
        like = np.empty(n_elems, np.int8)
        threshold = np.frombuffer(payload, np.float32, 1)[0]
        offsets = np.full(128, 0.5, np.float32)
        offsets[1:5] = np.frombuffer(payload, np.uint8, 4, 4) / np.float32(256)
        levels = self._code.unpack(payload[8:], like)
        index = np.flatnonzero(levels)
        sent = levels[index].astype(np.int32)
        steps = (np.abs(sent) - 1 + offsets[np.abs(sent)]) / np.float32(STEP_RATIO)
        residual = np.zeros(n_elems, np.float32)
        residual[index] = np.sign(sent) * threshold * (1 + steps)
        return add_flat(reference, residual)


def kept(knob: float, n_elems: int) -> int:
    return max(1, int(n_elems * 2.0**-knob + 0.5))


def top_k_levels(residual: NDArray[np.float32], k: int) -> tuple[NDArray[np.int32], np.float32]:
    """(levels, threshold) of docs/format.md, section 8, if its "auto" step is not limited.

    1 + floor((|r| - threshold) / step), signed, for the k largest magnitudes (of equal ones those
    with the lower index). The threshold is the smallest of them; the step is threshold / 0.55.
    """
    magnitudes = np.abs(residual)
    threshold = np.partition(magnitudes, magnitudes.size - k)[magnitudes.size - k]
    levels = np.zeros(residual.size, np.int32)
    if threshold > 0:
        index = np.flatnonzero(magnitudes >= threshold)
        ties = np.flatnonzero(magnitudes[index] == threshold)
        index = np.delete(index, ties[ties.size - (index.size - k) :])
        step = np.float32(threshold / np.float32(STEP_RATIO))
        steps = 1 + np.floor((magnitudes[index] - threshold) / step).astype(np.int32)
        levels[index] = np.where(np.signbit(residual[index]), -steps, steps)
    return levels, threshold
