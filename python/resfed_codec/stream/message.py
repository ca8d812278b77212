"""Messages, which carry payloads and keyframes between the ends of a session or stream.

A server's message carries payloads or keyframes and acknowledges uplinks. A request says what its
sender holds, so that the other end can send what is missing. docs/format.md has the bytes,
docs/predictors.md the protocol.
"""

from __future__ import annotations

from typing import NamedTuple

from resfed_codec import _native
from resfed_codec._native import MAX_DEPTH
from resfed_codec.errors import PayloadError, StateMismatchError
from resfed_codec.stream.wire import WireReader, varint

MAGIC = b"RFM\x01"
ACK_WINDOW = 32
"""An acknowledgement covers the newest uplink and this many before it."""

MAX_VERSION = 2**62
"""Version numbers are at most this, so that there is always a next one."""

MAX_PAYLOADS = 256
"""A message carries at most this many payloads: each costs its receiver a pass over the model,
however small the payload is."""

MAX_AHEAD = 2**24
"""A received number may exceed this end's own by at most this much. It can be ahead at all because
an end that was restarted, or restored from an older save, has forgotten the latest versions."""

_REQUEST, _ACK, _HEAD, _KEYFRAME, _REFUSED, _IDENTITY = 1, 2, 4, 8, 16, 32


class VersionId(NamedTuple):
    """A version's number in its direction, and its digest."""

    version: int
    digest: int


class Ack(NamedTuple):
    """Uplinks that have arrived: ``newest``, and newest - 1 - i for each bit i of ``window``.

    ``digest`` has the low 32 bits of the newest uplink's digest. ``newest`` is 0 if none has
    arrived.
    """

    newest: int = 0
    window: int = 0
    digest: int = 0

    def has(self, number: int) -> bool:
        back = self.newest - number
        return back == 0 or (0 < back <= ACK_WINDOW and bool(self.window >> (back - 1) & 1))

    def lacks(self, number: int, missed: bool) -> bool:
        """Whether an older uplink got lost; before the window ``missed`` decides."""
        return missed if self.newest - number > ACK_WINDOW else not self.has(number)


class Keyframe(NamedTuple):
    """A whole model as version ``version``; it may replace the version with digest ``replaces``."""

    version: int
    digest: int
    replaces: int
    data: bytes


class Message(NamedTuple):
    """One message.

    Attributes:
        tag: Identifies the client or the stream.
        is_request: Whether the sender asks for what it is missing.
        ack: The uplinks that the server has received.
        head: The newest version that the sender holds.
        payloads: Consecutive payloads of a chain.
        keyframes: Consecutive versions, oldest first: the last is the newest version, the others
            are the history that it needs.
        refused: In a request, the low 32 bits of the digest of the bytes that were refused.
        run: The low half of the run digest.
        identity: What the run digest covers; see identity.py.
    """

    tag: int
    is_request: bool = False
    ack: Ack | None = None
    head: VersionId | None = None
    payloads: tuple[bytes, ...] = ()
    keyframes: tuple[Keyframe, ...] = ()
    refused: int | None = None
    run: int = 0
    identity: bytes = b""


def check_ahead(what: str, number: int, held: int) -> None:
    """Raise StateMismatchError for a number that the other end cannot have reached."""
    if number > held + MAX_AHEAD:
        raise StateMismatchError(
            f"payload: {what} {number} is too far ahead of {held}, which is known here"
        )


def is_message(data: bytes) -> bool:
    return data[:3] == MAGIC[:3]


def write_message(m: Message) -> bytes:
    flags = _REQUEST * m.is_request | _ACK * (m.ack is not None)
    flags |= _HEAD * (m.head is not None) | _KEYFRAME * bool(m.keyframes)
    flags |= _REFUSED * (m.refused is not None) | _IDENTITY * bool(m.identity)
    out = bytearray(MAGIC)
    out.append(flags)
    out += m.tag.to_bytes(8, "little") + m.run.to_bytes(4, "little")
    if m.identity:
        out += varint(len(m.identity)) + m.identity
    if m.ack is not None:
        out += varint(m.ack.newest) + varint(m.ack.window) + m.ack.digest.to_bytes(4, "little")
    if m.head is not None:
        out += varint(m.head.version) + m.head.digest.to_bytes(8, "little")
    if m.keyframes:
        out += varint(len(m.keyframes))
        for k in m.keyframes:
            out += varint(k.version) + k.digest.to_bytes(8, "little")
            out += k.replaces.to_bytes(8, "little") + varint(len(k.data)) + k.data
    if m.refused is not None:
        out += m.refused.to_bytes(4, "little")
    out += varint(len(m.payloads))
    for payload in m.payloads:
        out += varint(len(payload)) + payload
    return bytes(out) + _native.crc32c(bytes(out)).to_bytes(4, "little")


def read_message(data: bytes) -> Message:
    """Parse a message, or raise PayloadError; payloads and keyframes stay bytes."""
    if data[:3] != MAGIC[:3]:
        raise PayloadError("payload: not a message of this codec: wrong magic")
    if len(data) < len(MAGIC) + 4:
        raise PayloadError(f"payload: the message is truncated: {len(data)} bytes")
    if data[3] != MAGIC[3]:
        raise PayloadError(f"payload: message version {data[3]} is not known")
    body = data[:-4]
    if _native.crc32c(body) != int.from_bytes(data[-4:], "little"):
        raise PayloadError("payload: the message is damaged: its checksum does not match")
    reader = WireReader(body, "message")
    reader.take(len(MAGIC))
    flags = reader.byte()
    if flags >= 64:
        raise reader.error("holds unknown flags")
    tag, run = reader.fixed64(), int.from_bytes(reader.take(4), "little")
    identity = reader.take(reader.varint()) if flags & _IDENTITY else b""
    if flags & _IDENTITY and not identity:
        raise reader.error("announces an identity and holds none")
    ack = head = None
    keyframes: tuple[Keyframe, ...] = ()
    if flags & _ACK:
        newest, window = reader.varint(), reader.varint(2**ACK_WINDOW - 1)
        ack = Ack(newest, window, int.from_bytes(reader.take(4), "little"))
    if flags & _HEAD:
        head = VersionId(reader.varint(), reader.fixed64())
    if flags & _KEYFRAME:
        keyframes = tuple(
            Keyframe(
                reader.varint(), reader.fixed64(), reader.fixed64(), reader.take(reader.varint())
            )
            for _ in range(reader.varint(MAX_DEPTH))
        )
        if not keyframes:
            raise reader.error("announces keyframes and holds none")
    refused = int.from_bytes(reader.take(4), "little") if flags & _REFUSED else None
    payloads = tuple(reader.take(reader.varint()) for _ in range(reader.varint(MAX_PAYLOADS)))
    reader.end()
    is_request = bool(flags & _REQUEST)
    return Message(tag, is_request, ack, head, payloads, keyframes, refused, run, identity)
