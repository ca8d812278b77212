"""ClientRecord: what a server's session knows of one client, and its saved form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from resfed_codec.session.base import LOW32, ClientId
from resfed_codec.stream.message import ACK_WINDOW, MAX_VERSION, Ack, Keyframe, VersionId
from resfed_codec.stream.schema import (
    BITS64,
    BYTES,
    NUMBER,
    Check,
    TensorChecks,
    checked_fields,
    client_name,
    list_of,
    require,
    tuple_of,
)
from resfed_codec.stream.versions import ParsedPayload, Version
from resfed_codec.tensors.layout import Layout


class ClientRecord(NamedTuple):
    """What the server knows of one client; calls replace it as a whole, including its mappings.

    Attributes:
        tag: Identifies the client in messages and digests.
        known: The global version that it holds; None if that is not one of the server's.
        uplinks: Its versions that uplinks may build on, by number, if the server keeps models of
            clients.
        downlinks: Versions sent to it, by number, if it has its own downlink.
        replaces: Digest of what it holds if ``known`` is None.
        newest, window: Which of its uplinks have arrived, as in :class:`Ack`.
        seen: Digests of all uplinks that came with the newest number, the last one first.
        target: Number of the global model that ``sent`` was encoded from.
        sent: The payload or keyframe of the newest of ``downlinks``; empty if it must be encoded
            again.
    """

    tag: int
    known: VersionId | None
    uplinks: Mapping[int, Version]
    downlinks: Mapping[int, Version]
    replaces: int = 0
    newest: int = 0
    window: int = 0
    seen: tuple[int, ...] = ()
    target: int = 0
    sent: bytes | Keyframe = b""

    def ack(self) -> Ack:
        return Ack(self.newest, self.window, self.seen[0] & LOW32 if self.seen else 0)

    def is_last_uplink(self, number: int, digest: int) -> bool:
        """Whether this uplink is the last one that arrived."""
        return number == self.newest and self.seen[:1] == (digest,)

    def may_reuse_newest_for(self, digest: int) -> bool:
        """Whether another uplink may use the newest number again."""
        return digest not in self.seen and len(self.seen) < ACK_WINDOW

    @property
    def is_confirmed(self) -> bool:
        """Whether it is known to have the same layout and run: it has understood a message."""
        return self.newest > 0 or (self.known is not None and self.known.version > 0)

    def holding_other(self, digest: int) -> ClientRecord:
        """After it has said that it holds none of our versions; a keyframe stays usable."""
        sent = self.sent if isinstance(self.sent, Keyframe) else b""
        return self._replace(known=None, replaces=digest, sent=sent)

    def with_uplink(self, number: int, digest: int) -> ClientRecord:
        """After an uplink has arrived."""
        if number == self.newest:
            return self._replace(seen=(digest, *self.seen))
        ahead = number - self.newest
        window = (self.window << 1 | 1) << (ahead - 1) if ahead <= ACK_WINDOW else 0
        window = window & (2**ACK_WINDOW - 1) if self.newest else 0
        return self._replace(newest=number, window=window, seen=(digest,))

    def holding(self, head: VersionId, ours: int | None) -> ClientRecord:
        """After it has said what it holds; ``ours`` is our digest of that number."""
        if head.digest == ours:
            return self._replace(known=head, replaces=0)
        return self._replace(known=None, replaces=head.digest)

    def holds_like(self, other: ClientRecord) -> bool:
        """Whether both have the same versions and ``sent``."""
        versions = [
            [{n: v.digest for n, v in side.items()} for side in (r.uplinks, r.downlinks)]
            for r in (self, other)
        ]
        return versions[0] == versions[1] and self.sent == other.sent


_COLUMNS = 9
"""Numbers of a record: tag, whether a version is known, its number and digest, ``replaces``,
``newest``, ``window``, ``target``, and how many ``seen``."""


def records_to_fields(
    clients: Mapping[ClientId, ClientRecord], new: Callable[[int], ClientRecord]
) -> dict[str, Any]:
    """Fields for a snapshot; :func:`records_check` turns them back into records.

    Numbers are columns. Versions and messages are saved only for clients that have others than a
    ``new`` record, because the server knows little of most clients.
    """
    numbers: list[tuple[int, ...]] = []
    seen: list[int] = []
    more = []
    blank = new(1)
    for i, r in enumerate(clients.values()):
        version, digest = r.known or (0, 0)
        known = (int(r.known is not None), version, digest)
        numbers.append((r.tag, *known, r.replaces, r.newest, r.window, r.target, len(r.seen)))
        seen += r.seen
        if not r.holds_like(blank):
            sent = list(r.sent) if isinstance(r.sent, Keyframe) else r.sent
            more.append([i, r.uplinks, r.downlinks, sent])
    return {
        "names": list(clients),
        "numbers": np.array(numbers, "<u8").tobytes(),
        "seen": np.array(seen, "<u8").tobytes(),
        "more": more,
    }


def records_check(tensors: TensorChecks, history: int, new: Callable[[int], ClientRecord]) -> Check:
    """A check of what :func:`records_to_fields` returned; it turns the fields back into records."""
    keyframe = tuple_of(Keyframe, version=NUMBER, digest=BITS64, replaces=BITS64, data=BYTES)
    more_of_one = tuple_of(
        lambda *values: values,
        place=NUMBER,
        uplinks=tensors.versions(at_most=history + 1),
        downlinks=tensors.versions(at_most=history + 1),
        sent=lambda value, where: (keyframe if type(value) is list else BYTES)(value, where),
    )

    def check(value: Any, where: str) -> dict[ClientId, ClientRecord]:
        saved = checked_fields(
            value,
            {
                "names": list_of(client_name),
                "numbers": BYTES,
                "seen": BYTES,
                "more": list_of(more_of_one),
            },
        )
        names = saved["names"]
        require(len(saved["numbers"]) == 8 * _COLUMNS * len(names), f"{where}.numbers")
        require(len(saved["seen"]) % 8 == 0, f"{where}.seen")
        numbers = np.frombuffer(saved["numbers"], "<u8").reshape(-1, _COLUMNS)
        most = np.array([2**64 - 1, 1, MAX_VERSION, 2**64 - 1, 2**64 - 1, MAX_VERSION, LOW32,
                         MAX_VERSION, ACK_WINDOW], np.uint64)  # fmt: skip
        require(bool((numbers <= most).all() and (numbers[:, 0] > 0).all()), f"{where}.numbers")
        seen = np.frombuffer(saved["seen"], "<u8").tolist()
        require(int(numbers[:, 8].sum()) == len(seen), f"{where}.seen")
        records: list[ClientRecord] = []
        end = 0
        for tag, is_known, version, digest, replaces, newest, window, target, n in numbers.tolist():
            require(bool(is_known) or version == digest == 0, f"{where}.numbers")
            end += n
            record = new(tag)._replace(
                known=VersionId(version, digest) if is_known else None,
                replaces=replaces,
                newest=newest,
                window=window,
                seen=tuple(seen[end - n : end]),
                target=target,
            )
            records.append(record)
        for place, uplinks, downlinks, sent in saved["more"]:
            require(place < len(records), f"{where}.more")
            records[place] = records[place]._replace(
                uplinks=uplinks, downlinks=downlinks, sent=sent
            )
        clients = dict(zip(names, records, strict=True))
        require(len(clients) == len(names), f"{where}.names")
        return clients

    return check


def check_record(
    r: ClientRecord, layout: Layout, *, own_downlinks: bool, keeps_models: bool
) -> None:
    """Check that a session could have made the loaded record.

    Raises:
        CodecError, ValueError: It could not.
    """
    require(bool(r.seen) == (r.newest > 0) and r.window >> max(0, r.newest - 1) == 0, "newest")
    require(max(r.uplinks, default=None) == (r.newest if keeps_models else None), "uplinks")
    if not own_downlinks:
        require(not r.downlinks and r.sent == b"", "downlinks")
        return
    require(bool(r.downlinks), "downlinks")
    last = r.downlinks[max(r.downlinks)]
    if r.known is not None:
        known = r.downlinks.get(r.known.version)
        require(known is not None and known.digest == r.known.digest, "known")
    if isinstance(r.sent, Keyframe):
        require(r.sent[:2] == (last.number, last.digest), "sent")
    elif r.sent:
        parsed = ParsedPayload(r.sent, layout)
        require((parsed.link.version, parsed.digest) == (last.number, last.digest), "sent")
    else:
        require(r.known is None or r.known.version == last.number, "sent")
