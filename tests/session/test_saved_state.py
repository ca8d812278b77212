"""Saved state that does not fit, or was forged: refused as a whole, by name, or good for use.

A digest tells damage. Here it is made right again, so that what is behind it has to be checked.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc
from federation import RULES, Federation, model
from models import State
from published_rules import moved
from snapshots import refused, snapshot

StateDict = dict[str, Any]


def resealed(structure: Any, arrays: StateDict) -> StateDict:
    """A state_dict of these contents, with the digest that they have."""
    text = structure if isinstance(structure, bytes) else json.dumps(structure).encode()
    digest = hashlib.blake2b(text, digest_size=16)
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return {"structure": np.frombuffer(digest.digest() + text, np.uint8), **arrays}


def opened(state_dict: StateDict) -> tuple[Any, StateDict]:
    arrays = {name: value for name, value in state_dict.items() if name != "structure"}
    return json.loads(state_dict["structure"].tobytes()[16:]), arrays


# ---- objects of other arguments


def streams_and_sessions(initial: State, **options: Any) -> dict[str, Any]:
    """Each class with ``options`` in the place where its state depends on them."""
    config = rfc.CodecConfig(**{"error_feedback": True, **options})
    return {
        "Encoder": rfc.Encoder(initial, config),
        "ClientSession": rfc.ClientSession(initial, config),
        "ServerSession": rfc.ServerSession(initial, downlink=config),
    }


ROLES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "excluded": ({"exclude": "w"}, {}, r"saved with exclude=\('w',\); this object has \(\)"),
    "no longer": ({}, {"exclude": ("b", "w")}, r"exclude=\(\); this object has \('b', 'w'\)"),
    "dense": ({"dense": "b"}, {}, r"saved with dense=\('b',\); this object has \(\)"),
    "feedback": (
        {"error_feedback": False},
        {},
        "saved with error_feedback=False; this object has True",
    ),
}


@pytest.mark.parametrize("kind", ["Encoder", "ClientSession", "ServerSession"])
@pytest.mark.parametrize(("saved", "own", "match"), ROLES.values(), ids=ROLES)
def test_other_roles(
    kind: str, saved: dict[str, Any], own: dict[str, Any], match: str, rng: np.random.Generator
) -> None:
    initial = model(rng)
    before = streams_and_sessions(initial, **saved)[kind].state_dict()
    end = streams_and_sessions(initial, **own)[kind]
    refused(end, ValueError, match, lambda: end.load_state_dict(before))


@pytest.mark.parametrize("kind", ["Encoder", "ClientSession", "ServerSession"])
def test_patterns_count_by_what_they_name(kind: str, rng: np.random.Generator) -> None:
    initial = model(rng)
    before = streams_and_sessions(initial, exclude=("w", "s"))[kind].state_dict()
    streams_and_sessions(initial, exclude=("[sw]",))[kind].load_state_dict(before)


@pytest.mark.parametrize("kind", ["Encoder", "ClientSession", "ServerSession"])
@pytest.mark.parametrize("own", [{"max_bytes": 5000}, {"bits": 3}, {"dense_bits": 7}], ids=str)
def test_targets_may_change(kind: str, own: dict[str, Any], rng: np.random.Generator) -> None:
    initial = model(rng)
    before = streams_and_sessions(initial, sparsity=0.5)[kind].state_dict()
    end = streams_and_sessions(initial, **own)[kind]
    end.load_state_dict(before)
    assert snapshot(end) == {name: value.tobytes() for name, value in before.items()}


def test_without_feedback_roles_may_change(rng: np.random.Generator) -> None:
    initial = model(rng)
    before = rfc.Encoder(initial, exclude="w")
    before.encode(moved(initial, rng))
    encoder, decoder = rfc.Encoder(initial), rfc.Decoder(initial)
    encoder.load_state_dict(before.state_dict())
    decoder.decode(before.keyframe())
    decoder.decode(encoder.encode(moved(initial, rng)))


def test_other_layouts_runs_and_histories(rng: np.random.Generator) -> None:
    initial = model(rng)
    renamed = {("v" if name == "w" else name): value for name, value in initial.items()}
    wider = {**initial, "b": initial["b"].astype(np.float32)}
    longer = {**initial, "z": np.zeros(3)}
    for kind in (rfc.Encoder, rfc.Decoder, rfc.ClientSession, rfc.ServerSession):
        end = kind(initial)
        for other, match in (
            (kind(renamed), r"tensor 'v' float32 \[30, 40\]; this object has tensor 'w' float32"),
            (kind(wider), r"tensor 'b' float32 \[30\]; this object has tensor 'b' float16 \[30\]"),
            (kind(longer), r"tensor 'z' float64 \[3\]; this object has no tensor more"),
            (kind(initial, run="monday"), "saved with run='monday'; this object has ''"),
            (kind(moved(initial, rng)), "saved from another initial state: its values differ"),
        ):
            saved = other.state_dict()
            refused(end, ValueError, match, lambda e=end, s=saved: e.load_state_dict(s))
    for session in (rfc.ClientSession, rfc.ServerSession):
        for direction in ("uplink", "downlink"):
            adaptive = {direction: rfc.CodecConfig(predictor="adaptive", error_feedback=False)}
            other = {direction: rfc.CodecConfig(error_feedback=False)}
            saved = session(initial, **adaptive).state_dict()
            with pytest.raises(ValueError, match=f"'adaptive'; this object has .* in {direction}"):
                session(initial, **other).load_state_dict(saved)
        saved = session(initial, history=2).state_dict()
        with pytest.raises(ValueError, match="saved with history=2; this object has 4"):
            session(initial).load_state_dict(saved)
    saved = rfc.ClientSession(initial, client_id="a").state_dict()
    with pytest.raises(ValueError, match="client_id"):
        rfc.ClientSession(initial, client_id="b").load_state_dict(saved)
    rfc.ClientSession(initial).load_state_dict(saved)


# ---- forged state


def both_sessions(rules: str, feedback: bool) -> tuple[Federation, rfc.ClientSession]:
    """Some rounds, and an uplink under way."""
    fed = Federation(RULES[rules], feedback)
    client = fed.new_client(client_id="a")
    fed.rounds(client, 2)
    fed.rounds(fed.new_client(), 1, 7)
    fed.update()
    fed.down(client)
    client.send(moved(client.state, fed.rng))
    return fed, client


def play_sessions(server: rfc.ServerSession, client: rfc.ClientSession) -> None:
    """Exchanges after which both ends have gone through all that they hold."""
    rng = np.random.default_rng(3)
    for _ in range(2):
        with contextlib.suppress(ValueError):  # models may hold what cannot be sent, as NaN
            server.update(moved(server.state, rng))
        for name in [*server.clients, "new"]:
            with contextlib.suppress(ValueError):
                exchange(server.send(name), client.receive, lambda r, n=name: server.answer(n, r))
            with contextlib.suppress(ValueError):
                uplink = client.send(moved(client.state, rng))
                exchange(uplink, lambda m, n=name: server.receive(n, m), client.answer)
        with contextlib.suppress(ValueError):
            client.send(moved(client.state, rng))
    assert server.memory()["global"] > 0
    snapshot(server)
    snapshot(client)


def exchange(
    message: bytes, receive: Callable[[bytes], Any], answer: Callable[[bytes], bytes]
) -> None:
    """Deliver, with two answers at most."""
    for _ in range(3):
        try:
            receive(message)
        except rfc.StateMismatchError as error:
            message = answer(error.request)
        else:
            return


def play_stream(encoder: rfc.Encoder, decoder: rfc.Decoder) -> None:
    rng = np.random.default_rng(3)
    for _ in range(3):
        with contextlib.suppress(ValueError):
            exchange(encoder.encode(moved(encoder.state, rng)), decoder.decode, encoder.answer)


def ends(case: str) -> tuple[Any, Any, Callable[[Any, Any], None]]:
    """Two ends in the middle of their work, and how they go on."""
    if case.startswith("stream"):
        initial = model(np.random.default_rng(7))
        options = {"predictor": "adaptive"} if case == "stream adaptive" else {}
        encoder = rfc.Encoder(initial, error_feedback=True, sparsity=0.8, **options)
        decoder = rfc.Decoder(initial)
        play_stream(encoder, decoder)
        return encoder, decoder, play_stream
    rules, _, feedback = case.partition("+")
    fed, client = both_sessions(rules, bool(feedback))
    return fed.server, client, play_sessions


CASES = ["stream", "stream adaptive", "default+feedback", "own history", "all"]

OTHER_LEAVES = [None, True, -1, 0, 1, 2**40, 2**62, 2**63, 2**64, 2**200, 0.5, float("nan"), "",
                "x", [], [0], {}, {"bytes": None}, {"model": 0}, {"version": 0}, {"version": -1},
                {"mapping": []}, {"bytes": "tensor.0"}]  # fmt: skip


def places_of(plain: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values inside a structure."""
    items = plain.items() if isinstance(plain, dict) else enumerate(plain)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places_of(value, (*path, key))


