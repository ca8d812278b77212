"""Valid messages in the wrong place (another client, round, run or layout), and spliced ones.

All checksums are valid. Each call succeeds, or raises CodecError and changes nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc
from federation import RULES
from marks import slow_except
from recorded import REMEMBERED, Ends, Recorded, cut_together, payloads_of
from resfed_codec.stream.message import Message, is_message, read_message, write_message
from snapshots import snapshot


def deliveries(ends: Ends) -> Iterator[tuple[str, Callable[[Any, bytes], Any]]]:
    for name in ("a", "b", "new"):
        yield "server", lambda end, m, n=name: end.receive(n, m)
        yield "server", lambda end, m, n=name: end.answer(n, m)
        yield "server", lambda end, m, n=name: end.acknowledged(n, m)
        yield "server", lambda end, m, n=name: end.receive_into(n, m, end.aggregator())
    for name in ends:
        if name != "server":
            yield name, lambda end, m: end.receive(m)
            yield name, lambda end, m: end.answer(m)


def delivered(ends: Ends, messages: list[bytes]) -> tuple[int, int]:
    """Numbers of accepted and refused deliveries; a refused one must change nothing."""
    n_accepted = n_refused = 0
    for name, deliver in deliveries(ends):
        end = copy.deepcopy(ends[name])
        before = snapshot(end)
        for message in messages:
            try:
                deliver(end, message)
            except rfc.CodecError as error:
                n_refused += 1
                if any(text in str(error) for text in REMEMBERED):
                    end = copy.deepcopy(ends[name])
                else:
                    same = snapshot(end) == before
                    assert same, f"it changed the state: {error}"  # noqa: PT017 -- may succeed, too
            else:
                n_accepted += 1
                end = copy.deepcopy(ends[name])
    return n_accepted, n_refused


def goes_on(fed: Recorded) -> None:
    fed.server = fed.past[-1]["server"]
    for name in ("a", "b"):
        fed.rounds(fed.past[-1][name], 2, name)


SPLICED = slow_except([RULES["default"]], [RULES["default"], RULES["own history"], RULES["all"]])


@pytest.mark.parametrize("rules", SPLICED, ids=str)
def test_messages_of_other_clients_rounds_and_runs(rules: tuple[str, str]) -> None:
    fed = Recorded(rules)
    other_run = Recorded(rules, run="another")
    for ends in fed.past[1:]:
        n_accepted, n_refused = delivered(ends, fed.said[::2])
        assert n_accepted > 0
        assert n_refused > n_accepted
    *_, last = fed.past
    messages = [m for m in other_run.said if is_message(m)]
    assert delivered(last, messages)[0] == 0, "of another run"
    bare = [m for m in other_run.said if not is_message(m)]
    assert delivered(last, bare)[0] == 0, "of another run"
    goes_on(fed)


def spliced(messages: list[Message], rng: np.random.Generator, n: int) -> Iterator[bytes]:
    """Messages whose fields come from several messages."""
    fields = Message._fields
    for _ in range(n):
        parts = [messages[i] for i in rng.integers(len(messages), size=2)]
        from_second = set(rng.choice(fields, 1 + rng.integers(3), replace=False))
        values = {f: getattr(parts[f in from_second], f) for f in fields}
        yield write_message(Message(**values))


@pytest.mark.parametrize("rules", SPLICED, ids=str)
def test_spliced_messages(rules: tuple[str, str], rng: np.random.Generator) -> None:
    fed = Recorded(rules)
    parsed = [read_message(m) for m in fed.said if is_message(m)]
    payloads = payloads_of(fed.said)
    cut = list(cut_together(payloads, rng, 40))
    wrapped = [
        write_message(parsed[i]._replace(payloads=(data,), keyframes=(), head=None))
        for i, data in zip(rng.integers(len(parsed), size=len(cut)), cut, strict=True)
    ]
    for ends in (fed.past[1], fed.past[3]):
        n_accepted, n_refused = delivered(ends, [*spliced(parsed, rng, 60), *cut, *wrapped])
        assert n_refused > n_accepted
    goes_on(fed)


def test_another_run_or_layout_is_not_reported_as_damage() -> None:
    """The error for a message of another run differs from that for a damaged message."""
    fed, other = Recorded(RULES["default"]), Recorded(RULES["default"], run="another")
    client = fed.past[-1]["a"]
    message = other.server.send("a")
    with pytest.raises(rfc.StateMismatchError, match="of another run"):
        client.receive(message)
    with pytest.raises(rfc.PayloadError, match="damaged"):
        client.receive(message[:-1] + bytes([message[-1] ^ 1]))
