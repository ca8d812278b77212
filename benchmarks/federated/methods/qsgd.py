"""QSGD: unbiased stochastic quantization."""

from __future__ import annotations

import numpy as np

from benchmarks.federated.methods.base import PayloadMethod, State, Vector
from benchmarks.federated.methods.bits import pack, unpack

BUCKET = 512


class Qsgd(PayloadMethod):
    """Values in ``bits`` bits: a sign and a stochastically rounded magnitude.

    Alistarh, Grubic, Li, Tomioka, Vojnovic, "QSGD", arXiv:1610.02132, with buckets of 512 values
    scaled by their maximum, and without Elias coding of the levels. Payload: one float32 for each
    bucket, then the values.
    """

    def __init__(self, initial: State, clients: int, seed: int, *, bits: int = 8) -> None:
        super().__init__(initial, clients, seed, feedback=False)
        self._bits = bits
        self._top = 2 ** (bits - 1) - 1

    def encode(self, update: Vector) -> bytes:
        padded = np.pad(update, (0, -len(update) % BUCKET)).reshape(-1, BUCKET)
        scale = np.abs(padded).max(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):
            levels = np.nan_to_num(np.abs(padded) / scale * np.float32(self._top))
        levels = np.floor(levels + self._rng.random(levels.shape, np.float32)).astype(np.int64)
        levels = np.minimum(levels, self._top) + (padded < 0) * (self._top + 1)
        scales: bytes = scale.astype("<f4").tobytes()
        return scales + pack(levels.reshape(-1)[: len(update)], self._bits)

    def decode(self, payload: bytes, n_elems: int) -> Vector:
        n_buckets = -(-n_elems // BUCKET)
        scale = np.frombuffer(payload, "<f4", n_buckets).repeat(BUCKET)[:n_elems]
        levels = unpack(payload[4 * n_buckets :], self._bits, n_elems)
        sign = np.where(levels > self._top, np.float32(-1), np.float32(1))
        values = (levels & self._top).astype(np.float32) * np.float32(1 / self._top)
        decoded: Vector = sign * values * scale
        return decoded