def changed(plain: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    plain = copy.deepcopy(plain)
    inner = plain
    for key in path[:-1]:
        inner = inner[key]
    change(inner, path[-1])
    return plain


def setting(value: Any) -> Callable[[Any, Any], None]:
    def change(inner: Any, key: Any) -> None:
        inner[key] = value

    return change


def without(inner: Any, key: Any) -> None:
    del inner[key]


def twice(inner: Any, key: Any) -> None:
    if isinstance(inner, dict):
        inner["more"] = inner[key]
    else:
        inner.insert(key, inner[key])


def forged_structures(saved: StateDict, rng: np.random.Generator) -> Iterator[StateDict]:
    structure, arrays = opened(saved)
    paths = list(places_of(structure))
    for i in rng.permutation(len(paths))[:100]:
        others = [setting(OTHER_LEAVES[j]) for j in rng.choice(len(OTHER_LEAVES), 2, replace=False)]
        for change in (*others, without, twice):
            yield resealed(changed(structure, paths[i], change), arrays)
    deep = b'{"kind": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    for text in (b"", b"5", b"\xff", deep, b'{"kind": "Encoder"}'):
        yield resealed(text, arrays)


def forged_arrays(saved: StateDict, rng: np.random.Generator) -> Iterator[StateDict]:
    structure, arrays = opened(saved)
    for name, array in arrays.items():
        flipped = array.copy()
        if array.size:
            raw = flipped.reshape(-1).view(np.uint8)
            raw[rng.integers(raw.size)] ^= 1 << int(rng.integers(8))
        others = [
            array.reshape(-1)[:1],
            array.reshape(-1)[:-1],
            np.concatenate([array.reshape(-1), array.reshape(-1)]),
            array.reshape(1, *array.shape),
            array.astype(np.float64),
            array.astype(np.int8),
            array.astype(object),
            array.astype("U8"),
            np.empty((0, *array.shape), array.dtype),
            np.zeros_like(array),
            np.broadcast_to(array.reshape(-1)[:1], (*array.shape, 1))[..., 0]
            if array.size
            else array,
            flipped,
        ]
        if array.dtype.kind == "f":
            others.append(np.full_like(array, np.nan))
        for other in others:
            yield resealed(structure, {**arrays, name: other})
        yield resealed(structure, {n: a for n, a in arrays.items() if n != name})
    yield resealed(structure, {**arrays, "more": np.zeros(3)})


@pytest.mark.parametrize("forged", [forged_structures, forged_arrays])
@pytest.mark.parametrize("case", CASES)
def test_forged_state(
    case: str, forged: Callable[..., Iterator[StateDict]], rng: np.random.Generator
) -> None:
    """Refused, and nothing has changed; or loaded, and then all calls end in the codec's errors."""
    n_refused = 0
    *pair, play = ends(case)
    for i in range(2):
        target = copy.deepcopy(pair[i])
        saved, before = target.state_dict(), snapshot(target)
        for state_dict in forged(saved, rng):
            try:
                target.load_state_dict(state_dict)
            except ValueError as error:
                n_refused += 1
                named = type(error) is ValueError and str(error).startswith("state_dict: ")
                assert named, error  # noqa: PT017 -- it may be loaded as well
                assert snapshot(target) == before, "a refused state was loaded"
            else:
                other = copy.deepcopy(pair[1 - i])
                play(*((target, other) if i == 0 else (other, target)))
                target = copy.deepcopy(pair[i])
    assert n_refused > 100


@pytest.mark.parametrize("case", CASES)
def test_state_that_was_saved_goes_on(case: str) -> None:
    first, second, play = ends(case)
    for _ in range(3):
        for end in (first, second):
            end.load_state_dict(end.state_dict())
        play(first, second)


def test_nothing_but_a_mapping() -> None:
    end = rfc.Encoder([np.zeros(3, np.float32)])
    for value in (None, 5, "structure", [], {}, {"structure": 3}, {"structure": object()}):
        refused(end, ValueError, "state_dict: ", lambda v=value: end.load_state_dict(v))


@pytest.mark.parametrize("name", ["more", "structure", "tensor.0"])
def test_arrays_that_claim_more_than_they_hold(name: str, rng: np.random.Generator) -> None:
    """A view with strides of 0 is any size; it is refused before it is copied or hashed."""
    encoder = rfc.Encoder(model(rng))
    saved = encoder.state_dict()
    huge = np.broadcast_to(saved["structure"][:1], (1 << 44,))
    ladder = np.lib.stride_tricks.as_strided(np.zeros(1 << 10, np.uint8), (512, 512), (1, 1))
    for array in (huge, ladder):
        with pytest.raises(ValueError, match="whose elements share memory"):
            encoder.load_state_dict({**saved, name: array})
    strided = {n: np.repeat(a, 2, 0)[::2] if a.ndim else a for n, a in saved.items()}
    encoder.load_state_dict(strided)
