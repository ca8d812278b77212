"""Zstandard on dense levels, and on gaps and levels of the nonzeros."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.integers import IntegerCode


class ZstdDense(IntegerCode):
    """All levels, including zeros."""

    def __init__(self, level: int) -> None:
        self.level = level
        self.name = f"zstd -{level} on all levels"

    package = "zstandard"

    def pack(self, levels: NDArray[Any]) -> Any:
        import zstandard

        return zstandard.ZstdCompressor(level=self.level).compress(levels.data)

    def unpack(self, data: Any, like: NDArray[Any]) -> NDArray[Any]:
        import zstandard

        return np.frombuffer(zstandard.ZstdDecompressor().decompress(data), like.dtype)


class ZstdPairs(IntegerCode):
    """Gaps between nonzeros, 32 bits each and split into byte planes, then their levels.

    Byte planes (as in Blosc's shuffle) help zstd: three of four are mostly zero.
    """

    def __init__(self, level: int) -> None:
        self.level = level
        self.name = f"zstd -{level} on pairs"

    package = "zstandard"

    def pack(self, levels: NDArray[Any]) -> Any:
        import zstandard

        index = np.flatnonzero(levels)
        gaps = np.diff(index, prepend=-1).astype(np.uint32)
        planes = gaps.view(np.uint8).reshape(-1, 4).T.tobytes()
        compressor = zstandard.ZstdCompressor(level=self.level)
        return compressor.compress(planes + levels[index].tobytes())

    def unpack(self, data: Any, like: NDArray[Any]) -> NDArray[Any]:
        import zstandard

        pairs = zstandard.ZstdDecompressor().decompress(data)
        n = len(pairs) // (4 + like.itemsize)
        planes = np.frombuffer(pairs, np.uint8, 4 * n).reshape(4, n)
        gaps = np.ascontiguousarray(planes.T).view(np.uint32).ravel()
        levels = np.zeros_like(like)
        levels[np.cumsum(gaps, dtype=np.int64) - 1] = np.frombuffer(pairs, like.dtype, n, 4 * n)
        return levels
