"""Top-k with error feedback."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.federated.methods.base import PayloadMethod, Vector


def largest(update: Vector, sparsity: float) -> NDArray[np.int64]:
    """Indices of the ``ceil(n * (1 - sparsity))`` largest magnitudes, in order."""
    k = math.ceil(round(len(update) * (1 - sparsity), 6))
    return np.sort(np.argpartition(np.abs(update), len(update) - k)[len(update) - k :])


class TopK(PayloadMethod):
    """The largest magnitudes of an update as pairs of 32-bit index and 32-bit value.

    With error feedback, as in Stich, Cordonnier, Jaggi, "Sparsified SGD with memory",
    arXiv:1809.07599. Payload: the indices, uint32, and the values, float32.
    """

    def __init__(self, *start: Any, sparsity: float = 0.99, feedback: bool = True) -> None:
        super().__init__(*start, feedback=feedback)
        self._sparsity = sparsity

    def encode(self, update: Vector) -> bytes:
        chosen = largest(update, self._sparsity)
        return chosen.astype("<u4").tobytes() + update[chosen].astype("<f4").tobytes()

    def decode(self, payload: bytes, n_elems: int) -> Vector:
        k = len(payload) // 8
        update = np.zeros(n_elems, np.float32)
        update[np.frombuffer(payload, "<u4", k)] = np.frombuffer(payload, "<f4", k, 4 * k)
        return update
