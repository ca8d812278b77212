"""One bit an element after a random rotation: DRIVE, which is EDEN with one bit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.federated.methods.base import State, UpdateMethod, Vector

BLOCK = 2**13
SMALLEST = 2**3

Rows = NDArray[np.float32]


class Drive(UpdateMethod):
    """Signs of the rotated update, and one float32 for each block, such that it is unbiased.

    Vargaftik et al., "DRIVE", arXiv:2105.08339, and "EDEN", arXiv:2108.08842, whose one-bit case
    is the same. The rotation is a randomised Hadamard transform of blocks of 8,192 elements; the
    size of the last block is the smallest sufficient power of two. Both ends draw the rotation from
    a common seed, so it is not sent. Payload: scales, then signs.
    """

    def __init__(self, initial: State, clients: int, seed: int) -> None:
        super().__init__(initial, clients, seed, feedback=False)

    def encode(self, update: Vector, rotation: int) -> bytes:
        scales, signs = [], []
        for rows, flips in _blocks(update, rotation):
            rotated = _hadamard(rows * flips)
            total = np.abs(rotated).sum(axis=1)
            squares = np.square(rows).sum(axis=1)
            scales.append(np.divide(squares, total, out=np.zeros_like(total), where=total > 0))
            signs.append((rotated < 0).reshape(-1))
        return (
            np.concatenate(scales).astype("<f4").tobytes()
            + np.packbits(np.concatenate(signs)).tobytes()
        )

    def decode(self, payload: bytes, n_elems: int, rotation: int) -> Vector:
        blocks = _blocks(np.zeros(n_elems, np.float32), rotation)
        n_scales = sum(len(rows) for rows, _ in blocks)
        scales = np.frombuffer(payload, "<f4", n_scales)
        signs = np.unpackbits(np.frombuffer(payload, np.uint8, offset=4 * n_scales))
        parts = []
        for rows, flips in blocks:
            taken, signs = signs[: rows.size].reshape(rows.shape), signs[rows.size :]
            scale, scales = scales[: len(rows), None], scales[len(rows) :]
            back = _hadamard(np.where(taken, -scale, scale)) * flips
            parts.append(back.reshape(-1))
        return np.concatenate(parts)[:n_elems]

    def code(self, update: Vector) -> tuple[Vector, int]:
        rotation = int(self._rng.integers(2**63))
        payload = self.encode(update, rotation)
        return self.decode(payload, len(update), rotation), len(payload)


def _blocks(update: Vector, rotation: int) -> list[tuple[Rows, Rows]]:
    """Whole blocks, then the rest padded with zeros, each with random signs."""
    rng = np.random.default_rng(rotation)
    whole = len(update) // BLOCK * BLOCK
    rest = update[whole:]
    size = max(SMALLEST, 1 << (len(rest) - 1).bit_length()) if len(rest) else 0
    blocks = [update[:whole].reshape(-1, BLOCK), np.pad(rest, (0, size - len(rest)))[None]]
    return [
        (rows, (1 - 2 * rng.integers(0, 2, rows.shape, np.int8)).astype(np.float32))
        for rows in blocks
        if rows.size
    ]


def _hadamard(rows: Rows) -> Rows:
    """The orthonormal Walsh-Hadamard transform of each row; it is its own inverse."""
    n, size = rows.shape
    half = 1
    while half < size:
        pairs = rows.reshape(n, -1, 2, half)
        a, b = pairs[:, :, 0], pairs[:, :, 1]
        rows = np.stack([a + b, a - b], axis=2).reshape(n, size)
        half *= 2
    rows *= np.float32(size**-0.5)
    return rows
