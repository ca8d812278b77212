"""ServerSession: the server's end of both directions, for any number of clients."""

from __future__ import annotations

import warnings
from typing import Any, Literal

from resfed_codec.codec.aggregate import Aggregator, Source, of_model, of_payload
from resfed_codec.codec.native_call import Assignments
from resfed_codec.codec.payload import MESSAGE, UPDATE, as_bytes
from resfed_codec.codec.update import copy_into, writable_views
from resfed_codec.config import CodecConfig
from resfed_codec.errors import PayloadError, StateMismatchError
from resfed_codec.locking import synchronized
from resfed_codec.session.base import LOW32, ClientId
from resfed_codec.session.client_record import ClientRecord
from resfed_codec.session.server_downlink import Broadcast, Downlink, Unicast
from resfed_codec.session.server_state import ServerBase, ServerState
from resfed_codec.session.uplink import PendingUplink, open_uplink, parse_uplink
from resfed_codec.stream.link import version_digest
from resfed_codec.stream.message import (
    Message,
    VersionId,
    write_message,
)
from resfed_codec.stream.predictor import PREDICTORS
from resfed_codec.stream.versions import (
    OTHER,
    Model,
    ParsedPayload,
    Version,
    keep_newest,
    model_of,
    new_feedback,
)
from resfed_codec.tensors.layout import State, check_same_layout
from resfed_codec.tensors.torch_tensors import untraced


