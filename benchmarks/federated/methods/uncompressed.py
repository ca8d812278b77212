"""Federated averaging without compression, and in half precision."""

from __future__ import annotations

import numpy as np

from benchmarks.federated.methods.base import Method, State


class Uncompressed(Method):
    """Sends every whole model as float32 (McMahan et al., arXiv:1602.05629)."""

    dtype: type[np.floating] = np.float32

    def _sent(self, state: State) -> tuple[State, int]:
        sent = {name: value.astype(self.dtype) for name, value in state.items()}
        recovered = {name: value.astype(np.float32) for name, value in sent.items()}
        return recovered, sum(value.nbytes for value in sent.values())

    def up(self, client: int, local: State) -> tuple[State, int]:
        return self._sent(local)

    def down(self, mean: State) -> list[int]:
        return self._broadcast(*self._sent(mean))


class Float16(Uncompressed):
    """Sends every whole model, rounded to float16."""

    dtype = np.float16
