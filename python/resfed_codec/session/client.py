"""ClientSession: a client's end of both directions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from resfed_codec.codec.keyframe import encode_keyframe
from resfed_codec.codec.native_call import Assignments, Plan
from resfed_codec.codec.payload import MESSAGE, UPDATE, as_bytes
from resfed_codec.config import CodecConfig
from resfed_codec.errors import PayloadError, StateMismatchError
from resfed_codec.locking import synchronized
from resfed_codec.session.base import LOW32, ClientId, client_tag
from resfed_codec.session.client_state import ClientBase, ClientState, SentUplink
from resfed_codec.stream.link import digest64, version_digest
from resfed_codec.stream.message import (
    MAX_AHEAD,
    Keyframe,
    Message,
    VersionId,
    check_ahead,
    is_message,
    read_message,
    write_message,
)
from resfed_codec.stream.stream import open_keyframes
from resfed_codec.stream.versions import (
    OWN,
    ParsedPayload,
    Version,
    model_of,
    new_feedback,
)
from resfed_codec.tensors.layout import State
from resfed_codec.tensors.torch_tensors import untraced


class PendingDownlink(NamedTuple):
    """A message whose order and bases have been checked, its last payload not yet decoded.

    Attributes:
        version: The global version that it leads to.
        oldest: Number of the oldest version that is still to be held.
        finish: Fills the version's model, if that is left to do, and makes the assignments of a
            plan in one step with it.
    """

    version: Version
    oldest: int
    finish: Callable[[Plan], None]


class ClientSession(ClientBase):
    """A client: receives global models, sends local ones.

    Args:
        initial_state: The model that server and client start from. A client that has another one
            is brought up by a keyframe. Where it is on a CUDA device, so is what the session holds
            and returns (docs/gpu.md); the server's may be on another.
        uplink, downlink: The server's configurations. Of the downlink only the predictor matters
            here.
        run: A name for the run; ends with different names refuse each other's messages.
        history: Global models kept, as by the server; and, with predictors that look at a client's
            own models, models of uplinks kept while it is not known whether they arrived.
        client_id: The server's name for this client; by default it is learned from the first
            answer to an uplink.

    With error feedback what has not arrived is kept, as payloads, until the server tells: no more
    bytes than the model has, at least 64 KiB. What would go beyond that counts as lost if the
    server has acknowledged others since, else as arrived.

    Several threads may call at once; their calls take turns. An exception at any point of a call,
    as KeyboardInterrupt, leaves the session as it was, or as it is after the call.

    Raises:
        TypeError, ValueError: As :class:`ServerSession`.
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
        client_id: ClientId | None = None,
    ) -> None:
        super().__init__(initial_state, uplink, downlink, run, history)
        tag = 0 if client_id is None else client_tag(client_id, self._run_digest)
        self._given_tag, first = tag, self._first_downlink()
        self._state = ClientState(tag, tag > 0, first, {0: first}, self._first_uplink(), {})
        wanted = self._uplink_encoder.config.error_feedback
        if wanted or (wanted is None and self._uplink_encoder.own_depth == 0):
            feedback = new_feedback(self._layout, self._uplink_encoder.roles)
            self._state = self._state._replace(feedback=feedback)
        # Where the prediction is the global model itself, the payload is what it contributes.
        self._needs_models = (
            self._state.feedback is not None and not self._uplink_encoder.copies_other
        )

    # ---- downlink

    @synchronized
    def receive(self, message: bytes, *, copy: bool = True, out: Any = None) -> Any:
        """The recovered global model, after a message of :meth:`ServerSession.send`.

        A message that brings nothing new gives the model that is held.

        Args:
            message: From ``send`` or ``answer`` of the server, or the payload that its ``update``
                returned.
            copy: False returns the session's own memory, valid until the next call and read-only
                where the array type can say so.
            out: Arrays of the same layout to write into.

        Raises:
            PayloadError: The message is damaged, truncated, or of another kind.
            StateMismatchError: It does not follow on what is held, is older, or is for another
                client: says what is held and what came. ``request``, if not empty, is for
                :meth:`ServerSession.answer`, whose message then can be received.

        After any error nothing has changed.
        """
        data = as_bytes(message, UPDATE, MESSAGE)
        m = self._parse(data)
        if self._state.named and m.tag != self._tag:
            raise StateMismatchError("payload: a message for another client")
        output = self._output(copy=copy, out=out)
        try:
            pending = self._open(m)
            after = self._after(m, pending)
            pending.finish(lambda: [(self, "_state", after)])
        except StateMismatchError as error:
            raise StateMismatchError(str(error), self._request(data)) from None
        return output(model_of(pending.version))

    def _parse(self, data: bytes) -> Message:
        """The message that a downlink is, or one around a bare payload."""
        if not is_message(data):
            return Message(self._tag, payloads=(data,))
        m = read_message(data)
        if m.ack is None:
            raise PayloadError("payload: this message is not from a server's session")
        self._identity.require_same(m)
        return m

    def _after(self, m: Message, pending: PendingDownlink) -> ClientState:
        """The state that a message leads to."""
        state, version = self._state, pending.version
        if m.keyframes and state.down.number == 0:
            state = state._replace(acknowledged=None)  # the server may have started elsewhere
        held = {**state.held, version.number: version}
        for number in sorted(held):
            stale = number < pending.oldest or number > version.number
            surplus = len(held) > self._history and number not in (pending.oldest, version.number)
            if stale or surplus:
                del held[number]
        state = state._replace(tag=m.tag, confirmed=True, down=version, held=held)
        return state if m.ack is None else self._after_ack(state, m.ack)

    def _open(self, m: Message) -> PendingDownlink:
        """Check a message and decode all its payloads but the last. Changes nothing."""
        current = self._down
        if m.ack is not None:
            check_ahead("the acknowledged uplink", m.ack.newest, self._state.number)
        unchanged = PendingDownlink(current, 0, _commit)
        if m.keyframes:
            return self._open_keyframes(m.keyframes)
        if not m.payloads:
            if m.head is None or m.head.digest != current.digest:
                raise self._mismatch(m.head.version if m.head else 0, "the message brings nothing")
            return unchanged
        parsed = [ParsedPayload(payload, self._layout) for payload in m.payloads]
        if parsed[-1].digest == current.digest:
            return unchanged
        newer = [p for p in parsed if p.link.version > current.number]
        if not newer:
            raise self._mismatch(parsed[-1].link.version, "that is not newer")
        version, decode = self._open_payload(newer[0], m.tag, current, alone=len(newer) == 1)
        for payload in newer[1:]:
            decode(None)
            version, decode = self._open_payload(payload, m.tag, version, alone=False)
        oldest = version.number if self._broadcast else newer[0].link.base or 0
        return PendingDownlink(version, oldest, decode)

    def _open_payload(
        self, payload: ParsedPayload, tag: int, latest: Version, *, alone: bool
    ) -> tuple[Version, Callable[[Plan | None], None]]:
        """The version that a payload makes, and what decodes it."""
        link = payload.link
        check_ahead("version", link.version, latest.number)
        base = latest if link.base == latest.number else self._held.get(link.base or 0)
        other = None if link.other is None else self._own_version(link.other)
        if link.other is not None and other is None:
            raise self._mismatch(link.version, f"it builds on uplink {link.other}, not held here")
        payload_tag = 0 if self._broadcast else tag
        if base is None:
            raise self._mismatch(link.version, f"it is {link}")
        if not payload.builds_on(payload_tag, base, other):
            why = f"it is {link}, of another run, layout or client, or of other values"
            raise self._mismatch(link.version, why)
        # A chain may fail further on, so the held model is updated in place by a single payload.
        spare = alone or base is not self._down
        in_place = spare and self._only_newest_counts and payload.copies(OWN)
        out = model_of(base) if in_place else self._layout.empty()
        version = Version(link.version, payload.digest, out, base).shortened(self._keep_down)
        return version, partial(payload.decode, self._layout, base, other, out)

    @property
    def _only_newest_counts(self) -> bool:
        """Whether nothing looks behind the newest global model."""
        shallow = self._keep_down == 1 and self._keep_up == 0
        return self._broadcast and shallow and not self._needs_models

    def _open_keyframes(self, keyframes: tuple[Keyframe, ...]) -> PendingDownlink:
        current, newest = self._down, keyframes[-1]
        check_ahead("a keyframe of version", newest.version, current.number)
        if newest.digest == current.digest:
            return PendingDownlink(current, 0, _commit)
        newer = newest.version > current.number or current.number == 0
        if not newer and newest.replaces != current.digest:
            raise self._mismatch(newest.version, "that keyframe is not newer")
        return PendingDownlink(open_keyframes(self._layout, keyframes), newest.version, _commit)

    def _mismatch(self, came: int, why: str) -> StateMismatchError:
        return StateMismatchError(
            f"payload: leads to global version {came}, while {self._down} is held here: {why}"
        )

    def _request(self, refused: bytes) -> bytes:
        digest = version_digest(refused) & LOW32
        return write_message(self._status()._replace(refused=digest))

    @synchronized
    def acknowledge(self) -> bytes:
        """What is held, for :meth:`ServerSession.acknowledged`.

        An uplink says so too; this is for a client that has received and has nothing to send.
        """
        return write_message(self._status())

    def _status(self) -> Message:
        """What is held here."""
        message = self._message(self._tag if self._state.named else 0)
        return message._replace(is_request=True, head=self._head)

    def _message(self, tag: int) -> Message:
        """A message without contents; it has the identity until the server is known to share it."""
        return self._empty_message(tag, with_identity=not self._state.confirmed)

    @property
    def _head(self) -> VersionId:
        return VersionId(self._down.number, self._down.digest)

    # ---- uplink

    @synchronized
    def send(self, local_state: State) -> bytes:
        """A payload for :meth:`ServerSession.receive` that carries ``local_state``.

        As long as nothing has been received it comes in a message that names the run and the
        tensors, so that a server with others can say what differs.

        It builds on the global model that is held, and, with predictors that look at the client's
        own models, on the last one known to have arrived.

        Args:
            local_state: A model of the initial state's names, shapes and dtypes.

        Raises:
            TypeError, ValueError: As :func:`resfed_codec.encode`; nothing has changed then.
        """
        current = self._layout.model_of(local_state, "local_state")
        before = self._with_room(self._state)
        number, base, keep = before.number + 1, before.acknowledged, self._keep_up
        out = self._layout.empty() if keep or self._needs_models else None

        def commit(payload: bytes) -> Assignments:
            version = Version(number, version_digest(payload), out, base).shortened(keep)
            start = before.down if self._needs_models else None
            sent = SentUplink(version, wrapped(payload), payload, self._head, start)
            return [(self, "_state", before.with_sent(sent))]

        def wrapped(payload: bytes) -> bytes:
            if before.confirmed:
                return payload
            return write_message(self._message(before.tag)._replace(payloads=(payload,)))

        payload = self._uplink_encoder.encode(
            current,
            tag=before.tag,
            number=number,
            base=base,
            other=before.down,
            keep=max(1, keep),
            out=out,
            feedback=before.feedback,
            commit=commit,
        )
        return wrapped(payload)

    @synchronized
    def answer(self, request: bytes) -> bytes:
        """What a server that refused an uplink can receive instead.

        That is the last uplink once more, or, if just that one was refused, its recovered model as
        a keyframe.

        Args:
            request: The ``request`` of the server's StateMismatchError.

        Raises:
            PayloadError: The bytes are no request, or damaged.
            StateMismatchError: The request is for another client, or there is no update that could
                be sent again: train and ``send``, which will be understood, because what the
                request says of the server is remembered all the same.
        """
        state = self._state
        tag = state.tag if state.named else 0
        m = self._read_request(request, tag, "client")
        if m.ack is None:
            raise PayloadError("payload: a client's request; it is for the server")
        check_ahead("the acknowledged uplink", m.ack.newest, state.number)
        refused = {
            n for n, s in state.sent.items() if version_digest(s.message) & LOW32 == m.refused
        }
        state = state._replace(confirmed=True)
        if not state.named:
            state = state._replace(tag=m.tag)  # the uplink may have been given in another's name
        state = self._after_ack(state, m.ack, certain=True)
        if not state.sent:
            self._state = state
            raise StateMismatchError("payload: a request, but no update waits to be sent again")
        last = state.sent[max(state.sent)]
        is_astray = state.number > m.ack.newest + MAX_AHEAD  # by acknowledgements that were forged
        if last.version.number not in refused and not is_astray:
            self._state = state
            return last.message
        number = 1 + (m.ack.newest if is_astray else state.number)
        try:
            again = self._keyframe(state, last, number)
        except StateMismatchError:
            self._state = state
            raise
        others = {n: s for n, s in state.sent.items() if s is not last}
        lost = [s for n, s in others.items() if n > number]
        state = state._replace(
            sent={n: s for n, s in others.items() if n < number},
            feedback=self._with_lost(state.feedback, lost),
        )
        self._state = state.with_sent(again)
        return again.message

    def _keyframe(self, state: ClientState, last: SentUplink, number: int) -> SentUplink:
        """The last uplink as a keyframe, which makes version ``number``."""
        model = last.version.model
        if model is None:
            if last.is_keyframe or last.global_version != self._head:
                raise StateMismatchError(
                    "payload: a request for an update whose global model has been replaced here"
                )
            model = self._layout.empty()
            ParsedPayload(last.payload, self._layout).decode(self._layout, None, self._down, model)
        data = encode_keyframe(self._layout.state_of(model))
        digest = digest64(b"keyframe", number.to_bytes(8, "little"), data)
        keyframe = Keyframe(number, digest, 0, data)
        message = write_message(
            self._message(state.tag)._replace(head=self._head, keyframes=(keyframe,))
        )
        kept = model if self._keep_up or self._needs_models else None
        return last._replace(version=Version(number, digest, kept), message=message)


def _commit(plan: Plan) -> None:
    """For a message that has nothing to decode."""
    for target, name, value in plan():
        setattr(target, name, value)
