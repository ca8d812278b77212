"""Saved state that does not fit or was forged: an error that names the field, or a usable state.

The digest in a state detects damage. Here it is valid, so the checks behind it must work.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc
from federation import model
from marks import slow_except
from models import State
from published_rules import moved
from saved_states import (
    CASES,
    OTHER_LEAVES,
    StateDict,
    changed,
    ends,
    opened,
    places_of,
    resealed,
    setting,
    twice,
    without,
)
from snapshots import refused, snapshot

# ---- objects with other arguments


def streams_and_sessions(initial: State, **options: Any) -> dict[str, Any]:
    """Each class, with ``options`` where its state depends on them."""
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
    refused(ValueError, match, end.load_state_dict, before)


@pytest.mark.parametrize("kind", ["Encoder", "ClientSession", "ServerSession"])
def test_patterns_that_match_the_same_tensors_are_equal(
    kind: str, rng: np.random.Generator
) -> None:
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
            refused(ValueError, match, end.load_state_dict, saved)
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
@pytest.mark.parametrize(
    "case", slow_except(["stream", "stream adaptive", "default+feedback"], CASES)
)
def test_forged_state(
    case: str, forged: Callable[..., Iterator[StateDict]], rng: np.random.Generator
) -> None:
    """An error that changes nothing; or it loads, and later calls raise only the codec's errors."""
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
def test_saved_state_continues(case: str) -> None:
    first, second, play = ends(case)
    for _ in range(3):
        for end in (first, second):
            end.load_state_dict(end.state_dict())
        play(first, second)


def test_only_mappings() -> None:
    end = rfc.Encoder([np.zeros(3, np.float32)])
    for value in (None, 5, "structure", [], {}, {"structure": 3}, {"structure": object()}):
        refused(ValueError, "state_dict: ", end.load_state_dict, value)


@pytest.mark.parametrize("name", ["more", "structure", "tensor.0"])
def test_arrays_larger_than_their_memory(name: str, rng: np.random.Generator) -> None:
    """A view with strides of 0 has any size; it is refused before it is copied or hashed."""
    encoder = rfc.Encoder(model(rng))
    saved = encoder.state_dict()
    huge = np.broadcast_to(saved["structure"][:1], (1 << 44,))
    ladder = np.lib.stride_tricks.as_strided(np.zeros(1 << 10, np.uint8), (512, 512), (1, 1))
    for array in (huge, ladder):
        with pytest.raises(ValueError, match="whose elements share memory"):
            encoder.load_state_dict({**saved, name: array})
    strided = {n: np.repeat(a, 2, 0)[::2] if a.ndim else a for n, a in saved.items()}
    encoder.load_state_dict(strided)
