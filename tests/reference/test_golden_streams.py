"""Stored streams and sessions always decode, and this version's encoder makes the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import make_streams
import resfed_codec as rfc
from models import State, assert_same
from resfed_codec.stream.link import Link, parse_link, write_link
from resfed_codec.stream.message import Message, VersionId, read_message, write_message


def stored(name: str) -> list[tuple[bytes, State]]:
    """The messages and the models recovered from them, in order."""
    with np.load(make_streams.FOLDER / f"{name}.npz") as arrays:
        entries: dict[str, State] = {}
        for key in arrays.files:
            number, field = key.split(".", 1)
            entries.setdefault(number, {})[field] = arrays[key]
    return [(entry.pop("sent").tobytes(), entry) for _, entry in sorted(entries.items())]


def test_every_case_is_stored() -> None:
    cases = {*make_streams.STREAMS, *make_streams.SESSIONS}
    assert {path.stem for path in make_streams.FOLDER.glob("*.npz")} == cases


@pytest.mark.parametrize("name", make_streams.STREAMS)
def test_stored_streams_decode(name: str) -> None:
    first = make_streams.initial(make_streams.STREAMS[name][0])
    decoder = rfc.Decoder(first, run="golden")
    *payloads, (keyframe, newest) = stored(name)
    for i, (payload, model) in enumerate(payloads):
        assert_same(decoder.decode(payload), model, f"payload {i}")
    late = rfc.Decoder(first, run="golden")
    assert_same(late.decode(keyframe), newest, "keyframe")


@pytest.mark.parametrize("name", make_streams.SESSIONS)
def test_stored_sessions_decode(name: str) -> None:
    """New clients decode the stored downlinks that do not predict from uplinks."""
    up, down = (rfc.CodecConfig(sparsity=0.9, **o) for o in make_streams.SESSIONS[name])
    clients = [rfc.ClientSession(make_streams.initial(), up, down, run="golden") for _ in range(2)]
    downlinks = [entry for i, entry in enumerate(stored(name)) if i % 2 == 0]
    for which, (message, model) in zip([0, 1, 0, 0, 1], downlinks, strict=True):
        if name == "session_res" and clients[which].version > 0:
            break
        assert_same(clients[which].receive(message), model, f"client {which}")


@pytest.mark.parametrize("name", [*make_streams.STREAMS, *make_streams.SESSIONS])
def test_encoder_makes_the_same_bytes(name: str) -> None:
    play = make_streams.play_stream if name in make_streams.STREAMS else make_streams.play_session
    for i, ((sent, model), (bytes_then, model_then)) in enumerate(
        zip(play(name), stored(name), strict=True)
    ):
        differ = next((j for j, (a, b) in enumerate(zip(sent, bytes_then)) if a != b), None)  # noqa: B905
        assert sent == bytes_then, f"message {i}: first difference at byte {differ}"
        assert_same(model, model_then, f"message {i}")


def dump_of(example: str) -> bytes:
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    dump = text.split(f"<!-- {example} example -->")[1].split("```")[1]
    return bytes.fromhex("".join(line.split("|")[0] for line in dump.strip().splitlines()))


def test_the_worked_examples_of_the_format_document() -> None:
    data = dump_of("link")
    link = Link(
        version=1,
        base=0,
        other=0,
        n_own=1,
        n_other=1,
        keep=2,
        coef_log2=1,
        terms=(2, 0, 0, 1, -1, 0),
        per_tensor={},
    )
    assert parse_link(data) == link
    assert write_link(link) == data

    data = dump_of("message")
    head = VersionId(300, 0x0123456789ABCDEF)
    message = Message(0x5EED, is_request=True, head=head, run=0x12345678)
    assert read_message(data) == message
    assert write_message(message) == data
