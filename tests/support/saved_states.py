"""Reading, changing and resealing saved states, and ends to load them into."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import resfed_codec as rfc
from federation import RULES, Federation, model
from published_rules import moved
from snapshots import snapshot

StateDict = dict[str, Any]


def resealed(structure: Any, arrays: StateDict) -> StateDict:
    """A state_dict with these contents and their digest."""
    text = structure if isinstance(structure, bytes) else json.dumps(structure).encode()
    digest = hashlib.blake2b(text, digest_size=16)
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return {"structure": np.frombuffer(digest.digest() + text, np.uint8), **arrays}


def opened(state_dict: StateDict) -> tuple[Any, StateDict]:
    arrays = {name: value for name, value in state_dict.items() if name != "structure"}
    return json.loads(state_dict["structure"].tobytes()[16:]), arrays


def both_sessions(rules: str, feedback: bool) -> tuple[Federation, rfc.ClientSession]:
    """A server and a client after some rounds, with an uplink under way."""
    fed = Federation(RULES[rules], feedback)
    client = fed.new_client(client_id="a")
    fed.rounds(client, 2)
    fed.rounds(fed.new_client(), 1, 7)
    fed.update()
    fed.down(client)
    client.send(moved(client.state, fed.rng))
    return fed, client


@np.errstate(all="ignore")  # models may hold any bits
def play_sessions(server: rfc.ServerSession, client: rfc.ClientSession) -> None:
    """Exchanges that use everything that both ends hold."""
    rng = np.random.default_rng(3)
    for _ in range(2):
        with contextlib.suppress(
            ValueError
        ):  # models may hold values that cannot be sent, such as NaN
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
    """Deliver a message, with at most two answers."""
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
    """Two ends in the middle of a run, and a function that continues it."""
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
