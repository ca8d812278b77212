"""ZFP on the flat residual with fixed accuracy, which it rounds down to a power of two."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.base import Floats, LossyCoder, Update, add_flat, flat_residual


class ZFP(LossyCoder):
    """``knob``: the tolerance is 2 ** knob."""

    name = "ZFP"
    knobs = (-40.0, 10.0)
    stepped = True

    package = "zfpy"

    def encode(self, update: Update, knob: float) -> Any:
        import zfpy

        return zfpy.compress_numpy(flat_residual(update), tolerance=2.0**knob, write_header=True)

    def decode(self, payload: Any, reference: Floats) -> Floats:
        import zfpy

        return add_flat(reference, zfpy.decompress_numpy(payload))
