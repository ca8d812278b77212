"""Tensors of two models are paired by name, for any number of tensors and any container."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc
from resfed_codec import reference as slow

N = 12
"""In a sequence "2" comes before "10"; sorted as strings it comes after."""

SHAPES = [(i + 1, 3) for i in range(N)]
"""All different, so wrong pairs do not fit."""


def layers() -> list[np.ndarray]:
    return [np.zeros(shape, np.float32) for shape in SHAPES]


def named(arrays: list[np.ndarray], *, backwards: bool = False) -> dict[str, np.ndarray]:
    items = list(enumerate(arrays))
    return {str(i): array for i, array in (reversed(items) if backwards else items)}


def trained(start: float = 1) -> list[np.ndarray]:
    return [np.full(shape, start + i, np.float32) for i, shape in enumerate(SHAPES)]


def values(state: Any) -> list[float]:
    arrays = [state[str(i)] for i in range(N)] if isinstance(state, dict) else state
    assert [array.shape for array in arrays] == SHAPES
    return [round(float(array.mean()), 1) for array in arrays]


KINDS: dict[str, Callable[[list[np.ndarray]], Any]] = {
    "sequence": list,
    "mapping": named,
    "mapping in another order": lambda arrays: named(arrays, backwards=True),
}
EXACT = {"sparsity": 0.0, "bits": 16}
WANTED = [float(1 + i) for i in range(N)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
class TestPairs:
    def test_encode(self, kind: str, other: str) -> None:
        reference = KINDS[other](layers())
        payload = rfc.encode(KINDS[kind](trained()), reference, **EXACT)
        assert values(rfc.decode(payload, reference)) == WANTED
        assert values(rfc.decode(payload, KINDS[kind](layers()))) == WANTED
        assert payload == slow.encode(trained(), layers(), **EXACT)

    def test_out(self, kind: str, other: str) -> None:
        payload = rfc.encode(trained(), layers(), **EXACT)
        out = KINDS[kind](layers())
        assert rfc.decode(payload, KINDS[other](layers()), out=out) is out
        assert values(out) == WANTED

    def test_keyframe(self, kind: str, other: str) -> None:
        payload = rfc.encode_keyframe(KINDS[kind](trained()))
        assert payload == rfc.encode_keyframe(trained())
        out = KINDS[other](layers())
        assert values(rfc.decode_keyframe(payload, KINDS[other](layers()))) == WANTED
        assert values(rfc.decode_keyframe(payload, KINDS[kind](layers()), out=out)) == WANTED

    def test_stream(self, kind: str, other: str) -> None:
        encoder = rfc.Encoder(KINDS[kind](layers()), **EXACT)
        decoder = rfc.Decoder(KINDS[other](layers()))
        out = KINDS[kind](layers())
        payload = encoder.encode(KINDS[other](trained()))
        assert values(decoder.decode(payload, out=out)) == WANTED
        assert values(decoder.decode(encoder.encode(KINDS[kind](trained(5))))) == [
            value + 4 for value in WANTED
        ]

    def test_sessions(self, kind: str, other: str) -> None:
        config = rfc.CodecConfig(**EXACT)
        server = rfc.ServerSession(KINDS[kind](layers()), uplink=config, downlink=config)
        client = rfc.ClientSession(KINDS[other](layers()), uplink=config, downlink=config)
        server.update(KINDS[other](trained()))
        assert values(client.receive(server.send("a"))) == WANTED
        uplink = client.send(KINDS[kind](trained(3)))
        assert values(server.receive("a", uplink)) == [value + 2 for value in WANTED]

    def test_aggregator(self, kind: str, other: str) -> None:
        aggregator = rfc.Aggregator(KINDS[kind](layers()))
        aggregator.add_state(KINDS[other](trained()))
        aggregator.add(rfc.encode(KINDS[other](trained(3)), layers(), **EXACT))
        assert values(aggregator.result()) == [value + 1 for value in WANTED]
        aggregator.reset(KINDS[other](trained(2)))
        aggregator.add_state(KINDS[kind](trained(4)))
        assert values(aggregator.result()) == [value + 3 for value in WANTED]


def test_names_that_are_nearly_a_sequence_are_sorted() -> None:
    names = [str(i) for i in range(1, N + 1)]
    state = {name: np.full(3, float(name), np.float32) for name in names}
    reference = {name: np.zeros(3, np.float32) for name in reversed(names)}
    recovered = rfc.decode(rfc.encode(state, reference, **EXACT), reference)
    assert {name: round(float(array[0])) for name, array in recovered.items()} == {
        name: int(name) for name in names
    }
    with pytest.raises(ValueError, match="state lacks '0', which reference has and has '12'"):
        rfc.encode(state, [np.zeros(3, np.float32)] * N)
