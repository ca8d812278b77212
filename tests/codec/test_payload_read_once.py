"""Every call verifies, reads and hashes a payload at most once.

Only the constructor of ``_native.Payload`` computes a payload's checksum and reads its header: all
other native functions take what it made. So the calls of the constructor are counted here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc
from resfed_codec import _native
from resfed_codec.codec import payload as payload_module
from resfed_codec.stream import link as link_module

MODEL = {"w": np.zeros((20, 30), np.float32), "b": np.zeros(30, np.float32)}
STATE = {name: array + np.float32(0.5) for name, array in MODEL.items()}


def sessions() -> tuple[rfc.ServerSession, rfc.ClientSession]:
    server, client = rfc.ServerSession(MODEL), rfc.ClientSession(MODEL, client_id="a")
    server.update(STATE)
    client.receive(server.send("a"))
    return server, client


def encoded() -> bytes:
    return rfc.encode(STATE, MODEL)


def decode() -> Callable[[], Any]:
    data = encoded()
    return lambda: rfc.decode(data, MODEL)


def decode_in_place() -> Callable[[], Any]:
    data, out = encoded(), {name: array.copy() for name, array in MODEL.items()}
    return lambda: rfc.decode(data, out, out=out)


def inspect() -> Callable[[], Any]:
    data = encoded()
    return lambda: rfc.inspect(data)


def aggregate() -> Callable[[], Any]:
    data, aggregator = encoded(), rfc.Aggregator(MODEL)
    return lambda: aggregator.add(data)


def decoder() -> Callable[[], Any]:
    data, end = rfc.Encoder(MODEL).encode(STATE), rfc.Decoder(MODEL)
    return lambda: end.decode(data)


def client_receives() -> Callable[[], Any]:
    server, client = sessions()
    server.update(MODEL)
    message = server.send("a")
    return lambda: client.receive(message)


def server_receives() -> Callable[[], Any]:
    server, client = sessions()
    message = client.send(STATE)
    return lambda: server.receive("a", message)


def server_sums() -> Callable[[], Any]:
    server, client = sessions()
    message, aggregator = client.send(STATE), server.aggregator()
    return lambda: server.receive_into("a", message, aggregator)


def server_sums_a_model() -> Callable[[], Any]:
    """The aggregator has another reference, so the payload is decoded."""
    server, client = sessions()
    message, aggregator = client.send(STATE), rfc.Aggregator(MODEL)
    return lambda: server.receive_into("a", message, aggregator)


def server_sums_again() -> Callable[[], Any]:
    server, client = sessions()
    message, aggregator = client.send(STATE), server.aggregator()
    server.receive_into("a", message, aggregator)
    return lambda: server.receive_into("a", message, aggregator)


CALLS = [
    *(decode, decode_in_place, inspect, aggregate, decoder, client_receives),
    *(server_receives, server_sums, server_sums_a_model, server_sums_again),
]


@pytest.mark.parametrize("make", CALLS, ids=lambda make: make.__name__)
def test_a_call_reads_a_payload_once(
    make: Callable[[], Callable[[], Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = make()
    read: list[bytes] = []
    hashed: list[bytes | memoryview] = []
    real_payload, real_digest = _native.Payload, link_module.digest64

    def counted(data: bytes, *args: Any) -> _native.Payload:
        read.append(data)
        return real_payload(data, *args)

    def digest64(*parts: bytes | memoryview) -> int:
        if parts[0] == b"version":
            hashed.append(parts[1])
        return real_digest(*parts)

    monkeypatch.setattr(payload_module, "Payload", counted)
    monkeypatch.setattr(link_module, "digest64", digest64)
    call()
    assert len(read) == len(set(read)) >= 1
    assert len(hashed) == len(set(hashed))
    assert set(hashed) <= set(read)
    assert bool(hashed) == (make not in (decode, decode_in_place, inspect, aggregate))


def test_native_functions_take_no_bytes() -> None:
    """So nothing but the constructor can verify or read a payload."""
    data = encoded()
    tensors = _native.Tensors(roles=[], dtypes=[], n_elems=[])
    calls: list[Callable[[Any], Any]] = [
        lambda payload: _native.decode(payload, 0, tensors),
        lambda payload: _native.add_values(payload, tensors),
        lambda payload: _native.Aggregator(tensors, []).prepare(payload, 0, 1.0),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="incompatible function arguments"):
            call(data)
