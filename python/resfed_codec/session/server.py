"""ServerSession: the server's end of both directions, for any number of clients."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from resfed_codec.codec.aggregate import Aggregator, Source, of_model, of_payload
from resfed_codec.codec.keyframe import encode_keyframe
from resfed_codec.codec.payload import MESSAGE, REQUEST, UPDATE, as_bytes
from resfed_codec.codec.update import copy_into, writable_views
from resfed_codec.config import CodecConfig
from resfed_codec.errors import CodecError, PayloadError, StateMismatchError
from resfed_codec.locking import synchronized
from resfed_codec.session.base import (
    LOW32,
    ClientId,
    Session,
    client_name,
    client_tag,
    open_request,
)
from resfed_codec.session.client_record import (
    ClientRecord,
    check_record,
    records_check,
    records_to_fields,
)
from resfed_codec.session.uplink import PendingUplink, open_uplink, parse_uplink
from resfed_codec.stream.link import digest64, version_digest
from resfed_codec.stream.message import (
    MAX_PAYLOADS,
    Head,
    Keyframe,
    Message,
    write_message,
)
from resfed_codec.stream.predictor import RULES
from resfed_codec.stream.schema import (
    BITS64,
    BYTES,
    NUMBER,
    Tensors,
    checked_fields,
    optional,
    require,
    table,
)
from resfed_codec.stream.versions import (
    OTHER,
    Feedback,
    Model,
    ParsedPayload,
    Version,
    model_of,
    new_feedback,
)
from resfed_codec.tensors.device import Assignments
from resfed_codec.tensors.layout import State, check_same_layout
from resfed_codec.tensors.torch_tensors import untraced

KEYFRAME_PART = 16
"""A chain shorter than this part of the model is sent without asking what a keyframe takes."""


class ServerState(NamedTuple):
    """All that changes of a server's session; calls replace it as a whole.

    Only ``clients`` is changed in place: one client's record is replaced by one assignment.

    Attributes:
        current: The newest global version; the initial one where clients get their own.
        versions: Global versions that uplinks may build on, by number.
        chain: Payloads that lead to versions, by number.
        digests: Of versions that the chain can start from, by number.
        clients: What is known of each.
        target: The newest global model as it was given, where clients get their own.
        target_number: Its number.
        feedback: What downlinks have left out; its arrays are updated in place, in one step with
            the replacement.
    """

    current: Version
    versions: dict[int, Version]
    chain: dict[int, bytes]
    digests: dict[int, int]
    clients: dict[ClientId, ClientRecord]
    target: Model | None = None
    target_number: int = 0
    feedback: Feedback | None = None

    def after(self, version: Version, payload: bytes, history: int, n_bytes: int) -> ServerState:
        """With a new global version; ``history`` versions and ``n_bytes`` of payloads are kept."""
        number = version.number
        chain = {**self.chain, number: payload}
        surplus = _total(chain.values()) - n_bytes
        oldest = min(chain)
        while oldest < number and (surplus > 0 or len(chain) > MAX_PAYLOADS):
            surplus -= len(chain.pop(oldest))
            oldest += 1
        digests = {**self.digests, number: version.digest}
        return self._replace(
            current=version,
            versions=_keep_newest({**self.versions, number: version}, history),
            chain=chain,
            digests={n: digest for n, digest in digests.items() if n >= oldest - 1},
        )


class Made(NamedTuple):
    """What clients share of a global model where their downlinks are their own.

    Attributes:
        target: The global model.
        keyframe: Of it.
        first_downlink: What a client recovers that holds nothing but the initial model.
    """

    target: Model | None
    keyframe: bytes = b""
    first_downlink: Model | None = None


class ServerSession(Session):
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

    _state: ServerState

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
        if encoder.predictor == RULES["res2"] and sparsity is not None and sparsity >= 0.99:
            warnings.warn(
                f'downlink: predictor "res2" at sparsity={sparsity}: trainings collapsed with it'
                ' when measured; at 0.5 they did not (docs/predictors.md). "previous" is safe',
                UserWarning,
                stacklevel=3,
            )
        first = self._first_downlink()
        self._state = ServerState(first, {0: first}, {}, {0: first.digest}, {})
        if self._downlink_encoder.config.error_feedback:
            feedback = new_feedback(self._layout, self._downlink_encoder.roles)
            self._state = self._state._replace(feedback=feedback)
        self._keyframe_cache: dict[int, bytes] = {}  # by digest
        self._made = Made(None)

    @property
    def _current(self) -> Version:
        return self._state.current

    @property
    def _versions(self) -> dict[int, Version]:
        return self._state.versions

    @property
    def _clients(self) -> dict[ClientId, ClientRecord]:
        return self._state.clients

    @property
    def version(self) -> int:
        """How many global models have been given to :meth:`update`."""
        state = self._state
        return state.current.number if self._broadcast else state.target_number

    @property
    @synchronized
    def state(self) -> Any:
        """A copy of the global model, as all clients recover it.

        Where the downlink is different for every client: as it was given to :meth:`update`.
        """
        target = self._state.target
        model = model_of(self._current) if target is None else target
        return self._layout.state_of(self._layout.copy_of(model))

    @property
    @synchronized
    def clients(self) -> list[ClientId]:
        """The clients that something was sent to or received from."""
        return list(self._clients)

    @synchronized
    def forget(self, client_id: ClientId) -> None:
        """Drop what is kept of a client; if it comes back it is brought up by a keyframe.

        Args:
            client_id: The client; one that is not known is no error.

        Raises:
            TypeError: ``client_id`` is neither a str nor an integer.
        """
        self._clients.pop(client_name(client_id), None)

    def _entry(self, client_id: ClientId, client: ClientRecord) -> Assignments:
        """What replaces a client's record."""
        return [(self._clients, client_name(client_id), client)]

    def _enter(self, client_id: ClientId, client: ClientRecord) -> None:
        ((clients, name, record),) = self._entry(client_id, client)
        clients[name] = record

    @synchronized
    def memory(self) -> dict[str, int]:
        """Bytes held, by what for; docs/guide.md says what to expect.

        Returns:
            "global": models that all clients share; "clients": models kept for single ones;
            "payloads": payloads and keyframes kept to be sent; "feedback": what payloads have left
            out. Arrays that versions share count once.
        """
        state = self._state
        shared = _sizes(state.target)
        for version in [*state.versions.values(), self._initial]:
            for member in version.lineage(self._keep_down):
                shared |= _sizes(member.model)
        own: dict[int, int] = {}
        for client in state.clients.values():
            for version in [*client.uplinks.values(), *client.downlinks.values()]:
                for member in version.lineage(max(self._keep_down, self._keep_up)):
                    own |= _sizes(member.model)
        return {
            "global": sum(shared.values()),
            "clients": sum(size for array, size in own.items() if array not in shared),
            "payloads": _total(
                [*state.chain.values(), *self._keyframe_cache.values(), self._made.keyframe]
            ),
            "feedback": sum(f.nbytes for f in state.feedback or [] if f is not None),
        }

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
        if fresh and client.newest == 0 and client.known == Head(0, self._down_root):
            client = client.holding_other(0)
        client, data = self._message_for(client)
        self._enter(client_id, client)
        return data

    def _message_for(self, client: ClientRecord) -> tuple[ClientRecord, bytes]:
        """A client's record after a message was made, and the message. Changes nothing."""
        if self._broadcast:
            message = self._send_to_all(client)
        else:
            client, message = self._send_alone(client)
        return client, write_message(message)

    def _message(self, client: ClientRecord) -> Message:
        """An acknowledgement; as long as nothing has come from a client it says who this is."""
        identity = b"" if client.is_met else self._identity.data
        return Message(client.tag, ack=client.ack(), run=self._identity.check, identity=identity)

    def _send_to_all(self, client: ClientRecord) -> Message:
        message = self._message(client)
        chain = None if client.known is None else self._chain_since(client.known)
        if chain is None or self._is_long(chain):
            replaces = client.replaces if client.known is None else 0
            keyframes = self._keyframes(replaces)
            if chain is None or _total(chain) > sum(len(k.data) for k in keyframes):
                return message._replace(keyframes=keyframes)
        if chain:
            return message._replace(payloads=tuple(chain))
        return message._replace(head=Head(self._current.number, self._current.digest))

    def _client(self, client_id: ClientId) -> ClientRecord:
        """The client's record; a new one is not entered yet."""
        name = client_name(client_id)
        known = self._clients.get(name)
        return known or self._new_record(client_tag(name, self._run_digest))

    def _new_record(self, tag: int) -> ClientRecord:
        first = self._first_uplink()
        uplinks = {} if first is None else {0: first}
        downlinks = {}
        if not self._broadcast:
            downlinks = {0: Version(0, self._down_root, self._initial.model)}
        return ClientRecord(tag, Head(0, self._down_root), uplinks, downlinks)

    def _chain_since(self, known: Head) -> list[bytes] | None:
        """The payloads that follow on a version, if it is one of ours and they are all held."""
        state = self._state
        if state.digests.get(known.version) != known.digest:
            return None
        return [state.chain[n] for n in range(known.version + 1, state.current.number + 1)]

    def _is_long(self, chain: list[bytes]) -> bool:
        return len(chain) > 1 and KEYFRAME_PART * _total(chain) > self._layout.n_bytes

    def _keyframes(self, replaces: int) -> tuple[Keyframe, ...]:
        """The current version, and the history that the next payload needs."""
        versions = self._current.lineage(max(1, self._downlink_encoder.own_depth))
        self._keyframe_cache = {
            v.digest: self._keyframe_cache.get(v.digest)
            or encode_keyframe(self._layout.state_of(model_of(v)))
            for v in versions
        }
        return tuple(
            Keyframe(v.number, v.digest, replaces, self._keyframe_cache[v.digest])
            for v in reversed(versions)
        )

    def _send_alone(self, client: ClientRecord) -> tuple[ClientRecord, Message]:
        """A client's record after, and the message of, a downlink that is its own."""
        known, number = client.known, self._state.target_number
        if client.target != number or (known is None and not isinstance(client.sent, Keyframe)):
            client = self._encode_for(client)
        newest = client.downlinks[max(client.downlinks)]
        message = self._message(client)
        if known is not None and known.version == newest.number:
            return client, message._replace(head=Head(newest.number, newest.digest))
        if isinstance(client.sent, Keyframe):
            keyframe = client.sent._replace(replaces=client.replaces)
            return client, message._replace(keyframes=(keyframe,))
        return client, message._replace(payloads=(client.sent,))

    def _encode_for(self, client: ClientRecord) -> ClientRecord:
        """With the newest global model as the client's newest downlink."""
        state = self._state
        target = model_of(self._initial) if state.target is None else state.target
        made = self._made if self._made.target is target else Made(target)
        number = max(client.downlinks) + 1
        if client.known is None:
            data = made.keyframe or encode_keyframe(self._layout.state_of(target))
            self._made = made._replace(keyframe=data)
            digest = digest64(b"keyframe", number.to_bytes(8, "little"), data)
            sent: bytes | Keyframe = Keyframe(number, digest, client.replaces, data)
            version = Version(number, digest, target)
        else:
            base = client.downlinks[client.known.version]
            other = client.uplinks[max(client.uplinks)]
            # All clients that nothing has come from recover the same model: it is kept once.
            is_first = base.number == other.number == 0
            shared = made.first_downlink if is_first else None
            out = shared or self._layout.empty()
            sent = self._downlink_encoder.encode(
                target,
                tag=client.tag,
                number=number,
                base=base,
                other=other,
                keep=self._keep_down,
                out=None if shared else out,
                feedback=None,
            )
            if is_first:
                self._made = made._replace(first_downlink=out)
            version = Version(number, version_digest(sent), out, base)
            version = version.shortened(self._keep_down)
        downlinks = {**client.downlinks, number: version}
        known = client.known and client.known.version
        return client._replace(
            downlinks=_keep_newest(downlinks, self._history, known),
            target=state.target_number,
            sent=sent,
        )

    def _without_old(self, client: ClientRecord, target_number: int) -> ClientRecord:
        """A name that nothing has come from keeps no model and no payload of old."""
        if client.is_met or client.target > target_number - self._history:
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
        self._enter(client_id, client)
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
        self._enter(client_id, client)

    def _take_request(
        self, client_id: ClientId, request: bytes
    ) -> tuple[ClientRecord, Head, int | None]:
        """The client's record after, what it holds, and the digest of what it refused."""
        client = self._client(client_id)
        m = open_request(as_bytes(request, REQUEST), client.tag, self._identity)
        if m.head is None or m.ack is not None:
            raise PayloadError("payload: a server's request; it is for the client")
        client = client.holding(m.head, self._held_by(client, m.head.version))
        if client.known is None:
            client = client.holding_other(m.head.digest)
        return client, m.head, m.refused

    def _held_by(self, client: ClientRecord, number: int) -> int | None:
        """Digest of a global version that is still known here."""
        if self._broadcast:
            return self._state.digests.get(number)
        version = client.downlinks.get(number)
        return version.digest if version else None

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
        client, uplink = self._client(client_id), parse_uplink(data, self._identity)
        layout = self._layout
        targets = writable_views(out, layout.specs, layout.device) if out is not None else None
        try:
            pending = self._open(client, uplink)
            model = self._decode(client, pending)
        except StateMismatchError as error:
            raise StateMismatchError(str(error), self._request(client, data)) from None
        theirs = layout.copy_of(model) if self._keep_up and targets is None else model
        self._enter(client_id, self._after(client, pending, model))
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
        client, uplink = self._client(client_id), parse_uplink(data, self._identity)
        if uplink.payloads and client.seen[:1] == (version_digest(uplink.payloads[0]),):
            return False  # also if what it builds on is no longer held
        try:
            pending = self._open(client, uplink)
            if client.has_last(pending.number, pending.digest):
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
            entry = self._entry(client_id, self._after(client, pending, model))
            name = entry[0][1] if repeated == "replace" else None
            aggregator._add_from(name, source, again, weight, len(data), entry)
        except StateMismatchError as error:
            raise StateMismatchError(str(error), self._request(client, data)) from None
        return True

    def _open(self, client: ClientRecord, uplink: Message) -> PendingUplink:
        versions = self._versions if self._broadcast else client.downlinks
        return open_uplink(uplink, self._layout, client, versions)

    def _request(self, client: ClientRecord, refused: bytes) -> bytes:
        newest = self._current if self._broadcast else client.downlinks[max(client.downlinks)]
        request = self._message(client)._replace(
            is_request=True,
            head=Head(newest.number, newest.digest),
            refused=version_digest(refused) & LOW32,
        )
        return write_message(request)

    def _decode(self, client: ClientRecord, pending: PendingUplink) -> Model:
        if self._keep_up and client.has_last(pending.number, pending.digest):
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
        if client.has_last(pending.number, pending.digest):
            return client
        ours = self._held_by(client, pending.known.version)
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
        return client._replace(uplinks=_keep_newest(uplinks, self._history, base))

    # ---- state

    def _depends(self) -> dict[str, Any]:
        return {
            **super()._depends(),
            **self._downlink_encoder.depends(self._state.feedback is not None),
        }

    def _fields(self) -> dict[str, Any]:
        state = self._state
        return {
            "current": state.current,
            "versions": state.versions,
            "chain": state.chain,
            "digests": state.digests,
            "target": state.target,
            "target_number": state.target_number,
            "feedback": state.feedback,
            "clients": records_to_fields(state.clients, self._new_record),
        }

    def _checked(self, saved: Any, tensors: Tensors) -> ServerState:
        fields = checked_fields(
            saved,
            {
                "current": tensors.version(),
                "versions": tensors.versions(at_most=self._history),
                "chain": table(NUMBER, BYTES),
                "digests": table(NUMBER, BITS64),
                "target": optional(tensors.model),
                "target_number": NUMBER,
                "feedback": tensors.kept_feedback(
                    self._downlink_encoder.roles, self._state.feedback is not None
                ),
                "clients": records_check(tensors, self._history, self._new_record),
            },
        )
        current, chain, digests = fields["current"], fields["chain"], fields["digests"]
        require(fields["versions"].get(current.number) is current, "versions")
        require(max(fields["versions"]) == current.number, "versions")
        first = current.number - len(chain)
        require(sorted(chain) == list(range(first + 1, current.number + 1)), "chain")
        require(len(chain) <= MAX_PAYLOADS, "chain")
        require(sorted(digests) == list(range(first, current.number + 1)), "digests")
        made = {n: version_digest(payload) for n, payload in chain.items()} | {
            current.number: current.digest
        }
        require(made.items() <= digests.items(), "digests")
        is_newer = fields["target_number"] > 0
        require((fields["target"] is not None) == is_newer, "target")
        require(not (self._broadcast and is_newer), "target_number")
        require(self._broadcast or current.number == 0, "current")
        try:
            for payload in chain.values():
                ParsedPayload(payload, self._layout)
            for name, client in fields["clients"].items():
                require(client.tag == client_tag(name, self._run_digest), "tag")
                check_record(
                    client,
                    self._layout,
                    own_downlinks=not self._broadcast,
                    keeps_models=self._keep_up > 0,
                )
        except CodecError as error:
            raise ValueError(f"state_dict: {error}") from error
        return ServerState(**fields)


def _keep_newest(
    versions: dict[int, Version], n: int, always: int | None = None
) -> dict[int, Version]:
    """The newest ``n``, and the one numbered ``always``."""
    dropped = set(sorted(versions)[: max(0, len(versions) - n)]) - {always}
    return {number: version for number, version in versions.items() if number not in dropped}


def _sizes(model: Model | None) -> dict[int, int]:
    """Bytes by array: versions share them."""
    return {id(array): array.nbytes for array in model or []}


def _total(payloads: Iterable[bytes]) -> int:
    return sum(map(len, payloads))
