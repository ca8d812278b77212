"""This codec."""

from __future__ import annotations

from typing import Any

import numpy as np

import resfed_codec as rfc
from benchmarks.peers.base import Floats, LossyCoder, Turn, Update


class Ours(LossyCoder):
    """``rfc.encode`` and ``rfc.decode``. ``knob``: one in ``2 ** knob`` elements is sent.

    ``threads``: the number of threads to set before each turn. ``target``: arrays for decoding in
    place, as by a receiver that keeps only its newest model. Before each turn they are set to the
    reference, which is not timed.
    """

    knobs = (0.1, 16.0)

    def __init__(self, threads: int = 1, *, target: Floats | None = None) -> None:
        self._threads, self._target = threads, target
        self.name = "ours"
        self.name += ", in place" if target else ""
        self.name += f", {threads} threads" if threads > 1 else ""

    def encode(self, update: Update, knob: float) -> Any:
        sparsity = round(1 - 2.0**-knob, 9)  # so that the knob of 0.99 gives 0.99
        return rfc.encode(update.state, update.reference, sparsity=sparsity)

    def decode(self, payload: Any, reference: Floats) -> Floats:
        if self._target:
            return rfc.decode(payload, self._target, out=self._target)
        return rfc.decode(payload, reference)

    def turn(self, update: Update, knob: float) -> Turn:
        rfc.set_num_threads(self._threads)
        for name, target in (self._target or {}).items():
            np.copyto(target, update.reference[name])
        return super().turn(update, knob)
