"""The scheme of the ResFed paper, as far as the paper and its public code define it."""

from __future__ import annotations

import heapq
import math
from typing import Any

import numpy as np

from benchmarks.federated.methods.base import Method, State, Vector, flat, like
from benchmarks.federated.methods.topk import largest

RULES = ("res0", "res1")


class ResFed(Method):
    """Residuals of the paper's predictors, top-k, median quantizer, and the paper's bit count.

    Song, Zhou, Lyu, Festag, Knoll, arXiv:2212.05602; details that the paper omits follow its public
    code (rruisong/ResFed). Our interpretation:

    - Predictors Res-0 ``l[-1]`` and Res-1 ``l[-1] + (g[-1] - g[-2]) / 2`` up; down the same with
      local and global models exchanged, so the downlink differs from client to client.
    - While a history is too short, whole models are sent: the first one up and the first one down.
    - Top-k over all elements together. Of the nonzeros, those below the median magnitude are also
      dropped. The rest is split at medians ``levels`` - 1 times, positive and negative values
      separately; the median replaces each subset. So ``sparsity=0.99`` sends half a percent.
    - No error feedback.

    Bytes are computed, not produced, as in the public code: for each nonzero 16 bits for the zeros
    before it, the Huffman code of its value, and 1 bit; for each distinct value 32 bits.
    """

    def __init__(
        self, *start: Any, rule: str = "res1", sparsity: float = 0.99, levels: int = 1
    ) -> None:
        if rule not in RULES:
            raise ValueError(f"rule {rule!r}: must be one of {', '.join(RULES)}")
        super().__init__(*start)
        self._rule, self._sparsity, self._levels = rule, sparsity, levels
        self._global: list[list[Vector]] = [[flat(first)] for first in self.held]
        self._local: list[list[Vector]] = [[] for _ in self.held]

    def up(self, client: int, local: State) -> tuple[State, int]:
        model, n_bytes = self._send(flat(local), self._local[client], self._global[client])
        return like(local, model), n_bytes

    def down(self, mean: State) -> list[int]:
        sizes = []
        for client in range(len(self.held)):
            model, n_bytes = self._send(flat(mean), self._global[client], self._local[client])
            self.held[client] = like(mean, model)
            sizes.append(n_bytes)
        return sizes

    def _send(self, model: Vector, own: list[Vector], other: list[Vector]) -> tuple[Vector, int]:
        """The recovered model, which is added to its history, and the bytes."""
        if not own or (self._rule == "res1" and len(other) < 2):
            recovered, n_bytes = model, model.nbytes
        else:
            prediction = own[-1]
            if self._rule == "res1":
                prediction = prediction + np.float32(0.5) * (other[-1] - other[-2])
            residual = quantize(model - prediction, self._sparsity, self._levels)
            recovered, n_bytes = prediction + residual, math.ceil(accounted_bits(residual) / 8)
        own.append(recovered)
        del own[:-2]
        return recovered, n_bytes


def quantize(residual: Vector, sparsity: float, levels: int) -> Vector:
    """Top-k and the median quantizer; at most ``2 ** levels`` distinct values remain."""
    chosen = largest(residual, sparsity)
    magnitudes = np.abs(residual[chosen])
    chosen = chosen[(magnitudes >= _median(magnitudes)) & (magnitudes > 0)]
    quantized = np.zeros_like(residual)
    for side in (chosen[residual[chosen] > 0], chosen[residual[chosen] < 0]):
        quantized[side] = _split(residual[side], levels - 1)
    return quantized


def _split(values: Vector, depth: int) -> Vector:
    if not len(values):
        return values
    median = _median(values)
    result = np.full_like(values, median)
    if depth:
        above = values > median
        for part in (above, ~above):
            result[part] = _split(values[part], depth - 1)
    return result


def _median(values: Vector) -> float:
    """The lower of the middle two, like torch.median."""
    middle = (len(values) - 1) // 2
    return float(np.partition(values, middle)[middle])


def accounted_bits(residual: Vector) -> int:
    """The bits that the public code counts for a quantized residual."""
    values, counts = np.unique(residual[residual != 0], return_counts=True)
    return 17 * int(counts.sum()) + huffman_bits(counts.tolist()) + 32 * len(values)


def huffman_bits(counts: list[int]) -> int:
    """Length of a text in its own Huffman code; a text with one distinct symbol takes no bits."""
    heap = list(counts)
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        total += joined
        heapq.heappush(heap, joined)
    return total
