"""Forged messages: an end accepts only numbers within the range of what it has sent.

An attacker can forge checksums and digests, so they are valid here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc
from federation import OWN_DOWNLINKS, RULES, Federation, Running
from published_rules import moved
from resfed_codec.session import server_downlink as server_module
from resfed_codec.stream import stream as stream_module
from resfed_codec.stream.message import (
    MAX_AHEAD,
    Ack,
    Keyframe,
    Message,
    VersionId,
    read_message,
    write_message,
)
from resfed_codec.stream.predictor import predictor_of
from resfed_codec.stream.update_encoder import UpdateEncoder
from resfed_codec.stream.versions import Version
from snapshots import mismatched, refused

LARGEST = 2**63 - 1


def rewritten(message: bytes, change: Callable[[Message], Message]) -> bytes:
    return write_message(change(read_message(message)))


def of_run(end: Any, message: Message) -> bytes:
    return write_message(message._replace(run=end._identity.check))


# ---- numbers


@pytest.mark.parametrize("newest", [LARGEST, 2**40])
def test_an_acknowledgement_of_what_was_never_sent(running: Running, newest: int) -> None:
    fed, client = running
    fed.update()
    message = rewritten(
        fed.server.send("a"), lambda m: m._replace(ack=Ack(newest, 0, m.ack.digest if m.ack else 0))
    )
    mismatched("too far ahead of 4", client.receive, message)
    request = of_run(
        client, Message(client._state.tag, is_request=True, ack=Ack(newest), head=VersionId(1, 2))
    )
    mismatched("too far ahead of 4", client.answer, request)
    fed.rounds(client)


def test_the_largest_accepted_number_is_harmless(running: Running) -> None:
    """A client restored from older state cannot tell such a number from its own earlier one."""
    fed, client = running
    fed.update()
    for i in range(1, 4):
        ack = Ack(4 + i * MAX_AHEAD)
        client.receive(rewritten(fed.server.send("a"), lambda m, ack=ack: m._replace(ack=ack)))
    client.send(client.state)
    fed.up(client, answers=None)
    assert fed.server._state.clients["a"].newest == 5
    fed.rounds(client)


@pytest.mark.parametrize("number", [LARGEST - 1, 2**40])
def test_unknown_versions(running: Running, number: int) -> None:
    fed, client = running
    fed.update()
    fed.down(client)
    data = rfc.encode_keyframe(client.state)
    keyframes = (Keyframe(number, 5, 0, data),)
    forged = rewritten(
        fed.server.send("a"),
        lambda m: m._replace(head=None, payloads=(), keyframes=keyframes),
    )
    mismatched("too far ahead of", client.receive, forged)
    uplink = of_run(client, Message(client._state.tag, head=client._head, keyframes=keyframes))
    mismatched("too far", fed.server.receive, "a", uplink)
    client._state = client._state._replace(number=number - 1)
    payload = client.send(client.state)
    mismatched("too far", fed.server.receive, "a", payload)


def test_one_number_for_many_uplinks(running: Running) -> None:
    """A server remembers a limited number of uplinks with the newest number; then it recovers."""
    fed, client = running
    fed.update()
    fed.down(client)
    saved = client.state_dict()
    n_taken = 0
    for _ in range(40):
        client.load_state_dict(saved)
        payload = client.send(moved(client.state, fed.rng))
        try:
            fed.server.receive("a", payload)
        except rfc.StateMismatchError:
            break
        n_taken += 1
    assert n_taken == 32
    error = mismatched("older than uplink 5", fed.server.receive, "a", payload)
    fed.server.receive("a", client.answer(error.request))
    assert len(fed.server._state.clients["a"].seen) == 1
    fed.rounds(client)


# ---- versions that a payload predicts from


def test_a_downlink_that_predicts_from_an_uplink() -> None:
    """With the default rules, ends keep no models of uplinks."""
    fed = Federation()
    client = fed.new_client()
    fed.rounds(client)
    fed.update()
    good = read_message(fed.server.send("a"))
    client.send(moved(client.state, fed.rng))
    sent = client._state.sent[max(client._state.sent)].version
    config = rfc.CodecConfig(sparsity=0.8)
    coder = UpdateEncoder(fed.server._layout, config, predictor_of("global"), two_way=True)
    base = client._state.down
    other = Version(sent.number, sent.digest, base.model)
    payload = coder.encode(
        fed.server._layout.model_of(fed.server.state, "state"),
        tag=0,
        number=base.number + 1,
        base=base,
        other=other,
        keep=1,
        out=None,
        feedback=None,
    )
    link = rfc.inspect(payload).link
    assert link is not None
    assert link.other == sent.number
    message = write_message(good._replace(payloads=(payload,)))
    mismatched("of which no model is kept here", client.receive, message)
    fed.rounds(client)


# ---- names


@pytest.mark.parametrize("lost", [True, False])
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES.keys())
def test_a_client_without_a_name_that_gets_a_message_for_another(
    rules: tuple[str, str], lost: bool
) -> None:
    """It learns its name only from the server's answer to its own message."""
    fed = Federation(rules)
    other = fed.new_client()
    client = fed.new_client()
    fed.update()
    message = fed.server.send("b")
    other.receive(message)
    fed.up(other, "b")
    client.receive(message)
    if lost:
        client.send(client.state)
    else:
        fed.up(client, answers=None)
    fed.update()
    fed.down(client, answers=None)
    fed.up(client, answers=None)
    fed.rounds(client)
    mismatched("a message for another client", client.receive, fed.server.send("b"))
    fed.rounds(other, 2, "b")


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES.keys())
def test_an_uplink_delivered_under_another_name(rules: tuple[str, str]) -> None:
    """The server refuses it and may request it again, but that does not name the client."""
    fed = Federation(rules)
    other, client = fed.new_client(), fed.new_client()
    fed.rounds(other, 2, "b")
    payload = client.send(moved(client.state, fed.rng))
    with pytest.raises(rfc.StateMismatchError) as refusal:
        fed.server.receive("b", payload)
    client.answer(refusal.value.request)
    fed.update()
    fed.down(client, answers=None)
    fed.up(client, answers=None)
    fed.rounds(client)
    fed.rounds(other, 2, "b")


