"""Blosc2 on dense levels: bit shuffle, then zstd."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.integers import IntegerCode


class Blosc2Dense(IntegerCode):
    """All levels, including zeros, in chunks of at most 1 GiB. One thread."""

    def __init__(self, level: int) -> None:
        self.level = level
        self.name = f"Blosc2 zstd-{level} on all levels"

    package = "blosc2"

    def pack(self, levels: NDArray[Any]) -> Any:
        import blosc2

        blosc2.set_nthreads(1)
        return blosc2.compress2(
            levels,
            codec=blosc2.Codec.ZSTD,
            clevel=self.level,
            typesize=levels.itemsize,
            filters=[blosc2.Filter.BITSHUFFLE],
            filters_meta=[0],
        )

    def unpack(self, data: Any, like: NDArray[Any]) -> NDArray[Any]:
        import blosc2

        return np.frombuffer(blosc2.decompress2(data), like.dtype)
