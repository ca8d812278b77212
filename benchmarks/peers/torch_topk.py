"""A simple PyTorch codec: subtract, top-k, 8 bits a value, indices and values."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.base import Floats, LossyCoder, Update, split_like
from benchmarks.peers.integers import kept


class TorchTopK(LossyCoder):
    """5 bytes for each nonzero, and the scale. One thread.

    ``knob``: one in ``2 ** knob`` elements is sent.
    """

    name = "PyTorch top-k, 8 bits"
    knobs = (0.5, 16.0)

    package = "torch"

    def encode(self, update: Update, knob: float) -> Any:
        import torch

        torch.set_num_threads(1)
        residual = torch.cat(
            [
                torch.sub(torch.from_numpy(value), torch.from_numpy(update.reference[n])).ravel()
                for n, value in update.state.items()
            ]
        )
        index = torch.topk(residual.abs(), kept(knob, residual.numel()), sorted=False).indices
        values = residual[index]
        scale = values.abs().max() / 127
        quantized = torch.round(values / scale).to(torch.int8)
        parts = (scale.reshape(1), index.to(torch.int32), quantized)
        return b"".join(part.numpy().tobytes() for part in parts)

    def decode(self, payload: Any, reference: Floats) -> Floats:
        import torch

        data = bytearray(payload)
        n = (len(data) - 4) // 5
        scale = torch.frombuffer(data, dtype=torch.float32, count=1)
        index = torch.frombuffer(data, dtype=torch.int32, count=n, offset=4)
        quantized = torch.frombuffer(data, dtype=torch.int8, count=n, offset=4 + 4 * n)
        model = torch.cat([torch.from_numpy(value).ravel() for value in reference.values()])
        model[index] += quantized * scale
        flat: Any = model.numpy()
        assert flat.dtype == np.float32
        return split_like(flat, reference)
