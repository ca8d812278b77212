"""SZ3 on the flat residual with an absolute error bound, as in FedSZ (arXiv:2312.13461)."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.base import Floats, LossyCoder, Update, add_flat, flat_residual


class SZ3(LossyCoder):
    """``knob``: the bound is 2 ** (knob / 4) root mean squares of the residual.

    It predicts by interpolation on successively finer grids. With a loose bound, most values are
    interpolated, and the error is not monotonic in the bound.
    """

    name = "SZ3"
    knobs = (-16.0, 24.0)
    stepped = True

    package = "pysz"

    def encode(self, update: Update, knob: float) -> Any:
        from pysz import sz, szConfig, szErrorBoundMode

        residual = flat_residual(update)
        config = szConfig(residual.shape)
        config.errorBoundMode = szErrorBoundMode.ABS
        config.absErrorBound = 2.0 ** (knob / 4) * float(np.sqrt(np.mean(np.square(residual))))
        return sz.compress(residual, config)[0]

    def decode(self, payload: Any, reference: Floats) -> Floats:
        from pysz import sz

        n_elems = sum(value.size for value in reference.values())
        return add_flat(reference, sz.decompress(payload, np.float32, (n_elems,))[0])
