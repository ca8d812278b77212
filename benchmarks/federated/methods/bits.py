"""Numbers of a few bits, packed most significant bit first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pack(values: NDArray[np.integer], n_bits: int) -> bytes:
    """Each of ``values``, in [0, 2**n_bits), as ``n_bits`` bits; zeros fill the last byte."""
    shifts = np.arange(n_bits - 1, -1, -1)
    return np.packbits((values[:, None] >> shifts & 1).astype(np.uint8)).tobytes()


def unpack(payload: bytes, n_bits: int, count: int) -> NDArray[np.int64]:
    """The inverse of :func:`pack`, int64."""
    bits = np.unpackbits(np.frombuffer(payload, np.uint8), count=count * n_bits)
    return bits.reshape(count, n_bits).astype(np.int64) @ (1 << np.arange(n_bits - 1, -1, -1))
