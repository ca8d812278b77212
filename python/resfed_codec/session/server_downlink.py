"""The server's side of the downlink: one payload for all clients, or one for each.

Both classes put into a client's message what the client lacks. What they keep apart from the
session's state is a cache: it can be computed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeAlias

from resfed_codec.codec.keyframe import encode_keyframe
from resfed_codec.session.client_record import ClientRecord
from resfed_codec.session.server_state import ServerState
from resfed_codec.stream.link import digest64, version_digest
from resfed_codec.stream.message import Keyframe, Message, VersionId
from resfed_codec.stream.stream import keyframes_of
from resfed_codec.stream.update_encoder import UpdateEncoder
from resfed_codec.stream.versions import Model, Version, keep_newest, model_of
from resfed_codec.tensors.layout import Layout

KEYFRAME_SHARE = 16
"""If a chain is shorter than the model divided by this, no keyframe is encoded to compare with."""


class Broadcast:
    """Each global model is one payload for all clients."""

    def __init__(self, layout: Layout, encoder: UpdateEncoder) -> None:
        self._layout, self._encoder = layout, encoder
        self._keyframe_cache: dict[int, bytes] = {}  # by digest of the version

    @property
    def cached_bytes(self) -> int:
        return _total(self._keyframe_cache.values())

    def newest(self, state: ServerState, client: ClientRecord) -> Version:
        return state.current

    def versions(self, state: ServerState, client: ClientRecord) -> Mapping[int, Version]:
        """Those that the client's uplinks may build on."""
        return state.versions

    def digest_of(self, state: ServerState, client: ClientRecord, number: int) -> int | None:
        """Digest of a global version, if it is still known."""
        return state.digests.get(number)

    def fill(
        self, state: ServerState, client: ClientRecord, message: Message
    ) -> tuple[ClientRecord, Message]:
        """Add to ``message`` what the client lacks; also returns the client's record after it."""
        chain = None if client.known is None else state.chain_since(client.known)
        if chain is None or self._is_long(chain):
            replaces = client.replaces if client.known is None else 0
            # Of the current version and of the history that the next payload needs.
            versions = state.current.lineage(max(1, self._encoder.own_depth))
            keyframes = keyframes_of(self._layout, versions, replaces, self._keyframe_cache)
            if chain is None or _total(chain) > sum(len(k.data) for k in keyframes):
                return client, message._replace(keyframes=keyframes)
        if chain:
            return client, message._replace(payloads=tuple(chain))
        return client, message._replace(head=VersionId(state.current.number, state.current.digest))

    def _is_long(self, chain: list[bytes]) -> bool:
        return len(chain) > 1 and KEYFRAME_SHARE * _total(chain) > self._layout.n_bytes


class _Shared(NamedTuple):
    """What downlinks of a global model to several clients share.

    Attributes:
        target: The global model.
        keyframe: Its keyframe.
        first_downlink: What a client that holds nothing but the initial model recovers.
    """

    target: Model | None
    keyframe: bytes = b""
    first_downlink: Model | None = None


class Unicast:
    """Each client gets a payload of its own, encoded when a message is sent to it.

    Args:
        initial: The model that clients start from.
        keep: Number of models that each downlink's history keeps.
        history: Number of versions kept per client.
    """

    def __init__(
        self, layout: Layout, encoder: UpdateEncoder, initial: Version, keep: int, history: int
    ) -> None:
        self._layout, self._encoder, self._initial = layout, encoder, initial
        self._keep, self._history = keep, history
        self._shared = _Shared(None)

    @property
    def cached_bytes(self) -> int:
        return len(self._shared.keyframe)

    def newest(self, state: ServerState, client: ClientRecord) -> Version:
        return client.downlinks[max(client.downlinks)]

    def versions(self, state: ServerState, client: ClientRecord) -> Mapping[int, Version]:
        """Those that the client's uplinks may build on."""
        return client.downlinks

    def digest_of(self, state: ServerState, client: ClientRecord, number: int) -> int | None:
        """Digest of a version that was sent to the client, if it is still known."""
        version = client.downlinks.get(number)
        return version.digest if version else None

    def fill(
        self, state: ServerState, client: ClientRecord, message: Message
    ) -> tuple[ClientRecord, Message]:
        """Add to ``message`` what the client lacks; also returns the client's record after it."""
        known = client.known
        lacks_keyframe = known is None and not isinstance(client.sent, Keyframe)
        if client.target != state.target_number or lacks_keyframe:
            client = self._encode(state, client)
        newest = self.newest(state, client)
        if known is not None and known.version == newest.number:
            return client, message._replace(head=VersionId(newest.number, newest.digest))
        if isinstance(client.sent, Keyframe):
            keyframe = client.sent._replace(replaces=client.replaces)
            return client, message._replace(keyframes=(keyframe,))
        return client, message._replace(payloads=(client.sent,))

    def _encode(self, state: ServerState, client: ClientRecord) -> ClientRecord:
        """The client's record with the newest global model as its newest downlink."""
        target = model_of(self._initial) if state.target is None else state.target
        shared = self._shared if self._shared.target is target else _Shared(target)
        number = max(client.downlinks) + 1
        if client.known is None:
            data = shared.keyframe or encode_keyframe(self._layout.state_of(target))
            self._shared = shared._replace(keyframe=data)
            digest = digest64(b"keyframe", number.to_bytes(8, "little"), data)
            sent: bytes | Keyframe = Keyframe(number, digest, client.replaces, data)
            version = Version(number, digest, target)
        else:
            base = client.downlinks[client.known.version]
            other = client.uplinks[max(client.uplinks)]
            # All clients that have never answered recover the same model: it is kept once.
            is_first = base.number == other.number == 0
            recovered = shared.first_downlink if is_first else None
            out = recovered or self._layout.empty()
            sent = self._encoder.encode(
                target,
                tag=client.tag,
                number=number,
                base=base,
                other=other,
                keep=self._keep,
                out=None if recovered else out,
            )
            if is_first:
                self._shared = shared._replace(first_downlink=out)
            version = Version(number, version_digest(sent), out, base).shortened(self._keep)
        downlinks = {**client.downlinks, number: version}
        known = client.known and client.known.version
        return client._replace(
            downlinks=keep_newest(downlinks, self._history, known),
            target=state.target_number,
            sent=sent,
        )


Downlink: TypeAlias = "Broadcast | Unicast"


def _total(payloads: Iterable[bytes]) -> int:
    return sum(map(len, payloads))
