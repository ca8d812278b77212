"""Sparse communication of adapters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks.federated.methods.base import Method, State
from benchmarks.federated.methods.topk import largest


class Flasc(Method):
    """The largest weights down, the largest changes up; clients train everything.

    Kuo, Raje, Rajesh, Smith, "Federated LoRA with sparse communication", arXiv:2406.05233, with a
    mean on the server instead of its adaptive optimizer. Our interpretation: the largest of each
    tensor, since one matrix of an adapter starts at random and the other at 0. There is no
    feedback. The tested model is the server's, which is dense.

    Bytes are computed, not produced: 32 bits a value, and a bit for each element, or 32 for each
    value if that is less.
    """

    def __init__(self, *start: Any, up_density: float = 0.25, down_density: float = 0.25) -> None:
        super().__init__(*start)
        self._up, self._down = up_density, down_density
        self._server = self.held[0]

    @property
    def tested(self) -> State:
        return self._server

    def up(self, client: int, local: State) -> tuple[State, int]:
        held = self.held[client]
        change, n_bytes = _sparse({name: local[name] - held[name] for name in local}, self._up)
        # The server adds the client's change to its own model.
        return {name: self._server[name] + change[name] for name in local}, n_bytes

    def down(self, mean: State) -> list[int]:
        self._server = mean
        return self._broadcast(*_sparse(mean, self._down))


def _sparse(state: State, density: float) -> tuple[State, int]:
    """The largest magnitudes of each tensor, and the bytes of all."""
    sent, n_bytes = {}, 0
    for name, value in state.items():
        chosen = largest(value.reshape(-1), 1 - density)
        sent[name] = np.zeros_like(value)
        sent[name].flat[chosen] = value.flat[chosen]
        n_bytes += 4 * len(chosen) + min(math.ceil(value.size / 8), 4 * len(chosen))
    return sent, n_bytes