class ServerSession(ServerBase):
    """The server: sends global models to all clients, receives their local ones.

    Args:
        initial_state: The model that server and clients start from. Where it is on a CUDA device,
            so is what the session holds and returns (docs/gpu.md); a client's may be on another.
        uplink: What clients encode with; its predictor ("global" by default) must be the same on
            both ends.
        downlink: What global models are encoded with; predictor "previous" by default.
        run: A name for the run; ends with different names refuse each other's messages.
        history: Global models kept, for uplinks that were trained from an older one; and, with
            predictors that look at a client's own models, versions kept per client. 1 to 32.

    With the default predictors nothing model-sized is kept per client; :meth:`memory` tells.
    Several threads may call at once; their calls take turns. An exception at any point of a call,
    as KeyboardInterrupt, leaves the session as it was, or as it is after the call.

    Raises:
        TypeError, ValueError: An argument is of the wrong type or out of range; ``uplink`` has
            ``error_feedback=True`` and a predictor that looks at a client's own models, or
            ``downlink`` has it and one that looks at clients' models.
    """

    @untraced
    def __init__(
        self,
        initial_state: State,
        uplink: CodecConfig | None = None,
        downlink: CodecConfig | None = None,
        *,
        run: str = "",
        history: int = 4,
    ) -> None:
        super().__init__(initial_state, uplink, downlink, run, history)
        encoder = self._downlink_encoder
        sparsity = encoder.config.sparsity
        if encoder.predictor == PREDICTORS["res2"] and sparsity is not None and sparsity >= 0.99:
            warnings.warn(
                f'downlink: predictor "res2" at sparsity={sparsity}: trainings collapsed with it'
                ' when measured; at 0.5 they did not (docs/predictors.md). "previous" is safe',
                UserWarning,
                stacklevel=3,
            )
        first = self._first_downlink()
        self._state = ServerState(first, {0: first}, {}, {0: first.digest}, {})
        if encoder.config.error_feedback:
            feedback = new_feedback(self._layout, encoder.roles)
            self._state = self._state._replace(feedback=feedback)
        self._downlink: Downlink
        if self._broadcast:
            self._downlink = Broadcast(self._layout, encoder)
        else:
            keep = self._keep_down
            self._downlink = Unicast(self._layout, encoder, self._initial, keep, self._history)

    # ---- downlink

    @synchronized
    def update(self, global_state: State) -> bytes:
        """Take a new global model; it is encoded once for all clients.

        Args:
            global_state: A model of the initial state's names, shapes and dtypes.

        Returns:
            The payload, for those who multicast it; clients take it in ``receive`` and learn what
            has arrived from them by the next :meth:`send`. Empty if the downlink's predictor looks
            at client models; then each client's payload is made by ``send``.

        Raises:
            TypeError, ValueError: As :func:`resfed_codec.encode`; nothing has changed then.
        """
        current = self._layout.model_of(global_state, "global_state")
        before = self._state
        if not self._broadcast:
            target = self._layout.copy_of(current)
            number = before.target_number + 1
            clients = {
                name: self._without_old(client, number) for name, client in before.clients.items()
            }
            self._state = before._replace(target=target, target_number=number, clients=clients)
            return b""
        base, out = before.current, self._layout.empty()

        def commit(payload: bytes) -> Assignments:
            version = Version(base.number + 1, version_digest(payload), out, base)
            version = version.shortened(self._keep_down)
            after = before.after(version, payload, self._history, self._layout.n_bytes)
            return [(self, "_state", after)]

        return self._downlink_encoder.encode(
            current,
            tag=0,
            number=base.number + 1,
            base=base,
            other=None,
            keep=self._keep_down,
            out=out,
            feedback=before.feedback,
            commit=commit,
        )

    @synchronized
    def send(self, client_id: ClientId, *, fresh: bool = False) -> bytes:
        """A message for :meth:`ClientSession.receive` that brings the client up to date.

        It acknowledges what has arrived from the client and carries the payloads since the version
        that the client is known to hold, or a keyframe if that is smaller. A client is known to
        hold what its last uplink or acknowledgement named; a new one the initial model. Sending
        again is harmless.

        Args:
            client_id: The client.
            fresh: True if the client does not hold the initial model; as long as nothing else is
                known of it, it is sent a keyframe.

        Raises:
            TypeError: ``client_id`` is neither a str nor an integer.
        """
        client = self._client(client_id)
        if fresh and client.newest == 0 and client.known == VersionId(0, self._down_root):
            client = client.holding_other(0)
        client, data = self._message_for(client)
        self._store(client_id, client)
        return data

    def _message_for(self, client: ClientRecord) -> tuple[ClientRecord, bytes]:
        """A client's record after a message was made, and the message. Changes no state."""
        client, message = self._downlink.fill(self._state, client, self._message(client))
        return client, write_message(message)

    def _message(self, client: ClientRecord) -> Message:
        """An acknowledgement; as long as nothing has come from a client it says who this is."""
        message = self._empty_message(client.tag, with_identity=not client.is_confirmed)
        return message._replace(ack=client.ack())

    def _without_old(self, client: ClientRecord, target_number: int) -> ClientRecord:
        """A name that nothing has come from keeps no model and no payload of old."""
        if client.is_confirmed or client.target > target_number - self._history:
            return client
        return client._replace(downlinks={0: self._first_downlink()}, sent=b"")

    @synchronized
    def answer(self, client_id: ClientId, request: bytes) -> bytes:
        """A message that heals a client that refused one: the missing chain, or a keyframe.

        Args:
            client_id: The client.
            request: The ``request`` of the client's StateMismatchError.

        Raises:
            PayloadError: The bytes are no request, or damaged.
            StateMismatchError: The request is from another client.
            TypeError: ``client_id`` is neither a str nor an integer.
        """
        client, held, refused = self._take_request(client_id, request)
        client, data = self._message_for(client)
        if refused == version_digest(data) & LOW32:
            client = client.holding_other(held.digest)
            client, data = self._message_for(client)
        self._store(client_id, client)
        return data

    @synchronized
    def acknowledged(self, client_id: ClientId, acknowledgement: bytes) -> None:
        """Take in what :meth:`ClientSession.acknowledge` returned: what the client holds.

        Args:
            client_id: Who sent it.
            acknowledgement: The bytes.

        Raises:
            PayloadError: The bytes are no acknowledgement, or damaged.
            StateMismatchError: The acknowledgement is from another client.
            TypeError: ``client_id`` is neither a str nor an integer.
        """
        client, *_ = self._take_request(client_id, acknowledgement)
        self._store(client_id, client)

    def _take_request(
        self, client_id: ClientId, request: bytes
    ) -> tuple[ClientRecord, VersionId, int | None]:
        """The client's record after, what it holds, and the digest of what it refused."""
        client = self._client(client_id)
        m = self._read_request(request, client.tag, "client")
        if m.head is None or m.ack is not None:
            raise PayloadError("payload: a server's request; it is for the client")
        client = client.holding(m.head, self._held_digest(client, m.head.version))
        if client.known is None:
            client = client.holding_other(m.head.digest)
        return client, m.head, m.refused

    def _held_digest(self, client: ClientRecord, number: int) -> int | None:
        """Digest of a global version that is still known here."""
        return self._downlink.digest_of(self._state, client, number)

    # ---- uplink

    @synchronized
    def receive(self, client_id: ClientId, payload: bytes, *, out: Any = None) -> Any:
        """The recovered local model, after a payload of :meth:`ClientSession.send`.

        The newest payload of a client may come again and gives the same model again, as long as
        the global model that it builds on is held (``history``).

        Args:
            client_id: Who sent it.
            payload: From ``send`` or ``answer`` of the client.
            out: Arrays of the same layout to write into; default new ones.

        Raises:
            PayloadError: The payload is damaged, truncated, or of another kind.
            StateMismatchError: It is older than what has arrived, from another client or run, or
                builds on a version that is not held: says what is held and what came.
                ``request`` is for :meth:`ClientSession.answer`, whose answer then can be received.
            TypeError: ``client_id`` is neither a str nor an integer.

        After any error nothing has changed.
        """
        data = as_bytes(payload, UPDATE, MESSAGE)
        client = self._client(client_id)
        uplink = parse_uplink(data, self._identity)
        layout = self._layout
        targets = writable_views(out, layout.specs, layout.device) if out is not None else None
        try:
            pending = self._open(client, uplink)
            model = self._decode(client, pending)
        except StateMismatchError as error:
            raise StateMismatchError(str(error), self._request(client, data)) from None
        theirs = layout.copy_of(model) if self._keep_up and targets is None else model
        self._store(client_id, self._after(client, pending, model))
        if targets is not None:
            return copy_into(targets, model, out)
        return layout.state_of(theirs)

    @synchronized
    def aggregator(self) -> Aggregator:
        """An empty :class:`Aggregator` whose reference is the global model."""
        aggregator = Aggregator(self.state)
        if not self._keep_up:  # else local models are decoded anyway, to be kept
            aggregator._set_origin(self._current.digest)
        return aggregator

    @synchronized
    def receive_into(
        self,
        client_id: ClientId,
        payload: bytes,
        aggregator: Aggregator,
        weight: float = 1.0,
        *,
        repeated: Literal["replace", "add"] = "replace",
    ) -> bool:
        """:meth:`receive`, but the local model is added to ``aggregator`` and not returned.

        With :meth:`aggregator` and the uplink predictor "global" this costs what changed and not
        what the model holds; else the model is decoded and added.

        Args:
            client_id, payload: As in :meth:`receive`.
            aggregator: Of the same names, shapes and dtypes.
            weight: As in :meth:`Aggregator.add`.
            repeated: What a newer uplink of the same client does, if the aggregator has one of it
                since it was made or reset. "replace", the default: it takes the place of that one,
                which is subtracted exactly, so that a client counts once in a round; until then
                the payload is kept. "add": it counts as one more model, and nothing is kept of it.

        Returns:
            False if it is the client's newest uplink, come again, which is not added twice.

        Raises:
            CodecError, TypeError, ValueError: As :meth:`receive` and :meth:`Aggregator.add`; what
                is wrong with the payload or its values is a CodecError. After
                any error nothing has changed, here or in ``aggregator``.
        """
        if not isinstance(aggregator, Aggregator):
            raise TypeError(f"aggregator: must be one, not {type(aggregator).__name__}")
        if aggregator._digest != self._layout.digest:
            check_same_layout(aggregator._specs, self._layout.specs, "aggregator")
        if repeated not in ("replace", "add"):
            raise ValueError(f'repeated={repeated!r}: must be "replace" or "add"')
        data = as_bytes(payload, UPDATE, MESSAGE)
        client = self._client(client_id)
        uplink = parse_uplink(data, self._identity)
        if uplink.payloads and client.seen[:1] == (version_digest(uplink.payloads[0]),):
            return False  # also if what it builds on is no longer held
        try:
            pending = self._open(client, uplink)
            if client.is_last_uplink(pending.number, pending.digest):
                return False
            content, other = pending.content, pending.other
            on_reference = other is not None and other.digest == aggregator._origin
            model = None
            if on_reference and isinstance(content, ParsedPayload) and content.copies(OTHER):
                source = again = of_payload(content.payload, content.frame["digest"])
            else:
                model = self._decode(client, pending)
                source = of_model(self._layout.state_of(model))
                again = self._decoding(pending)
            storing = self._storing(client_id, self._after(client, pending, model))
            name = storing[0][1] if repeated == "replace" else None
            aggregator._add_from(name, source, again, weight, len(data), storing)
        except StateMismatchError as error:
            raise StateMismatchError(str(error), self._request(client, data)) from None
        return True

    def _open(self, client: ClientRecord, uplink: Message) -> PendingUplink:
        versions = self._downlink.versions(self._state, client)
        return open_uplink(uplink, self._layout, client, versions)

    def _request(self, client: ClientRecord, refused: bytes) -> bytes:
        newest = self._downlink.newest(self._state, client)
        request = self._message(client)._replace(
            is_request=True,
            head=VersionId(newest.number, newest.digest),
            refused=version_digest(refused) & LOW32,
        )
        return write_message(request)

    def _decode(self, client: ClientRecord, pending: PendingUplink) -> Model:
        if self._keep_up and client.is_last_uplink(pending.number, pending.digest):
            return model_of(client.uplinks[pending.number])
        model = self._layout.empty()
        pending.decode(self._layout, model)
        return model

    def _decoding(self, pending: PendingUplink) -> Source:
        """An uplink's model, decoded when it is asked for; holds what it builds on."""
        layout = self._layout

        def prepare(core: Any, weight: float) -> Any:
            model = layout.empty()
            pending.decode(layout, model)
            return of_model(layout.state_of(model))(core, weight)

        return prepare

    def _after(
        self, client: ClientRecord, pending: PendingUplink, model: Model | None
    ) -> ClientRecord:
        """The client's record after an uplink, whose model is only needed where it is kept."""
        if client.is_last_uplink(pending.number, pending.digest):
            return client
        ours = self._held_digest(client, pending.known.version)
        client = client.with_uplink(pending.number, pending.digest).holding(pending.known, ours)
        if not self._broadcast and client.known is not None:
            first = client.known.version
            client = client._replace(
                downlinks={n: v for n, v in client.downlinks.items() if n >= first}
            )
        if not self._keep_up:
            return client
        version = Version(pending.number, pending.digest, model, pending.base)
        uplinks = {**client.uplinks, pending.number: version.shortened(self._keep_up)}
        base = None if pending.base is None else pending.base.number
        uplinks = {n: v for n, v in uplinks.items() if base is None or n >= base}
        return client._replace(uplinks=keep_newest(uplinks, self._history, base))

    # ---- memory

    def _cached_bytes(self) -> int:
        return self._downlink.cached_bytes
