"""Ends of other runs or layouts: the first error names both identities and has no request."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc
from federation import RULES, Federation, model
from models import State
from resfed_codec.session.base import client_tag
from resfed_codec.stream.identity import Identity
from resfed_codec.stream.message import Message, read_message, write_message
from resfed_codec.stream.wire import varint
from resfed_codec.tensors.layout import TensorSpec
from snapshots import mismatched, refused

RNG = np.random.default_rng(3)
HERE = model(RNG)
LAYOUTS: dict[str, tuple[State, str, str]] = {
    "names": (
        {f"_orig_mod.{name}": value for name, value in HERE.items()},
        r"tensor 0 is '_orig_mod.b' float16 \[30\] there and 'b' float16 \[30\] here",
        r"tensor 0 is 'b' float16 \[30\] there and '_orig_mod.b' float16 \[30\] here",
    ),
    "shape": (
        {**HERE, "w": np.zeros((30, 41), np.float32)},
        r"tensor 3 is 'w' float32 \[30, 41\] there and 'w' float32 \[30, 40\] here",
        r"tensor 3 is 'w' float32 \[30, 40\] there and 'w' float32 \[30, 41\] here",
    ),
    "dtype": (
        {**HERE, "n": np.zeros(2, np.int32)},
        r"tensor 1 is 'n' int32 \[2\] there and 'n' int64 \[2\] here",
        r"tensor 1 is 'n' int64 \[2\] there and 'n' int32 \[2\] here",
    ),
    "one more": (
        {**HERE, "ü": np.zeros(3, np.float32)},
        r"tensor 4 is 'ü' float32 \[3\] there and nothing here",
        r"tensor 4 is nothing there and 'ü' float32 \[3\] here",
    ),
    "one in between": (
        {**HERE, "c": np.zeros((), np.float32)},
        r"tensor 1 is 'c' float32 \[\] there and 'n' int64 \[2\] here",
        r"tensor 1 is 'n' int64 \[2\] there and 'c' float32 \[\] here",
    ),
}


def foreign(match: str, call: Any, *args: Any, **kwargs: Any) -> None:
    error = refused(rfc.StateMismatchError, f"^payload: .*{match}", call, *args, **kwargs)
    assert error.request == b"", "asks for what cannot help"


def ends(
    theirs: State, run: str, rules: tuple[str, str], **arguments: Any
) -> tuple[Federation, rfc.ClientSession]:
    """A server that holds HERE, and a client of another run or layout."""
    fed = Federation(rules)
    fed.initial = HERE
    fed.server = fed.new_server()
    fed.arguments = {"run": run}
    return fed, fed.new_client(theirs, **arguments)


@pytest.mark.parametrize("client_id", [None, "a"])
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("rules", [RULES["default"], RULES["all"]], ids=["default", "all"])
@pytest.mark.parametrize(("theirs", "at_server", "at_client"), LAYOUTS.values(), ids=LAYOUTS)
def test_other_layouts(
    theirs: State,
    at_server: str,
    at_client: str,
    rules: tuple[str, str],
    fresh: bool,
    client_id: str | None,
) -> None:
    fed, client = ends(theirs, "", rules, client_id=client_id)
    server = fed.server
    foreign(at_client, client.receive, server.send("a", fresh=fresh))
    fed.update(2)
    foreign(at_client, client.receive, server.send("a", fresh=fresh))
    uplink = client.send(client.state)
    foreign(at_server, server.receive, "a", uplink)
    foreign(at_server, server.answer, "a", client.acknowledge())
    foreign(at_server, server.acknowledged, "a", client.acknowledge())
    aggregator = server.aggregator()
    foreign(at_server, server.receive_into, "a", uplink, aggregator)
    assert aggregator.count == 0


@pytest.mark.parametrize("client_id", [None, "a"])
@pytest.mark.parametrize("rules", [RULES["default"], RULES["all"]], ids=["default", "all"])
def test_other_runs(rules: tuple[str, str], client_id: str | None) -> None:
    fed, client = ends(HERE, "tuesday", rules, client_id=client_id)
    fed.update()
    for fresh in (False, True):
        message = fed.server.send("a", fresh=fresh)
        foreign("another run: '' there, 'tuesday' here", client.receive, message)
    uplink = client.send(client.state)
    foreign("run: 'tuesday' there, '' here", fed.server.receive, "a", uplink)


def test_a_multicast_payload_of_another_layout() -> None:
    """It has no identity; the recovery that follows fails at once."""
    fed, client = ends(LAYOUTS["names"][0], "", RULES["default"])
    payload = fed.server.update(HERE)
    error = mismatched("another run, layout or client", client.receive, payload)
    request = error.request
    foreign(LAYOUTS["names"][1], fed.server.answer, "a", request)


@pytest.mark.parametrize("theirs", [HERE, LAYOUTS["shape"][0]], ids=["run", "layout"])
def test_a_client_that_changes_servers(theirs: State) -> None:
    """Its uplinks then have no identity; the server's request reveals the mismatch."""
    fed, client = ends(theirs, "tuesday", RULES["default"])
    home = rfc.ServerSession(theirs, *fed.configs, run="tuesday")
    client.receive(home.send("a"))
    uplink = client.send(client.state)
    error = mismatched("payload: ", fed.server.receive, "a", uplink)
    foreign("another run: '' there", client.answer, error.request)
    home.receive("a", uplink)


