"""The ResFed paper's scheme, with its count of bits (benchmarks/federated/methods)."""

from __future__ import annotations

import math

from benchmarks.federated.methods.resfed import accounted_bits, quantize
from benchmarks.peers.base import LossyPeer, Turn, Update, add_flat, flat_residual


class Paper(LossyPeer):
    """Top-k and median quantizer. It counts bytes without writing them, so it has no times.

    ``knob``: one in ``2 ** knob`` elements is selected; half of these are sent.
    """

    knobs = (0.0, 16.0)

    def __init__(self, levels: int) -> None:
        self._levels = levels
        self.name = f"ResFed paper's scheme, {2**levels} values"

    def turn(self, update: Update, knob: float) -> Turn:
        residual = quantize(flat_residual(update), 1 - 2.0**-knob, self._levels)
        n_bytes = math.ceil(accounted_bits(residual) / 8)
        return Turn(n_bytes, math.nan, math.nan, add_flat(update.reference, residual))
