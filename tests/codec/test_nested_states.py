"""States of nested dicts, lists and tuples: names, results, errors."""

from __future__ import annotations

import pickle
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc
from resfed_codec.tensors.layout import items_of


def array(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def nested(seed: int) -> dict[str, Any]:
    return {
        "layers": [
            {"w": array(seed, 30, 20), "b": array(seed + 1, 20)},
            {"w": array(seed + 2, 20, 10), "b": array(seed + 3, 10)},
        ],
        "head": (array(seed + 4, 10, 5), np.array(seed)),
        "none": {},
    }


FLAT = {
    "head/0": ("head", 0),
    "head/1": ("head", 1),
    "layers/0/b": ("layers", 0, "b"),
    "layers/0/w": ("layers", 0, "w"),
    "layers/1/b": ("layers", 1, "b"),
    "layers/1/w": ("layers", 1, "w"),
}


def at(state: Any, path: tuple[Any, ...]) -> np.ndarray:
    for key in path:
        state = state[key]
    return state


def flat(state: Any) -> dict[str, np.ndarray]:
    return {name: at(state, path) for name, path in FLAT.items()}


def check(result: Any, expected: dict[str, np.ndarray]) -> None:
    """A nested result has these tensors, bit for bit."""
    assert list(result) == ["layers", "head", "none"]
    assert [type(result[key]) for key in result] == [list, tuple, dict]
    assert [list(layer) for layer in result["layers"]] == [["w", "b"]] * 2
    assert result["none"] == {}
    for name, value in flat(result).items():
        assert value.dtype == expected[name].dtype
        assert value.tobytes() == expected[name].tobytes()


def test_names() -> None:
    assert [name for name, _ in items_of(nested(0), "state")] == list(FLAT)


def test_a_nested_state_is_its_flat_one() -> None:
    """Each end may hold the other kind."""
    old, new = nested(0), nested(1)
    payload = rfc.encode(new, old, sparsity=0.5, exclude="layers/1/*")
    assert payload == rfc.encode(flat(new), flat(old), sparsity=0.5, exclude="layers/1/*")
    assert payload == rfc.encode(new, flat(old), sparsity=0.5, exclude="layers/1/*")
    expected = rfc.decode(payload, flat(old))
    assert list(expected) == list(FLAT)
    check(rfc.decode(payload, old), expected)
    rfc.decode(payload, old, out=old)
    check(old, expected)


def test_every_call_returns_the_nesting() -> None:
    old, new = nested(0), nested(1)
    check(rfc.decode_keyframe(rfc.encode_keyframe(new), old), flat(new))
    encoder, decoder = rfc.Encoder(old, sparsity=0.5), rfc.Decoder(old)
    check(decoder.decode(encoder.encode(new)), flat(encoder.state))
    check(pickle.loads(pickle.dumps(decoder)).state, flat(encoder.state))
    server, client = rfc.ServerSession(old), rfc.ClientSession(old)
    server.update(new)
    held = client.receive(server.send("a"), copy=False)
    check(held, flat(server.state))
    aggregator = server.aggregator()
    server.receive_into("a", client.send(new), aggregator)
    check(aggregator.result(), flat(aggregator.result()))
    restored = rfc.ServerSession(old)
    restored.load_state_dict(server.state_dict())
    check(restored.state, flat(server.state))


def test_mappings_and_sequences_of_other_kinds_become_dicts_and_lists() -> None:
    class Rows(list):
        pass

    state = MappingProxyType({"a": MappingProxyType({"b": array(0, 3)}), "c": Rows([array(1, 2)])})
    result = rfc.decode(rfc.encode(state, state), state)
    assert type(result) is dict
    assert type(result["a"]) is dict
    assert type(result["c"]) is list


class Name(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "another"


def test_keys_are_their_characters_and_digits() -> None:
    state = {Name("a"): {Name("b"): array(0, 2), 7: array(1, 2), True: array(2, 2)}}
    assert [name for name, _ in items_of(state, "state")] == ["a/1", "a/7", "a/b"]


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ({"a": {1.5: np.ones(2)}}, TypeError, "state: the name 1.5 in 'a' must be a str or an int"),
        ({None: [np.ones(2)]}, TypeError, "state: the name None must be a str or an int"),
        (
            {"a/b": np.ones(2), "a": {"b": np.ones(2)}},
            ValueError,
            "state: two tensors have the name 'a/b'",
        ),
        ({"a": [{"b": None}]}, TypeError, "state: tensor 'a/0/b': must be a numpy.ndarray"),
        ({"a": {"b": "text"}}, TypeError, "state: tensor 'a/b': must be a numpy.ndarray"),
        (np.ones(2), TypeError, "state: must be a mapping from names to arrays"),
        ("text", TypeError, "state: must be a mapping from names to arrays"),
    ],
    ids=str,
)
def test_clear_errors(state: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        rfc.encode_keyframe(state)


def test_layouts_that_differ_are_named() -> None:
    state = nested(0)
    with pytest.raises(ValueError, match="state lacks 'head/1', which reference has"):
        rfc.encode({**state, "head": state["head"][:1]}, state)