def test_connected_ends_omit_their_identities() -> None:
    fed = Federation()
    client = fed.new_client()
    first = client.send(client.state)
    assert read_message(first).identity == read_message(fed.server.send("a")).identity != b""
    fed.server.receive("a", first)
    assert fed.server.receive_into("a", first, fed.server.aggregator()) is False
    fed.rounds(client)
    assert read_message(fed.server.send("a")).identity == b""
    assert len(fed.server.send("a")) < 40
    assert len(client.acknowledge()) < 32
    assert rfc.inspect(client.send(client.state)).link is not None


def test_identities_are_compared_up_to_the_first_difference() -> None:
    """Reading a foreign identity costs no more than the own layout."""
    specs = [TensorSpec("a" * 50, (3,), "float32")] * 3
    identity = Identity("run", 5, specs)
    n_run = len(varint(3) + b"run")
    long = varint(0) + varint(10**5) + b"b" * 10**5 + varint(0) + varint(0) + varint(0) + varint(0)
    for data, match in (
        (identity.data[:n_run] + long * 3, "tensor 0 is 'bbb"),
        (varint(3) + b"abc" + b"\xff" * 99, "another run: 'abc' there"),
        (varint(3) + b"r\xffn" + b"\xff" * 99, "another run: "),
        (b"", "of another run or layout"),
    ):
        with pytest.raises(rfc.StateMismatchError, match=match) as caught:
            identity.require_same(Message(1, run=6, identity=data))
        assert len(str(caught.value)) < 500
    for data in (identity.data[: n_run + 3], varint(2**40), identity.data[:n_run] + varint(1)):
        with pytest.raises(rfc.PayloadError, match="the identity"):
            identity.require_same(Message(1, run=6, identity=data))
    identity.require_same(Message(1, run=5, identity=b"\xff"))


@pytest.mark.parametrize("name", ["", "\ud800", "ä" * 40, "x" * 10_000])
def test_names_of_all_kinds(name: str) -> None:
    there = Identity("a\ud800", 1, [TensorSpec(name, (0, 2), "bool")])
    here = Identity("a\ud800", 2, [TensorSpec(name, (0, 3), "bool")])
    with pytest.raises(
        rfc.StateMismatchError, match=r"bool \[0, 2\] there and .* bool \[0, 3\] here"
    ):
        here.require_same(Message(0, run=1, identity=there.data))


def test_tags_of_many_clients_differ() -> None:
    assert len({client_tag(i, 1234567) for i in range(200_000)}) == 200_000


def test_the_error_for_a_request_without_an_identity() -> None:
    fed = Federation()
    client = fed.new_client()
    fed.rounds(client, 1)
    request = write_message(read_message(client.acknowledge())._replace(run=1))
    foreign("of another run or layout", fed.server.answer, "a", request)


@pytest.mark.parametrize("kind", [rfc.ServerSession, rfc.ClientSession, rfc.Encoder, rfc.Decoder])
def test_saved_with_a_tensor_more_or_less(kind: Any) -> None:
    ours, more = kind(HERE), kind({**HERE, "z": np.zeros(3, np.float32)})
    text = "saved with tensor 'z' float32 .3.; this object has no tensor more"
    refused(ValueError, text, ours.load_state_dict, more.state_dict())
    text = "saved with no tensor more; this object has tensor 'z' float32 .3."
    refused(ValueError, text, more.load_state_dict, ours.state_dict())