# ---- streams


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the keyframes that encoders and servers encode."""
    made: list[int] = []

    def encode(state: Any) -> bytes:
        data = rfc.encode_keyframe(state)
        made.append(len(data))
        return data

    for module in (stream_module, server_module):
        monkeypatch.setattr(module, "encode_keyframe", encode)
    return made


@pytest.mark.parametrize("predictor", ["previous", "adaptive"])
def test_streams(predictor: str, counted: list[int]) -> None:
    fed = Federation()
    encoder = rfc.Encoder(fed.initial, sparsity=0.8, predictor=predictor)
    decoder = rfc.Decoder(fed.initial)
    for _ in range(3):
        decoder.decode(encoder.encode(moved(encoder.state, fed.rng)))
    encoder.encode(moved(encoder.state, fed.rng))
    good = read_message(encoder.keyframe())
    one = good.keyframes[-1]
    for keyframes, match in (
        ((one._replace(version=LARGEST),), "too far ahead of 3"),
        ((one._replace(version=2**40),), "too far ahead of 3"),
        ((one, one._replace(digest=7)), "not in sequence"),
        ((one._replace(version=8), one._replace(digest=7)), "not in sequence"),
    ):
        forged = write_message(good._replace(keyframes=keyframes))
        refused(rfc.CodecError, match, decoder.decode, forged)
    counted.clear()
    for i in range(20):
        request = of_run(decoder, Message(encoder._root, is_request=True, head=VersionId(i, i)))
        assert read_message(encoder.answer(request)).keyframes[-1].replaces == i
    assert not counted, "they had been made for keyframe()"
    assert np.array_equal(decoder.decode(encoder.keyframe())["w"], encoder.state["w"])
    decoder.decode(encoder.encode(moved(encoder.state, fed.rng)))
    decoder.decode(encoder.keyframe())
    assert len(counted) == encoder._keep


# ---- cost of a name


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES.keys())
def test_forged_requests_make_one_keyframe_a_model(
    rules: tuple[str, str], counted: list[int]
) -> None:
    fed = Federation(rules)
    client = fed.new_client()
    fed.rounds(client, 2)
    for n_models in (1, 2):
        fed.update()
        counted.clear()
        for i in range(50):
            request = of_run(client, Message(0, is_request=True, head=VersionId(i, 77 + i)))
            for name in ("a", f"stranger {i}"):
                answer = read_message(fed.server.answer(name, request))
                assert answer.keyframes
                assert answer.keyframes[-1].replaces == 77 + i
        assert 1 <= len(counted) <= 3, "at most the history that a predictor needs"
        size = sum(value.nbytes for value in fed.initial.values())
        n_kept = 2 * n_models * 2 + 4
        assert fed.server.memory()["clients"] <= n_kept * size
    fed.down(client, answers=None)
    fed.up(client, answers=None)
    fed.rounds(client)


@pytest.mark.parametrize("name", OWN_DOWNLINKS)
def test_silent_clients_keep_no_models(name: str) -> None:
    """Names that the server sent to but never received from."""
    fed = Federation(RULES[name])
    size = sum(value.nbytes for value in fed.initial.values())
    for round_ in range(8):
        fed.update()
        for i in range(20):
            fed.server.send(f"{round_}, {i}")
            fed.server.send(f"{round_}, {i}, fresh", fresh=True)
        assert fed.server.memory()["clients"] <= 8 * size
    sent = [record.sent for record in fed.server._state.clients.values() if record.sent]
    assert len(sent) <= 4 * 40
    late = fed.new_client()
    late.receive(fed.server.send("7, 3"))
    fed.up(late, "7, 3", answers=None)
    fed.rounds(late, name="7, 3")


def test_first_downlinks_share_one_model() -> None:
    """The server encodes them for each client, but recovers the model once."""
    fed = Federation(RULES["own downlinks"])
    fed.update()
    models = set()
    for name in range(4):
        client = fed.new_client()
        client.receive(fed.server.send(name))
        assert np.array_equal(client.state["n"], fed.server.state["n"])
        downlink = fed.server._state.clients[name].downlinks[1]
        assert downlink.model is not None
        models.add(id(downlink.model))
        assert np.array_equal(downlink.model[1], client.state["n"])
        fed.up(client, name)
    assert len(models) == 1
