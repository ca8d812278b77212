"""What a server's session knows of one client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from resfed_codec.history import Version
from resfed_codec.message import ACK_WINDOW, Ack, Head, Keyframe
from resfed_codec.session import LOW32


@dataclass(eq=False)
class ClientRecord:
    """What the server knows of one client.

    Attributes:
        tag: Stands for the client in messages and digests.
        known: The global version that it holds; None if that is none of the server's.
        replaces: Digest of what it holds if ``known`` is None.
        newest, window: Which of its uplinks have arrived, as in :class:`Ack`.
        seen: Digests of all that came with the newest number, the last one first.
        uplinks: Versions that it may build on, by number; only where models of clients are kept.
        downlinks: Versions sent to it, by number; only where the downlink is its own.
        sent: What the newest of ``downlinks`` was sent as.
        target: The number of the global model that was made from.
    """

    tag: int
    known: Head | None
    replaces: int = 0
    newest: int = 0
    window: int = 0
    seen: list[int] = field(default_factory=list)
    uplinks: dict[int, Version] = field(default_factory=dict)
    downlinks: dict[int, Version] = field(default_factory=dict)
    target: int = 0
    sent: bytes | Keyframe = b""

    def ack(self) -> Ack:
        return Ack(self.newest, self.window, self.seen[0] & LOW32 if self.seen else 0)

    def has_last(self, number: int, digest: int) -> bool:
        """Whether this is the uplink that arrived last."""
        return number == self.newest and self.seen[:1] == [digest]

    def note_uplink(self, number: int, digest: int) -> None:
        if number == self.newest:
            self.seen.insert(0, digest)
            return
        ahead = number - self.newest
        window = (self.window << 1 | 1) << (ahead - 1) if ahead <= ACK_WINDOW else 0
        self.window = window & (2**ACK_WINDOW - 1) if self.newest else 0
        self.newest, self.seen = number, [digest]

    def fields(self) -> list[Any]:
        """For snapshots; :func:`record_of` turns it back."""
        return [list(v) if isinstance(v, (Head, Keyframe)) else v for v in vars(self).values()]


def record_of(fields: Sequence[Any]) -> ClientRecord:
    record = ClientRecord(*fields)
    record.known = None if record.known is None else Head(*record.known)
    if isinstance(record.sent, list):
        record.sent = Keyframe(*record.sent)
    return record
