"""An exception at any line of a call: the call has its whole effect or none.

Ctrl-C raises KeyboardInterrupt at some line. Here a tracer raises it at the first line of the
package that a call runs, then at the second, and so on until the call completes.
"""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from linecache import getline
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import pytest

import resfed_codec as rfc
from marks import slow_except
from models import State, assert_same
from published_rules import moved
from snapshots import snapshot

PACKAGE = str(Path(rfc.__file__).parent)

Ends = dict[str, Any]


class Case(NamedTuple):
    """Connected ends (server and client, or encoder and decoder), and a call of one of them."""

    ends: Ends
    call: Callable[[Ends], Any]


def traced(call: Callable[[], Any], at: int | None = None) -> list[tuple[Any, int]]:
    """The package's lines that a call runs, in order; raises KeyboardInterrupt at line ``at``.

    A with statement runs again when its block ends. Only a tracer can raise an exception there,
    because Python handles signals inside the block.
    """
    lines: list[tuple[Any, int]] = []
    last: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, _: object) -> Any:
        name, line = frame.f_code.co_filename, frame.f_lineno
        if not name.startswith(PACKAGE):
            return None
        if event == "line":
            ends = line < last.get(frame, 0) and getline(name, line).lstrip().startswith("with ")
            last[frame] = line
            if not ends:
                lines.append((frame.f_code, line))
                if len(lines) - 1 == at:
                    raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return lines


def seen(ends: Ends) -> dict[str, Any]:
    """Everything that a call can change."""
    return {
        name: [end.count, end.total_weight, end.count and end.result()["w"].tobytes()]
        if isinstance(end, rfc.Aggregator)
        else snapshot(end)
        for name, end in ends.items()
    }


def fresh(ends: Ends) -> Ends:
    """Copies of the ends, and a new aggregator, which cannot be copied."""
    new = copy.deepcopy(ends)
    if "server" in new:
        new["aggregator"] = new["server"].aggregator()
    return new


def delivered(
    message: bytes, receive: Callable[[bytes], Any], answer: Callable[[bytes], bytes]
) -> Any:
    """The result of a message, or of the answer that replaces it."""
    for _ in range(3):
        try:
            return receive(message)
        except rfc.StateMismatchError as error:
            message = answer(error.request)
    raise AssertionError("not recovered")


def goes_on(ends: Ends) -> None:
    """The ends continue to exchange models and hold bitwise the same ones."""
    rng = np.random.default_rng(5)
    if "encoder" in ends:
        encoder, decoder = ends["encoder"], ends["decoder"]
        for _ in range(2):
            delivered(encoder.encode(moved(encoder.state, rng)), decoder.decode, encoder.answer)
            assert_same(decoder.state, encoder.state)
        return
    server, client = ends["server"], ends["client"]
    for _ in range(2):
        server.update(moved(server.state, rng))
        model = delivered(server.send("a"), client.receive, lambda r: server.answer("a", r))
        if server._broadcast:
            assert_same(model, server.state)
        local = moved(model, rng)
        aggregator = server.aggregator()
        delivered(
            client.send(local),
            lambda m, mean=aggregator: server.receive_into("a", m, mean),
            client.answer,
        )
        assert_same([aggregator.result()["n"]], [local["n"]])


def model(rng: np.random.Generator) -> State:
    return {
        "w": rng.standard_normal((6, 8)).astype(np.float32),
        "b": rng.standard_normal(5).astype(np.float32),
        "n": np.array(0),
    }


def stream(predictor: Any, feedback: bool = False) -> Ends:
    initial = model(np.random.default_rng(3))
    encoder = rfc.Encoder(initial, predictor=predictor, error_feedback=feedback, sparsity=0.7)
    ends = {"encoder": encoder, "decoder": rfc.Decoder(initial)}
    goes_on(ends)
    goes_on(ends)
    return ends


def session(up: str, down: str, *, history: int = 4) -> Ends:
    """A server and a client after some rounds; one uplink lost, one not yet acknowledged."""
    rng = np.random.default_rng(4)
    initial = model(rng)
    feedback = down in ("previous", "adaptive")
    configs = (
        rfc.CodecConfig(sparsity=0.7, predictor=up),
        rfc.CodecConfig(sparsity=0.7, predictor=down, error_feedback=feedback),
    )
    server = rfc.ServerSession(initial, *configs, history=history)
    client = rfc.ClientSession(initial, *configs, history=history)
    ends = {"server": server, "client": client}
    goes_on(ends)
    client.send(moved(client.state, rng))  # lost
    server.receive("a", client.send(moved(client.state, rng)))
    client.send(moved(client.state, rng))  # may still arrive
    server.update(moved(server.state, rng))
    return ends


def step(end: Any, seed: int = 9) -> State:
    return moved(end.state, np.random.default_rng(seed))


def refusal(call: Callable[[], Any]) -> bytes:
    with pytest.raises(rfc.StateMismatchError) as caught:
        call()
    request: bytes = caught.value.request
    return request


