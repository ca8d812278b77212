"""Payloads, keyframes and messages passed to the wrong reader: the error names the right one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import resfed_codec as rfc
from resfed_codec.cli import main as cli

MODEL = {"w": np.zeros((8, 8), np.float32)}
NEW = {"w": np.ones((8, 8), np.float32)}

UPDATE = "this is an update: give it to decode"
KEYFRAME = "this is a keyframe, a whole model: give it to decode_keyframe()"
MESSAGE = "this is a message: give it to receive() of the other end's session"
REQUEST = "this is a request: give it to answer() of the other end's session"


def made() -> dict[str, bytes]:
    server, client = rfc.ServerSession(MODEL), rfc.ClientSession(MODEL)
    server.update(NEW)
    stale = rfc.ServerSession(NEW)
    stale.update(MODEL)
    with pytest.raises(rfc.StateMismatchError) as error:
        rfc.ServerSession(NEW).receive("c", client.send(NEW))
    return {
        UPDATE: rfc.encode(NEW, MODEL),
        "of a stream": rfc.Encoder(MODEL).encode(NEW),
        KEYFRAME: rfc.encode_keyframe(NEW),
        MESSAGE: server.send("c"),
        REQUEST: client.acknowledge(),
        "request of a server": error.value.request,
    }


TEXTS = {"of a stream": UPDATE, "request of a server": REQUEST}
READERS: dict[str, tuple[Callable[[bytes], object], set[str]]] = {
    "inspect": (rfc.inspect, {UPDATE, "of a stream"}),
    "decode": (lambda data: rfc.decode(data, MODEL), {UPDATE, "of a stream"}),
    "Aggregator.add": (lambda data: rfc.Aggregator(MODEL).add(data), {UPDATE, "of a stream"}),
    "decode_keyframe": (lambda data: rfc.decode_keyframe(data, MODEL), {KEYFRAME}),
    "Decoder": (lambda data: rfc.Decoder(MODEL).decode(data), {UPDATE, "of a stream", MESSAGE}),
    "Encoder.answer": (lambda d: rfc.Encoder(MODEL).answer(d), {REQUEST, "request of a server"}),
    "client": (
        lambda data: rfc.ClientSession(MODEL).receive(data),
        {UPDATE, "of a stream", MESSAGE},
    ),
    "server": (
        lambda data: rfc.ServerSession(MODEL).receive("c", data),
        {UPDATE, "of a stream", MESSAGE},
    ),
    "client.answer": (
        lambda data: rfc.ClientSession(MODEL).answer(data),
        {REQUEST, "request of a server"},
    ),
    "server.answer": (
        lambda data: rfc.ServerSession(MODEL).answer("c", data),
        {REQUEST, "request of a server"},
    ),
    "server.acknowledged": (
        lambda data: rfc.ServerSession(MODEL).acknowledged("c", data),
        {REQUEST, "request of a server"},
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_error_names_the_kind(reader: str) -> None:
    call, taken = READERS[reader]
    for kind, data in made().items():
        for given in (data, bytearray(data), data[:12]):
            if kind in taken:
                continue
            with pytest.raises(rfc.PayloadError) as error:
                call(given)
            assert TEXTS.get(kind, kind) in str(error.value), kind


def test_error_for_stream_payloads_names_the_decoder() -> None:
    payload = made()["of a stream"]
    with pytest.raises(rfc.StateMismatchError, match="give it to the Decoder or the session"):
        rfc.decode(payload, MODEL)
    with pytest.raises(rfc.StateMismatchError, match=r"give it to receive_into\(\) of the Server"):
        rfc.Aggregator(MODEL).add(payload)


@pytest.mark.parametrize("kind", [KEYFRAME, MESSAGE, REQUEST])
def test_command_line(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("safetensors")
    from safetensors.numpy import save_file

    file, old = tmp_path / "update.rfd", tmp_path / "old.safetensors"
    file.write_bytes(made()[kind])
    save_file(MODEL, old)
    for command in (
        ["inspect", str(file)],
        ["decode", str(file), "--reference", str(old), "-o", str(tmp_path / "new.safetensors")],
    ):
        assert cli.main(command) != 0
        assert kind in " ".join(capsys.readouterr().err.split())
