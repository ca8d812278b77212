"""The server checks an uplink: its client, its order and the versions that it builds on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from resfed_codec.codec.keyframe import decode_keyframe
from resfed_codec.errors import PayloadError, StateMismatchError
from resfed_codec.session.client_record import ClientRecord
from resfed_codec.stream.identity import Identity
from resfed_codec.stream.message import (
    Keyframe,
    Message,
    VersionId,
    check_ahead,
    is_message,
    read_message,
)
from resfed_codec.stream.versions import Model, ParsedPayload, Version
from resfed_codec.tensors.layout import Layout


@dataclass(eq=False)
class PendingUplink:
    """An uplink whose order and bases have been checked, not yet decoded.

    Attributes:
        number, digest: The version that it makes.
        known: The global version that the client holds.
        content: The payload or keyframe.
        base, other: The versions that it builds on, of the client and of the server.
    """

    number: int
    digest: int
    known: VersionId
    content: ParsedPayload | Keyframe
    base: Version | None = None
    other: Version | None = None

    def decode(self, layout: Layout, out: Model) -> None:
        """Fill ``out`` with the recovered model, or raise CodecError and leave it unchanged."""
        if isinstance(self.content, ParsedPayload):
            self.content.decode(layout, self.base, self.other, out)
        else:
            state = layout.state_of(out)
            decode_keyframe(self.content.data, state, out=state)


def parse_uplink(data: bytes, identity: Identity) -> Message:
    """The message that an uplink is, or one around a bare payload; raises CodecError."""
    if not is_message(data):
        return Message(0, payloads=(data,))
    m = read_message(data)
    if len(m.keyframes) + len(m.payloads) != 1 or m.ack is not None:
        raise PayloadError("payload: this message is not from a client's session")
    identity.require_same(m)
    return m


def content_of(m: Message, layout: Layout) -> ParsedPayload | Keyframe:
    """The parsed payload of an uplink, or its keyframe; raises CodecError."""
    return m.keyframes[0] if m.keyframes else ParsedPayload(m.payloads[0], layout)


def open_uplink(
    m: Message,
    content: ParsedPayload | Keyframe,
    client: ClientRecord,
    versions: Mapping[int, Version],
) -> PendingUplink:
    """Check an uplink of ``client``; it may build on the global ``versions``.

    Raises:
        PayloadError: It is not an uplink.
        StateMismatchError: It is older than the client's last one, from another client or run, or
            builds on a version that is not held.
    """
    if isinstance(content, Keyframe):
        return _open_keyframe(m, content, client)
    parsed, link = content, content.link
    _check_order(client, link.version, parsed.digest, str(link))
    other = versions.get(-1 if link.other is None else link.other)
    if other is None:
        raise StateMismatchError(f"payload: {link}, of which {_numbers(versions)} are held here")
    base = None if link.base is None else client.uplinks.get(link.base)
    if link.base is not None and base is None:
        raise StateMismatchError(
            f"payload: {link}; uplinks {_numbers(client.uplinks)} are held here"
        )
    nameless = client.newest == 0 and parsed.builds_on(0, base, other)
    if not nameless and not parsed.builds_on(client.tag, base, other):
        raise StateMismatchError(
            f"payload: {link}, but from another client or run, or after a restart"
        )
    known = VersionId(other.number, other.digest)
    return PendingUplink(link.version, parsed.digest, known, parsed, base, other)


def _open_keyframe(m: Message, keyframe: Keyframe, client: ClientRecord) -> PendingUplink:
    if m.head is None:
        raise PayloadError("payload: this message is not from a client's session")
    if m.tag != client.tag and (m.tag or client.newest):
        raise StateMismatchError("payload: a keyframe of another client")
    _check_order(
        client, keyframe.version, keyframe.digest, f"a keyframe of version {keyframe.version}"
    )
    return PendingUplink(keyframe.version, keyframe.digest, m.head, keyframe)


def _check_order(client: ClientRecord, number: int, digest: int, text: str) -> None:
    """Refuse an old uplink. A restored client may use the newest number again for another one."""
    check_ahead("uplink", number, client.newest)
    again = number == client.newest and digest not in client.seen[:1]
    if number < client.newest or (again and not client.may_reuse_newest_for(digest)):
        raise StateMismatchError(
            f"payload: {text}, older than uplink {client.newest}, which has arrived"
        )


def _numbers(versions: Mapping[int, Version]) -> str:
    return ", ".join(map(str, sorted(versions))) or "none"