def stream_cases(ends: Ends) -> dict[str, Callable[[Ends], Any]]:
    encoder, decoder = fresh(ends)["encoder"], fresh(ends)["decoder"]
    payload = encoder.encode(step(encoder))
    keyframe = encoder.keyframe()
    behind = encoder.encode(step(encoder, 2))
    request = refusal(lambda: decoder.decode(behind))
    out = decoder.state
    saved = [end.state_dict() for end in fresh(ends).values()]
    return {
        "encode": lambda e: e["encoder"].encode(step(encoder)),
        "keyframe": lambda e: e["encoder"].keyframe(),
        "answer": lambda e: e["encoder"].answer(request),
        "state": lambda e: e["encoder"].state,
        "decode": lambda e: e["decoder"].decode(payload),
        "decode without a copy": lambda e: e["decoder"].decode(payload, copy=False),
        "decode into": lambda e: e["decoder"].decode(payload, out=out),
        "decode a keyframe": lambda e: e["decoder"].decode(keyframe),
        "refuse": lambda e: refusal(lambda: e["decoder"].decode(behind)),
        "save": lambda e: e["encoder"].state_dict(),
        "load": lambda e: [e["encoder"].load_state_dict(saved[0]),
                           e["decoder"].load_state_dict(saved[1])],
        "copy": lambda e: copy.deepcopy(e["encoder"]),
        "pickle": lambda e: pickle.dumps(e["decoder"]),
    }  # fmt: skip


def session_cases(ends: Ends) -> dict[str, Callable[[Ends], Any]]:
    one = fresh(ends)
    server, client = one["server"], one["client"]
    local = step(client)
    uplink = client.send(local)
    message = server.send("a")
    new = rfc.ClientSession(
        step(server), *(c.config for c in (server._uplink_encoder, server._downlink_encoder))
    )
    unknown = new.send(step(new))
    server.update(step(server))
    later = server.send("a")
    refused_by_client = client._request(message)
    acknowledgement = client.acknowledge()
    out = client.state
    saved = {name: end.state_dict() for name, end in one.items() if name != "aggregator"}
    return {
        "update": lambda e: e["server"].update(step(server)),
        "send": lambda e: e["server"].send("a"),
        "send to a new one": lambda e: e["server"].send("b", fresh=True),
        "receive": lambda e: e["client"].receive(message),
        "receive more": lambda e: e["client"].receive(later),
        "receive into arrays": lambda e: e["client"].receive(message, out=out),
        "receive without a copy": lambda e: e["client"].receive(message, copy=False),
        "client sends": lambda e: e["client"].send(local),
        "client answers": lambda e: e["client"].answer(request_of(e["server"], e["client"])),
        "acknowledge": lambda e: e["client"].acknowledge(),
        "acknowledged": lambda e: e["server"].acknowledged("a", acknowledgement),
        "server receives": lambda e: e["server"].receive("a", uplink),
        "server refuses": lambda e: refusal(lambda: e["server"].receive("new", unknown)),
        "server answers": lambda e: e["server"].answer("a", refused_by_client),
        "forget": lambda e: e["server"].forget("a"),
        "memory": lambda e: [e["server"].memory(), e["server"].clients, e["server"].state],
        "aggregate": lambda e: e["server"].receive_into("a", uplink, e["aggregator"]),
        "aggregate a model": lambda e: e["aggregator"].add_state(local, 2),
        "reset": lambda e: e["aggregator"].reset(local),
        "save": lambda e: [end.state_dict() for end in (e["server"], e["client"])],
        "load a server": lambda e: e["server"].load_state_dict(saved["server"]),
        "load a client": lambda e: e["client"].load_state_dict(saved["client"]),
        "copy": lambda e: copy.deepcopy(e["server"]),
        "pickle": lambda e: pickle.dumps(e["client"]),
    }  # fmt: skip


def request_of(server: rfc.ServerSession, client: rfc.ClientSession) -> bytes:
    """A server's request that names the client's last uplink as refused."""
    last = client._state.sent[max(client._state.sent)].message
    return server._request(server._state.clients["a"], last)


def check(ends: Ends, call: Callable[[Ends], Any]) -> None:
    """Interrupt a call at each line, at the line's first and last execution."""
    whole = fresh(ends)
    before = seen(whole)
    lines = traced(lambda: call(whole))
    after = seen(whole)
    last = {line: i for i, line in enumerate(lines)}
    first = {line: i for i, line in reversed([*enumerate(lines)])}
    places = {*first.values(), *last.values()}
    for n, at in enumerate(sorted(places)):
        tried = fresh(ends)
        with pytest.raises(KeyboardInterrupt):
            traced(lambda e=tried: call(e), at)
        assert seen(tried) in (before, after), f"half done: {lines[at]}"
        if n % 20 == 0:
            goes_on(tried)
    assert places, "no line of the package was run"


STREAMS = {
    "default": ("previous", False),
    "feedback": ("previous", True),
    "two versions": (rfc.LinearPredictor(own=(1.5, -0.5)), False),
    "adaptive": ("adaptive", False),
}
STREAM_CALLS = list(stream_cases(stream("previous")))


@pytest.mark.parametrize("call", STREAM_CALLS)
@pytest.mark.parametrize("rules", slow_except(["default"], STREAMS))
def test_streams(rules: str, call: str) -> None:
    ends = stream(*STREAMS[rules])
    check(ends, stream_cases(ends)[call])


SESSIONS = {
    "default": ("global", "previous"),
    "own history": ("res1", "previous"),
    "own downlinks": ("global", "res1"),
}
SESSION_CALLS = list(session_cases(session("global", "previous")))


@pytest.mark.parametrize("call", SESSION_CALLS)
@pytest.mark.parametrize("rules", slow_except(["default"], SESSIONS))
def test_sessions(rules: str, call: str) -> None:
    ends = session(*SESSIONS[rules])
    check(ends, session_cases(ends)[call])
