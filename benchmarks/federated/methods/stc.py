"""Sparse ternary compression."""

from __future__ import annotations

import math
import struct

import numpy as np

from benchmarks.federated.methods.base import PayloadMethod, State, Vector
from benchmarks.federated.methods.topk import largest

HEADER = struct.Struct("<If")  # number of nonzeros, their magnitude


class SparseTernary(PayloadMethod):
    """The signs of the largest magnitudes of an update, their mean magnitude, and error feedback.

    Sattler, Wiedemann, Müller, Samek, "Robust and communication-efficient federated learning from
    non-i.i.d. data", arXiv:1903.02891. Gaps between nonzeros are Golomb coded with the best
    parameter for the sparsity (Algorithm 3 there), each followed by a sign bit.
    """

    def __init__(self, initial: State, clients: int, seed: int, *, sparsity: float = 0.99) -> None:
        super().__init__(initial, clients, seed, feedback=True)
        self._sparsity = sparsity
        ratio = math.log((math.sqrt(5) - 1) / 2) / math.log(sparsity)
        self._low_bits = max(0, 1 + math.floor(math.log2(ratio)))

    def encode(self, update: Vector) -> bytes:
        """The header, and for each nonzero: quotient in unary, remainder, sign."""
        chosen = largest(update, self._sparsity)
        gaps = np.diff(chosen, prepend=-1) - 1
        quotients = gaps >> self._low_bits
        ends = np.cumsum(quotients + self._low_bits + 2)  # after the sign bits
        bits = np.zeros(ends[-1], np.uint8)
        bits[ends - self._low_bits - 2] = 1  # ends the zeros of the quotient
        for i in range(self._low_bits):
            bits[ends - 2 - i] = gaps >> i & 1
        bits[ends - 1] = update[chosen] < 0
        magnitude = float(np.abs(update[chosen]).mean())
        return HEADER.pack(len(chosen), magnitude) + np.packbits(bits).tobytes()

    def decode(self, payload: bytes, n_elems: int) -> Vector:
        k, magnitude = HEADER.unpack_from(payload)
        bits = np.unpackbits(np.frombuffer(payload, np.uint8, offset=HEADER.size)).tolist()
        update = np.zeros(n_elems, np.float32)
        position, at = 0, -1
        for _ in range(k):
            quotient = 0
            while not bits[position]:
                quotient, position = quotient + 1, position + 1
            position += 1
            gap = quotient
            for _ in range(self._low_bits):
                gap, position = 2 * gap + bits[position], position + 1
            at += gap + 1
            update[at] = -magnitude if bits[position] else magnitude
            position += 1
        return update

    def code(self, update: Vector) -> tuple[Vector, int]:
        """The result of :meth:`decode` for :meth:`encode`, without the slow loop."""
        chosen = largest(update, self._sparsity)
        decoded = np.zeros_like(update)
        decoded[chosen] = np.copysign(np.abs(update[chosen]).mean(), update[chosen])
        return decoded, len(self.encode(update))
