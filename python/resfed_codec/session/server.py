"""ServerSession: what a server sends to its clients and receives from them.

server_state.py has what it holds, server_downlink.py puts global models into messages, uplink.py
checks uplinks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

from resfed_codec.codec.aggregate import (
    Aggregator,
    Source,
    add_from,
    aggregator_of,
    aggregator_specs,
    is_of_version,
    model_source,
    payload_source,
)
from resfed_codec.codec.native_call import Assignments
from resfed_codec.codec.payload import MESSAGE, UPDATE, as_bytes
from resfed_codec.codec.update import Payload
from resfed_codec.config import CodecConfig
from resfed_codec.errors import PayloadError, StateMismatchError
from resfed_codec.locking import synchronized
from resfed_codec.notices import warn
from resfed_codec.session.base import LOW32, ClientId, client_name
from resfed_codec.session.client_record import ClientRecord
from resfed_codec.session.feedback_watch import FeedbackWatch, next_feedback
from resfed_codec.session.server_downlink import Broadcast, Downlink, Unicast
from resfed_codec.session.server_state import ServerBase, ServerState
from resfed_codec.session.uplink import PendingUplink, content_of, open_uplink, parse_uplink
from resfed_codec.stream.link import version_digest
from resfed_codec.stream.message import Keyframe, Message, VersionId, write_message
from resfed_codec.stream.predictor import PREDICTORS
from resfed_codec.stream.versions import (
    OTHER,
    Model,
    ParsedPayload,
    Part,
    Version,
    completed,
    keep_newest,
    model_of,
    new_feedback,
)
from resfed_codec.tensors.layout import ArrayT, Out, OutT, State, StateT, check_same_layout
from resfed_codec.tensors.torch_tensors import untraced


class ServerSession(ServerBase[StateT]):
    """The server: sends global models to all clients and receives their local models.

    Args:
        initial_state: The model that server and clients start from. If it is on a CUDA device, so
            is what the session holds and returns (docs/gpu.md); a client may use another device.
        uplink: The configuration that clients encode with; its predictor ("global" by default) must
            be the same on both ends.
        downlink: The configuration for global models; its predictor is "previous" by default. Its
            error feedback is on by default until the global models show that the server keeps an
            exact model; see :attr:`error_feedback`.
        run: A name for the run; ends with different names refuse each other's messages.
        history: Number of global models kept, for uplinks that were trained from an older one; and,
            with predictors that read a client's own models, of versions kept per client. 1 to 32.

    With the default predictors the server keeps nothing of a model's size per client; see
    :meth:`memory`. Several threads may call the methods; a lock serializes the calls. An exception
    at any point of a call, such as KeyboardInterrupt, leaves the session as before or as after it.

    Raises:
        TypeError, ValueError: An argument has the wrong type or is out of range; or
            ``error_feedback=True`` in ``uplink`` meets a predictor that reads a client's own
            models, or in ``downlink`` one that reads clients' models.
    """

    @overload
    def __init__(
        self: ServerSession[dict[str, ArrayT]],
        initial_state: Mapping[str, ArrayT],
        uplink: CodecConfig | None = ...,
        downlink: CodecConfig | None = ...,
        *,
        run: str = ...,
        history: int = ...,
    ) -> None: ...
    @overload
    def __init__(
        self: ServerSession[list[ArrayT]],
        initial_state: Sequence[ArrayT],
        uplink: CodecConfig | None = ...,
        downlink: CodecConfig | None = ...,
        *,
        run: str = ...,
        history: int = ...,
    ) -> None: ...
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
        sparsity = encoder.config.aimed_sparsity
        if encoder.predictor == PREDICTORS["res2"] and sparsity is not None and sparsity >= 0.99:
            warn(
                f'downlink: predictor "res2" at sparsity={sparsity}: trainings collapsed with it'
                ' when measured; at 0.5 they did not (docs/predictors.md). "previous" is safe'
            )
        first = self._first_downlink()
        self._state = ServerState(first, {0: first}, {}, {0: first.digest}, {})
        if self._broadcast:
            kept = encoder.config.error_feedback is not False
            feedback = new_feedback(self._layout, encoder.roles) if kept else None
            self._state = self._state._replace(feedback=feedback, watch=FeedbackWatch())
        keep = self._keep_down
        self._downlink: Downlink = (
            Broadcast(self._layout, encoder)
            if self._broadcast
            else Unicast(self._layout, encoder, self._initial, keep, self._history)
        )

    # ---- downlink

    @synchronized
    def update(self, global_state: State) -> bytes:
        """Set the new global model, and encode it once for all clients.

        Logs what was sent and received since the last call, at level INFO.

        Args:
            global_state: A model of the initial state's names, shapes and dtypes.

        Returns:
            The payload, for multicast: clients pass it to ``receive``; the next :meth:`send`
            acknowledges their uplinks. Empty if the downlink's predictor reads client models;
            then ``send`` encodes a payload for each client.

        Raises:
            TypeError, ValueError: As :func:`resfed_codec.encode`; nothing has changed then.
        """
        return self._update(self._layout.model_of(global_state, "global_state"))

    @synchronized
    def _update_part(self, global_state: Mapping[str, Any]) -> bytes:
        """As :meth:`update` of a model that lacks tensors: those of the last one stay as they are.

        Their error feedback does, too.
        """
        return self._update(self._layout.part_of(global_state, "global_state"))

    def _update(self, current: Part) -> bytes:
        before = self._state
        if not self._broadcast:
            last = before.target or model_of(self._initial)
            target = self._layout.copy_of(completed(current, last))
            number = before.target_number + 1
            clients = {
                name: self._without_old(client, number) for name, client in before.clients.items()
            }
            self._state = before._replace(target=target, target_number=number, clients=clients)
            self._log_round(number - 1)
            return b""
        base, out = before.current, self._layout.empty()
        feedback, watch = next_feedback(
            self._downlink_encoder,
            completed(current, model_of(base)),
            base,
            before.feedback,
            before.watch,
        )

        def commit(payload: bytes) -> Assignments:
            version = Version(base.number + 1, version_digest(payload), out, base)
            version = version.shortened(self._keep_down)
            after = before.after(version, payload, self._history, self._layout.n_bytes)
            return [(self, "_state", after._replace(feedback=feedback, watch=watch))]

        payload = self._downlink_encoder.encode(
            current,
            number=base.number + 1,
            base=base,
            keep=self._keep_down,
            out=out,
            feedback=feedback,
            commit=commit,
        )
        self._log_round(base.number)
        return payload

    @synchronized
    def send(self, client_id: ClientId, *, fresh: bool = False) -> bytes:
        """A message for :meth:`ClientSession.receive` that brings the client up to date.

        It acknowledges the client's uplinks and carries the payloads since the version that the
        client is known to hold, or a keyframe if that is smaller. A client is known to hold the
        version that its last uplink or acknowledgement named, and a new client the initial model.
        Calling it again is harmless.

        Args:
            client_id: The client.
            fresh: True if the client does not hold the initial model. It is sent a keyframe until
                it says what it holds.

        Raises:
            TypeError: ``client_id`` is neither a str nor an integer.
        """
        client = self._client(client_id)
        if fresh and client.newest == 0 and client.known == VersionId(0, self._down_root):
            client = client.holding_other(0)
        return self._sent(client_id, *self._message_for(client))

    def _message_for(self, client: ClientRecord) -> tuple[ClientRecord, Message]:
        """The client's record after a message, and the message. The state does not change."""
        return self._downlink.fill(self._state, client, self._message(client))

    def _sent(self, client_id: ClientId, client: ClientRecord, message: Message) -> bytes:
        """Store the client's record after a message; returns the message's bytes."""
        data = write_message(message)
        self._store(client_id, client)
        self._traffic.add("down", len(data), keyframe=bool(message.keyframes))
        return data

    def _message(self, client: ClientRecord) -> Message:
        """An acknowledgement; it has the identity until the client is known to share it."""
        message = self._empty_message(client.tag, with_identity=not client.is_confirmed)
        return message._replace(ack=client.ack())

    def _without_old(self, client: ClientRecord, target_number: int) -> ClientRecord:
        """Drop old models and payloads of a client that has never answered."""
        if client.is_confirmed or client.target > target_number - self._history:
            return client
        return client._replace(downlinks={0: self._first_downlink()}, sent=b"")

    @synchronized
    def answer(self, client_id: ClientId, request: bytes) -> bytes:
        """A message for a client that refused one: the missing payloads, or a keyframe.

        Args:
            client_id: The client.
            request: The ``request`` of the client's StateMismatchError.

        Raises:
            PayloadError: The bytes are not a request, or damaged.
            StateMismatchError: The request is from another client.
            TypeError: ``client_id`` is neither a str nor an integer.
        """
        client, held, refused = self._take_request(client_id, request)
        after, message = self._message_for(client)
        if refused == version_digest(write_message(message)) & LOW32:
            after, message = self._message_for(after.holding_other(held.digest))
        return self._sent(client_id, after, message)

    @synchronized
    def acknowledged(self, client_id: ClientId, acknowledgement: bytes) -> None:
        """Record what a client holds, from what :meth:`ClientSession.acknowledge` returned.

        Args:
            client_id: The client that sent it.
            acknowledgement: The bytes.

        Raises:
            PayloadError: The bytes are not an acknowledgement, or damaged.
            StateMismatchError: The acknowledgement is from another client.
            TypeError: ``client_id`` is neither a str nor an integer.
        """
        client, *_ = self._take_request(client_id, acknowledgement)
        self._store(client_id, client)
        n_bytes = memoryview(acknowledgement).nbytes
        self._traffic.add("up", n_bytes, n_messages=0, keyframe=False)

    def _take_request(
        self, client_id: ClientId, request: bytes
    ) -> tuple[ClientRecord, VersionId, int | None]:
        """Read a request: the client's record after it, what it holds and the digest of what it
        refused."""
        client = self._client(client_id)
        m = self._read_request(request, client.tag, "client")
        if m.head is None or m.ack is not None:
            raise PayloadError("payload: a server's request; it is for the client")
        client = client.holding(m.head, self._held_digest(client, m.head.version))
        if client.known is None:
            client = client.holding_other(m.head.digest)
        return client, m.head, m.refused

    def _held_digest(self, client: ClientRecord, number: int) -> int | None:
        """Digest of a global version, if the server still knows it."""
        return self._downlink.digest_of(self._state, client, number)

    # ---- uplink

    @overload
    def receive(self, client_id: ClientId, payload: Payload) -> StateT: ...
    @overload
    def receive(self, client_id: ClientId, payload: Payload, *, out: OutT) -> OutT: ...
    @synchronized  # type: ignore[misc]  # mypy does not match decorated overloads
    def receive(self, client_id: ClientId, payload: Payload, *, out: Out | None = None) -> Any:
        """The recovered local model, after a payload of :meth:`ClientSession.send`.

        If the newest payload of a client comes again, the result is the same model again, as long
        as the server holds the global model that it builds on (``history``).

        Args:
            client_id: The client that sent it.
            payload: From ``send`` or ``answer`` of the client.
            out: Arrays of the same layout to write into; default: new ones.

        Raises:
            PayloadError: The payload is damaged, truncated, or of another kind.
            StateMismatchError: The payload is older than the client's last one, from another client
                or run, or builds on a version that the server does not hold; the error says which.
                Its ``request`` is for :meth:`ClientSession.answer`, which returns bytes to receive
                instead.
            TypeError: ``client_id`` is neither a str nor an integer.

        After any error nothing has changed.
        """
        data = as_bytes(payload, UPDATE, MESSAGE)
        client = self._client(client_id)
        uplink = parse_uplink(data, self._identity)
        output = self._output(copy=self._keep_up > 0, out=out)
        try:
            pending = self._open(client, uplink, content_of(uplink, self._layout))
            model = self._decode(client, pending)
        except StateMismatchError as error:
            raise StateMismatchError(str(error), self._request(client, data)) from None
        self._store(client_id, self._after(client, pending, model))
        self._count(data, pending.content)
        return output(model)

    def _count(self, uplink: bytes, content: ParsedPayload | Keyframe) -> None:
        self._traffic.add("up", len(uplink), keyframe=isinstance(content, Keyframe))

    @synchronized
    def aggregator(self) -> Aggregator[StateT]:
        """An empty :class:`Aggregator` whose reference is the global model."""
        # With _keep_up local models are decoded anyway, to be kept.
        return aggregator_of(self.state, None if self._keep_up else self._state.current.digest)

    @synchronized
    def receive_into(
        self,
        client_id: ClientId,
        payload: Payload,
        aggregator: Aggregator[Any],
        weight: float = 1.0,
        *,
        repeated: Literal["replace", "add"] = "replace",
    ) -> bool:
        """:meth:`receive`, but the local model is added to ``aggregator`` and not returned.

        With :meth:`aggregator` and the uplink predictor "global" the cost is proportional to what
        changed, not to the model. Otherwise the model is decoded and added.

        Args:
            client_id, payload: As in :meth:`receive`.
            aggregator: Of the same names, shapes and dtypes.
            weight: As in :meth:`Aggregator.add`.
            repeated: What happens if the aggregator already has an uplink of this client since it
                was made or reset. "replace", the default: the older one is subtracted exactly, so
                that a client counts once in a round; the aggregator keeps the payload for that.
                "add": this one counts as one more model, and its payload is not kept.

        Returns:
            False if this is the client's newest uplink again, which is not added twice.

        Raises:
            CodecError, TypeError, ValueError: As :meth:`receive` and :meth:`Aggregator.add`;
                a CodecError for what is wrong with the payload or its values. After any error
                nothing has changed, here or in ``aggregator``.
        """
        if not isinstance(aggregator, Aggregator):
            raise TypeError(f"aggregator: must be one, not {type(aggregator).__name__}")
        check_same_layout(aggregator_specs(aggregator), self._layout.specs, "aggregator")
        if repeated not in ("replace", "add"):
            raise ValueError(f'repeated={repeated!r}: must be "replace" or "add"')
        data = as_bytes(payload, UPDATE, MESSAGE)
        client = self._client(client_id)
        uplink = parse_uplink(data, self._identity)
        try:
            content = content_of(uplink, self._layout)
            if isinstance(content, ParsedPayload) and client.seen[:1] == (content.digest,):
                self._count(data, content)
                return False  # even if the version that it builds on is no longer held
            pending = self._open(client, uplink, content)
            if client.is_last_uplink(pending.number, pending.digest):
                self._count(data, content)
                return False
            on_reference = pending.other is not None and is_of_version(
                aggregator, pending.other.digest
            )
            model = None
            if on_reference and isinstance(content, ParsedPayload) and content.copies(OTHER):
                source = again = payload_source(content.native)
            else:
                model = self._decode(client, pending)
                source = model_source(self._layout.state_of(model))
                again = self._decoding(pending)
            name = client_name(client_id)
            storing = [(self._state.clients, name, self._after(client, pending, model))]
            replaces = name if repeated == "replace" else None
            add_from(aggregator, replaces, source, again, weight, len(data), storing)
        except StateMismatchError as error:
            raise StateMismatchError(str(error), self._request(client, data)) from None
        self._count(data, content)
        return True

    def _open(
        self, client: ClientRecord, uplink: Message, content: ParsedPayload | Keyframe
    ) -> PendingUplink:
        versions = self._downlink.versions(self._state, client)
        return open_uplink(uplink, content, client, versions)

    @synchronized
    def _trained_from(self, client_id: ClientId, payload: Payload) -> StateT:
        """The global model that the client held when it sent ``payload``, for the integrations.

        Raises as :meth:`receive`.
        """
        uplink = parse_uplink(as_bytes(payload, UPDATE, MESSAGE), self._identity)
        client = self._client(client_id)
        known = self._open(client, uplink, content_of(uplink, self._layout)).known
        held = self._downlink.versions(self._state, client).get(known.version)
        if held is None or held.digest != known.digest:
            raise StateMismatchError(
                f"payload: trained from global model {known.version}, which is not held here"
            )
        model: StateT = self._layout.state_of(self._layout.copy_of(model_of(held)))
        return model

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
        """A source that decodes an uplink's model when called; it keeps the uplink's bases."""
        layout = self._layout

        def prepare(sums: Any, weight: float) -> Any:
            model = layout.empty()
            pending.decode(layout, model)
            return model_source(layout.state_of(model))(sums, weight)

        return prepare

    def _after(
        self, client: ClientRecord, pending: PendingUplink, model: Model | None
    ) -> ClientRecord:
        """The client's record after an uplink; ``model`` is only needed if it is kept."""
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
