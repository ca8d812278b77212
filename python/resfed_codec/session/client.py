"""ClientSession: what a client receives from its server and sends to it.

client_state.py has what it holds, and which of its uplinks have arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, overload

import numpy as np

from resfed_codec.codec.keyframe import encode_keyframe
from resfed_codec.codec.native_call import Assignments, Plan
from resfed_codec.codec.payload import MESSAGE, UPDATE, as_bytes
from resfed_codec.codec.update import Payload, same_memory
from resfed_codec.config import CodecConfig
from resfed_codec.errors import PayloadError, StateMismatchError
from resfed_codec.locking import synchronized
from resfed_codec.notices import warn
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
from resfed_codec.stream.predictor import PREDICTORS
from resfed_codec.stream.stream import open_keyframes
from resfed_codec.stream.versions import (
    OWN,
    Model,
    ParsedPayload,
    Part,
    Version,
    model_of,
    new_feedback,
)
from resfed_codec.tensors.layout import ArrayT, Out, OutT, State, StateT
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


class ClientSession(ClientBase[StateT]):
    """A client: receives global models and sends local models.

    Args:
        initial_state: The model that server and client start from; a client that has another model
            gets a keyframe. If it is on a CUDA device, so is what the session holds and returns
            (docs/gpu.md); the server may use another device.
        uplink, downlink: The server's configurations; of ``downlink``, only the predictor matters.
        run: A name for the run; ends with different names refuse each other's messages.
        history: Number of global models kept, as by the server; and, with predictors that read the
            client's own models, of models kept of uplinks that are not acknowledged yet.
        client_id: The server's name for this client; by default the client learns it from the first
            answer to an uplink.

    With error feedback the client keeps the payloads of its uplinks until the server acknowledges
    them: at most the model's size in bytes, or 64 KiB if the model is smaller. If it has to drop
    one, that uplink counts as lost if the server has acknowledged later ones, else as arrived.

    Several threads may call the methods; a lock serializes the calls. An exception at any point of
    a call, such as KeyboardInterrupt, leaves the session as before or as after the call.

    Raises:
        TypeError, ValueError: As :class:`ServerSession`.
    """

    @overload
    def __init__(
        self: ClientSession[dict[str, ArrayT]],
        initial_state: Mapping[str, ArrayT],
        uplink: CodecConfig | None = ...,
        downlink: CodecConfig | None = ...,
        *,
        run: str = ...,
        history: int = ...,
        client_id: ClientId | None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self: ClientSession[list[ArrayT]],
        initial_state: Sequence[ArrayT],
        uplink: CodecConfig | None = ...,
        downlink: CodecConfig | None = ...,
        *,
        run: str = ...,
        history: int = ...,
        client_id: ClientId | None = ...,
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
        client_id: ClientId | None = None,
    ) -> None:
        super().__init__(initial_state, uplink, downlink, run, history)
        tag = 0 if client_id is None else client_tag(client_id, self._run_digest)
        self._given_tag, first = tag, self._first_downlink()
        self._state = ClientState(tag, tag > 0, first, {0: first}, self._first_uplink(), {})
        if self._feeds_back_up:
            feedback = new_feedback(self._layout, self._uplink_encoder.roles)
            self._state = self._state._replace(feedback=feedback)
        # If the prediction is the global model itself, the payload is what an uplink contributes.
        self._needs_models = (
            self._state.feedback is not None
            and self._uplink_encoder.predictor != PREDICTORS["global"]
        )

    # ---- downlink

    @overload
    def receive(self, message: Payload, *, out: OutT) -> OutT: ...
    @overload
    def receive(self, message: Payload, *, copy: bool = ...) -> StateT: ...
    @synchronized  # type: ignore[misc]  # mypy does not match decorated overloads
    def receive(self, message: Payload, *, copy: bool = True, out: Out | None = None) -> Any:
        """The recovered global model, after a message of :meth:`ServerSession.send`.

        If the message has nothing new, the result is the current model.

        Args:
            message: From ``send`` or ``answer`` of the server, or the payload that its ``update``
                returned.
            copy: False returns the session's own memory, valid until the next call and read-only
                if the array type supports that.
            out: Arrays of the same layout to write into.

        Raises:
            PayloadError: The message is damaged, truncated, or of another kind.
            StateMismatchError: The message does not build on a version that the client holds, is
                older, or is for another client; the error says which. Its ``request``, if not
                empty, is for :meth:`ServerSession.answer`, which returns a message to receive
                instead.

        After any error nothing has changed.
        """
        data = as_bytes(message, UPDATE, MESSAGE)
        m = self._parse(data)
        if self._state.named and m.tag != self._state.tag:
            raise StateMismatchError("payload: a message for another client")
        output = self._output(copy=copy, out=out, read_only=not copy)
        try:
            pending = self._open(m)
            after = self._after(m, pending)
            pending.finish(lambda: [(self, "_state", after)])
        except StateMismatchError as error:
            raise StateMismatchError(str(error), self._request(data)) from None
        self._traffic.add("down", len(data), keyframe=bool(m.keyframes))
        return output(model_of(pending.version))

    def _parse(self, data: bytes) -> Message:
        """The message that a downlink is, or one around a bare payload."""
        if not is_message(data):
            return Message(self._state.tag, payloads=(data,))
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
        """Check a message and decode all its payloads but the last. The state does not change."""
        current = self._state.down
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
        """The version that a payload makes, and a function that decodes it."""
        link = payload.link
        check_ahead("version", link.version, latest.number)
        base = latest if link.base == latest.number else self._state.held.get(link.base or 0)
        other = None if link.other is None else self._own_version(link.other)
        if link.other is not None and other is None:
            raise self._mismatch(link.version, f"it builds on uplink {link.other}, not held here")
        payload_tag = 0 if self._broadcast else tag
        if base is None:
            raise self._mismatch(link.version, f"it is {link}")
        if not payload.builds_on(payload_tag, base, other):
            why = f"it is {link}, of another run, layout or client, or of other values"
            raise self._mismatch(link.version, why)
        # A later payload of a chain may fail, so only a single payload updates the model in place.
        spare = alone or base is not self._state.down
        in_place = spare and self._only_newest_counts and payload.copies(OWN)
        out = model_of(base) if in_place else self._layout.empty()
        version = Version(link.version, payload.digest, out, base).shortened(self._keep_down)
        return version, partial(payload.decode, self._layout, base, other, out)

    @property
    def _only_newest_counts(self) -> bool:
        """Whether nothing reads a global model before the newest one."""
        shallow = self._keep_down == 1 and self._keep_up == 0
        return self._broadcast and shallow and not self._needs_models

    def _open_keyframes(self, keyframes: tuple[Keyframe, ...]) -> PendingDownlink:
        current, newest = self._state.down, keyframes[-1]
        check_ahead("a keyframe of version", newest.version, current.number)
        if newest.digest == current.digest:
            return PendingDownlink(current, 0, _commit)
        newer = newest.version > current.number or current.number == 0
        if not newer and newest.replaces != current.digest:
            raise self._mismatch(newest.version, "that keyframe is not newer")
        return PendingDownlink(open_keyframes(self._layout, keyframes), newest.version, _commit)

    def _mismatch(self, came: int, why: str) -> StateMismatchError:
        return StateMismatchError(
            f"payload: leads to global version {came}, while {self._state.down} is held here: {why}"
        )

    def _request(self, refused: bytes) -> bytes:
        digest = version_digest(refused) & LOW32
        return write_message(self._status()._replace(refused=digest))

    @synchronized
    def acknowledge(self) -> bytes:
        """Bytes for :meth:`ServerSession.acknowledged` that say what the client holds.

        Uplinks say it, too; this is for a client that has received but has nothing to send.
        """
        data = write_message(self._status())
        self._traffic.add("up", len(data), n_messages=0, keyframe=False)
        return data

    def _status(self) -> Message:
        """A message that says what the client holds."""
        message = self._message(self._state.tag if self._state.named else 0)
        return message._replace(is_request=True, head=self._head)

    def _message(self, tag: int) -> Message:
        """A message without contents; it has the identity until the server is known to share it."""
        return self._empty_message(tag, with_identity=not self._state.confirmed)

    @property
    def _head(self) -> VersionId:
        return VersionId(self._state.down.number, self._state.down.digest)

    # ---- uplink

    @synchronized
    def send(self, local_state: State) -> bytes:
        """A payload for :meth:`ServerSession.receive` that carries ``local_state``.

        Until the client has received something, the payload comes in a message that names the run
        and the tensors, so that a server with others can say what differs.

        The payload builds on the current global model, and, with predictors that read the client's
        own models, on the last one that the server has acknowledged.

        Args:
            local_state: A model of the initial state's names, shapes and dtypes.

        Raises:
            TypeError, ValueError: As :func:`resfed_codec.encode`; nothing has changed then.

        Warns:
            UserWarning: ``local_state`` is the session's own memory, of ``receive(copy=False)``; or
                as :func:`resfed_codec.encode` of tensors.
        """
        current = self._layout.model_of(local_state, "local_state")
        self._warn_if_own(current)
        return self._send(current)

    @synchronized
    def _send_part(self, local_state: Mapping[str, Any]) -> bytes:
        """As :meth:`send` of a model that lacks tensors: the global model's take their place.

        Their error feedback stays as it is.
        """
        return self._send(self._layout.part_of(local_state, "local_state"))

    def _send(self, current: Part) -> bytes:
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
        message = wrapped(payload)
        self._traffic.add("up", len(message), keyframe=False)
        return message

    def _warn_if_own(self, model: Model) -> None:
        """Warn of a model that ``receive(copy=False)`` returned, if it can be written to."""
        writable = any(not isinstance(a, np.ndarray) or a.flags.writeable for a in model)
        if writable and same_memory(model, model_of(self._state.down)):
            warn(
                "local_state: the session's own memory, as receive(copy=False) returned it. If it"
                " was trained in place, the session's global model has changed as well, and the"
                " ends no longer hold the same: train a copy"
            )

    @synchronized
    def answer(self, request: bytes) -> bytes:
        """Bytes that a server that refused an uplink can receive instead.

        They are the last uplink again, or, if that is the one that was refused, its recovered model
        as a keyframe.

        Args:
            request: The ``request`` of the server's StateMismatchError.

        Raises:
            PayloadError: The bytes are not a request, or damaged.
            StateMismatchError: The request is for another client, or there is no uplink to send
                again. In the second case the client has still recorded what the request says of
                the server, so train and ``send``: the server will accept that.
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
            # The uplink may have been received under another name.
            state = state._replace(tag=m.tag)
        state = self._after_ack(state, m.ack, certain=True)
        if not state.sent:
            self._state = state
            raise StateMismatchError("payload: a request, but no update waits to be sent again")
        last = state.sent[max(state.sent)]
        is_too_far_ahead = state.number > m.ack.newest + MAX_AHEAD  # after forged acknowledgements
        if last.version.number not in refused and not is_too_far_ahead:
            self._state = state
            self._traffic.add("up", len(last.message), keyframe=False)
            return last.message
        number = 1 + (m.ack.newest if is_too_far_ahead else state.number)
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
        self._traffic.add("up", len(again.message), keyframe=True)
        return again.message

    def _keyframe(self, state: ClientState, last: SentUplink, number: int) -> SentUplink:
        """The last uplink as a keyframe, which makes version ``number``."""
        model = last.version.model
        if model is None:
            payload = ParsedPayload(last.payload, self._layout)
            if (payload.digest, last.global_version) != (last.version.digest, self._head):
                raise StateMismatchError(
                    "payload: a request for an update whose global model has been replaced here"
                )
            model = self._layout.empty()
            payload.decode(self._layout, None, self._state.down, model)
        data = encode_keyframe(self._layout.state_of(model))
        digest = digest64(b"keyframe", number.to_bytes(8, "little"), data)
        keyframe = Keyframe(number, digest, 0, data)
        message = write_message(
            self._message(state.tag)._replace(head=self._head, keyframes=(keyframe,))
        )
        kept = model if self._keep_up or self._needs_models else None
        return last._replace(version=Version(number, digest, kept), message=message)


def _commit(plan: Plan) -> None:
    """Make a plan's assignments, for a message without a payload to decode."""
    for target, name, value in plan():
        setattr(target, name, value)
