"""Names may be subclasses of str or int and count by their value. Callers' mappings and sequences
are read once per model."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc
from resfed_codec.codec.update import encode_and_recover


class Site(str, enum.Enum):
    """Prints as "Site.NORTH" and equals "north"."""

    NORTH = "north"
    SOUTH = "south"


class Rank(int):
    def __str__(self) -> str:
        return f"rank {int(self)}"

    __repr__ = __str__


EXACT = {"sparsity": 0.0, "bits": 16}


def model(value: float = 0) -> dict[str, np.ndarray]:
    return {name: np.full((4, 4), value, np.float32) for name in ("a", "b")}


@pytest.mark.parametrize(
    ("name", "plain"), [(Site.NORTH, "north"), (Rank(3), 3), (np.int16(3), 3), (np.str_("x"), "x")]
)
class TestClients:
    def test_the_plain_name_is_the_same_client(self, name: Any, plain: Any) -> None:
        server = rfc.ServerSession(model())
        client = rfc.ClientSession(model(), client_id=plain)
        server.update(model(1))
        client.receive(server.send(name))
        aggregator = server.aggregator()
        uplink = client.send(model(2))
        assert server.receive_into(name, uplink, aggregator, repeated="add")
        assert not server.receive_into(name, uplink, aggregator, repeated="add")
        assert not server.receive_into(plain, uplink, aggregator, repeated="add")
        assert server.clients == [plain]
        assert type(server.clients[0]) is type(plain)

    def test_forget(self, name: Any, plain: Any) -> None:
        server = rfc.ServerSession(model())
        server.send(name)
        server.forget(name)
        assert server.clients == []

    def test_resume(self, name: Any, plain: Any) -> None:
        server = rfc.ServerSession(model())
        client = rfc.ClientSession(model(), client_id=name)
        server.receive(name, client.send(model(2)))
        again = rfc.ServerSession(model())
        again.load_state_dict(server.state_dict())
        other = rfc.ClientSession(model(), client_id=plain)
        other.load_state_dict(client.state_dict())
        again.receive(plain, other.send(model(3)))


@pytest.mark.parametrize(
    "make",
    [
        lambda run: rfc.Encoder(model(), rfc.CodecConfig(), run=run),
        lambda run: rfc.Decoder(model(), run=run),
        lambda run: rfc.ServerSession(model(), run=run),
        lambda run: rfc.ClientSession(model(), run=run),
    ],
)
@pytest.mark.parametrize("run", [Site.NORTH, np.str_("north")])
def test_runs(make: Callable[[str], Any], run: str) -> None:
    saved = make(run).state_dict()
    make(run).load_state_dict(saved)
    make("north").load_state_dict(saved)


def test_history_of_a_subclass() -> None:
    saved = rfc.ServerSession(model(), history=Rank(3)).state_dict()
    rfc.ServerSession(model(), history=3).load_state_dict(saved)


def test_tensors() -> None:
    enums = {site: np.zeros((3, 3), np.float32) for site in Site}
    texts = {site.value: array for site, array in enums.items()}
    new = {name: array + 1 for name, array in texts.items()}
    payload = rfc.encode(new, enums, **EXACT)
    assert payload == rfc.encode(new, texts, **EXACT)
    for reference in (enums, texts):
        decoded = rfc.decode(payload, reference)
        assert [type(name) for name in decoded] == [str, str]
        for name in texts:
            assert (decoded[name] == new[name]).all()


# ---- callers' containers


class ChangingMapping(Mapping[str, Any]):
    """A mapping that returns another of several models at each reading, and then the last one."""

    def __init__(self, *models: Mapping[str, Any]) -> None:
        self._models = list(models)

    def items(self) -> Any:
        return (self._models.pop(0) if len(self._models) > 1 else self._models[0]).items()

    def __getitem__(self, name: str) -> Any:
        return self._models[0][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models[0])

    def __len__(self) -> int:
        return len(self._models[0])


class ChangingSequence(Sequence[Any]):
    """The same as a sequence."""

    def __init__(self, *models: Mapping[str, Any]) -> None:
        self._models = [list(m.values()) for m in models]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._models.pop(0) if len(self._models) > 1 else self._models[0])

    def __getitem__(self, i: Any) -> Any:
        return self._models[0][i]

    def __len__(self) -> int:
        return len(self._models[0])


OTHERS: dict[str, dict[str, Any]] = {
    "renamed": {"y": np.ones((4, 4), np.float32), "x": np.ones((4, 4), np.float32)},
    "fewer": {"a": np.ones((4, 4), np.float32)},
    "none": {},
    "another dtype": {name: np.ones((4, 4)) for name in ("a", "b")},
    "another shape": {name: np.ones((2, 8), np.float32) for name in ("a", "b")},
    "no arrays": {"a": 1, "b": 2},
}

CALLS: dict[str, Callable[[Any], Any]] = {
    "decode": lambda s: rfc.decode(rfc.encode(model(1), model(), **EXACT), s),
    "decode a sequence": lambda s: rfc.decode(
        rfc.encode(list(model(1).values()), list(model().values()), **EXACT), s
    ),
    "encode_and_recover": lambda s: encode_and_recover(model(1), s, **EXACT)[1],
    "recover a sequence": lambda s: encode_and_recover(list(model(1).values()), s, **EXACT)[1],
    "decode_keyframe": lambda s: rfc.decode_keyframe(rfc.encode_keyframe(model(1)), s),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize(("kind", "call"), [(ChangingSequence if "sequence" in name
                                              else ChangingMapping, call)
                         for name, call in CALLS.items()], ids=CALLS)  # fmt: skip
def test_results_are_made_from_one_reading(
    other: dict[str, Any], kind: Callable[..., Any], call: Callable[[Any], Any]
) -> None:
    result = call(kind(model(), other))
    arrays = list(result.values()) if isinstance(result, dict) else result
    if isinstance(result, dict):
        assert list(result) == ["a", "b"]
    assert [array.tolist() for array in arrays] == [a.tolist() for a in model(1).values()]


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("make", [rfc.Decoder, rfc.Aggregator, rfc.ServerSession])
def test_constructors_succeed_or_raise(other: dict[str, Any], make: Callable[[Any], Any]) -> None:
    for n in range(1, 5):
        try:
            made = make(ChangingMapping(*[model()] * n, other))
        except (TypeError, ValueError):
            continue
        if isinstance(made, rfc.Aggregator):
            made.add_state(model(1))
        result = made.result() if isinstance(made, rfc.Aggregator) else made.state
        assert list(result) == ["a", "b"]
        assert {array.dtype for array in result.values()} == {np.dtype(np.float32)}
