"""What type checkers see of the public API. mypy checks this file; nothing runs it.

Each ``type: ignore`` marks a mistake that mypy must find: without one, the comment is an error.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import assert_type

import resfed_codec as rfc

Arrays = dict[str, NDArray[np.float32]]
Tensors = dict[str, torch.Tensor]


def options(state: Arrays, reference: Arrays) -> None:
    config = rfc.CodecConfig(sparsity=0.99, exclude=["*.bias"], dense="running_mean", step="auto")
    assert_type(rfc.encode(state, reference, config), bytes)
    rfc.encode(state, reference, max_bytes=1000, bits=3, exclude=("a", "b"))
    rfc.Encoder(reference, sparsity=0.5, predictor="adaptive", error_feedback=True)

    rfc.encode(state, reference, sparcity=0.99)  # type: ignore[call-arg]
    rfc.encode(state, reference, bits="3")  # type: ignore[arg-type]
    rfc.CodecConfig(sparcity=0.99)  # type: ignore[call-arg]
    rfc.CodecConfig(step="fine")  # type: ignore[arg-type]
    rfc.Encoder(reference, sparcity=0.5)  # type: ignore[call-overload]
    rfc.encode(state, {"w": 3})  # type: ignore[dict-item]


def one_update(arrays: Arrays, tensors: Tensors, listed: list[torch.Tensor]) -> None:
    payload = rfc.encode(tensors, tensors)
    assert_type(rfc.decode(payload, arrays), Arrays)
    assert_type(rfc.decode(payload, tensors), Tensors)
    assert_type(rfc.decode(bytearray(payload), listed), list[torch.Tensor])
    assert_type(rfc.decode(payload, arrays, out=tensors), Tensors)


def nested(layers: dict[str, Arrays], listed: list[Tensors]) -> None:
    assert_type(rfc.decode(b"", layers), dict[str, Arrays])
    assert_type(rfc.Encoder(listed, sparsity=0.5).state, list[Tensors])
    assert_type(rfc.ServerSession(layers).receive("ada", b""), dict[str, Arrays])
    rfc.encode(layers, (layers, listed))
    rfc.encode([3.5], layers)  # type: ignore[list-item]


def streams(arrays: Arrays, listed: list[torch.Tensor]) -> None:
    encoder, decoder = rfc.Encoder(arrays), rfc.Decoder(listed, run="a")
    assert_type(encoder.state, Arrays)
    assert_type(decoder.decode(encoder.encode(arrays)), list[torch.Tensor])
    assert_type(decoder.decode(b"", copy=False), list[torch.Tensor])
    assert_type(decoder.decode(b"", out=arrays), Arrays)


def sessions(arrays: Arrays, tensors: Tensors, listed: list[torch.Tensor]) -> None:
    server = rfc.ServerSession(tensors, rfc.CodecConfig(), run="a", history=2)
    client = rfc.ClientSession(arrays, client_id="ada")
    assert_type(server, rfc.ServerSession[Tensors])
    assert_type(client.receive(server.send("ada")), Arrays)
    assert_type(client.receive(b"", copy=False), Arrays)
    assert_type(client.receive(b"", out=tensors), Tensors)
    assert_type(client.state, Arrays)
    assert_type(server.receive("ada", client.send(arrays)), Tensors)
    assert_type(server.receive(3, b"", out=arrays), Arrays)
    assert_type(server.aggregator().result(), Tensors)
    assert_type(server.state, Tensors)
    assert_type(rfc.ClientSession(listed).receive(b""), list[torch.Tensor])
    assert_type(rfc.Aggregator(listed).result(), list[torch.Tensor])

    server.send(3.5)  # type: ignore[arg-type]
    client.send({"w": "text"})  # type: ignore[dict-item]


def of_any_kind(client: rfc.ClientSession, states: dict[str, Any]) -> None:
    """Names without a kind mean any."""
    assert_type(client.receive(b""), Any)
    assert_type(rfc.ClientSession(states).state, dict[str, Any])
