"""ClientSession: a client's end of both directions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from resfed_codec.codec.keyframe import encode_keyframe
from resfed_codec.codec.payload import MESSAGE, REQUEST, UPDATE, as_bytes
from resfed_codec.codec.update import copy_into, writable_views
from resfed_codec.config import CodecConfig
from resfed_codec.errors import CodecError, PayloadError, StateMismatchError
from resfed_codec.locking import synchronized
from resfed_codec.session.base import LOW32, ClientId, Session, client_tag, open_request
from resfed_codec.stream.link import digest64, version_digest
from resfed_codec.stream.message import (
    MAX_AHEAD,
    Ack,
    Head,
    Keyframe,
    Message,
    check_ahead,
    is_message,
    read_message,
    write_message,
)
from resfed_codec.stream.schema import (
    BITS64,
    BYTES,
    FLAG,
    HEAD,
    NUMBER,
    Tensors,
    checked_fields,
    optional,
    require,
    row,
    several,
)
from resfed_codec.stream.stream import open_keyframes
from resfed_codec.stream.versions import (
    OWN,
    Feedback,
    ParsedPayload,
    Version,
    differences,
    filled,
    model_of,
    new_feedback,
    special_of,
    sum_of,
    with_values,
)
from resfed_codec.tensors.device import Assignments, Plan
from resfed_codec.tensors.layout import State
from resfed_codec.tensors.torch_tensors import untraced

MIN_PENDING_BYTES = 1 << 16
"""Of uplinks whose fate is unknown a client with error feedback keeps as many bytes as a model
has, or this many if the model is smaller."""


class Sent(NamedTuple):
    """An uplink whose fate is unknown.

    Attributes:
        version: What it makes; with its model where that may be asked for.
        message: As it was sent.
        payload: What it contributes: the residual, or what a keyframe was made of.
        global_version: The global model that it was trained from.
        start: The same with its model, where the payload alone does not tell the contribution: it
            is the recovered model minus this one.
        missed: Whether the server has acknowledged others since, and not this one.
    """

    version: Version
    message: bytes
    payload: bytes
    global_version: Head
    start: Version | None = None
    missed: bool = False

    @property
    def is_keyframe(self) -> bool:
        return self.version.digest != version_digest(self.payload)


class ClientState(NamedTuple):
    """All that changes of a client's session; calls replace it as a whole, its mappings too.

    Attributes:
        tag: Stands for the client in messages and digests; 0 as long as it has no name.
        heard: Whether anything of the server has been understood, so that it has the same layout
            and run.
        named: Whether the tag is certain: given, or that of an answer to an uplink. Until then it
            is that of the last message, which may have been for another client.
        down: The newest global version.
        held: Global versions that the server may build on, by number.
        acknowledged: The last own version known to have arrived, where its model is kept.
        sent: Uplinks whose fate is unknown, by number, oldest first.
        number: Of the last uplink.
        feedback: What uplinks have left out; its arrays are updated in place, in one step with the
            replacement.
    """

    tag: int
    named: bool
    down: Version
    held: dict[int, Version]
    acknowledged: Version | None
    sent: dict[int, Sent]
    heard: bool = False
    number: int = 0
    feedback: Feedback | None = None


class Following(NamedTuple):
    """Where a message leads.

    ``finish`` fills the version's model where that is still to be done, and makes what a plan says
    in one step with it.
    """

    version: Version
    oldest: int
    finish: Callable[[Plan], None]


class ClientSession(Session):
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

    _state: ClientState

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

    @property
    def _tag(self) -> int:
        return self._state.tag

    @property
    def _down(self) -> Version:
        return self._state.down

    @property
    def _held(self) -> dict[int, Version]:
        return self._state.held

    @property
    def _sent(self) -> dict[int, Sent]:
        return self._state.sent

    @property
    def version(self) -> int:
        """Number of the global model that is held."""
        return self._down.number

    @property
    @synchronized
    def state(self) -> Any:
        """A copy of the recovered global model, of the initial state's kind."""
        return self._layout.state_of(self._layout.copy_of(model_of(self._down)))

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
        m = self._message_of(data)
        if self._state.named and m.tag != self._tag:
            raise StateMismatchError("payload: a message for another client")
        layout = self._layout
        targets = writable_views(out, layout.specs, layout.device) if out is not None else None
        mine = layout.empty() if copy and targets is None else None  # while it may fail
        try:
            following = self._follow(m)
            after = self._after(m, following)
            following.finish(lambda: [(self, "_state", after)])
        except StateMismatchError as error:
            raise StateMismatchError(str(error), self._request(data)) from None
        version = following.version
        model = model_of(version)
        if targets is not None:
            return copy_into(targets, model, out)
        if mine is None:
            return layout.state_of(model, read_only=True)
        return layout.state_of(filled(mine, model))

    def _message_of(self, data: bytes) -> Message:
        if not is_message(data):
            return Message(self._tag, payloads=(data,))
        m = read_message(data)
        if m.ack is None:
            raise PayloadError("payload: this message is not from a server's session")
        self._identity.require_same(m)
        return m

    def _after(self, m: Message, following: Following) -> ClientState:
        """The state that a message leads to."""
        state, version = self._state, following.version
        if m.keyframes and state.down.number == 0:
            state = state._replace(acknowledged=None)  # the server may have started elsewhere
        held = {**state.held, version.number: version}
        for number in sorted(held):
            stale = number < following.oldest or number > version.number
            surplus = len(held) > self._history and number not in (following.oldest, version.number)
            if stale or surplus:
                del held[number]
        state = state._replace(tag=m.tag, heard=True, down=version, held=held)
        return state if m.ack is None else self._settled(state, m.ack)

    def _follow(self, m: Message) -> Following:
        """Where a message leads. Changes nothing."""
        current = self._down
        if m.ack is not None:
            check_ahead("the acknowledged uplink", m.ack.newest, self._state.number)
        unchanged = Following(current, 0, _make)
        if m.keyframes:
            return self._open_keyframes(m.keyframes)
        if not m.payloads:
            if m.head is None or m.head.digest != current.digest:
                raise self._mismatch(m.head.version if m.head else 0, "the message brings nothing")
            return unchanged
        parsed = [ParsedPayload(payload, self._layout) for payload in m.payloads]
        if parsed[-1].digest == current.digest:
            return unchanged
        newer = [o for o in parsed if o.link.version > current.number]
        if not newer:
            raise self._mismatch(parsed[-1].link.version, "that is not newer")
        version, decode = self._apply(newer[0], m.tag, current, alone=len(newer) == 1)
        for o in newer[1:]:
            decode(None)
            version, decode = self._apply(o, m.tag, version, alone=False)
        oldest = version.number if self._broadcast else newer[0].link.base or 0
        return Following(version, oldest, decode)

    def _apply(
        self, o: ParsedPayload, tag: int, latest: Version, *, alone: bool
    ) -> tuple[Version, Callable[[Plan | None], None]]:
        """The version that a payload makes, and what decodes it."""
        link = o.link
        check_ahead("version", link.version, latest.number)
        base = latest if link.base == latest.number else self._held.get(link.base or 0)
        other = None if link.other is None else self._own_version(link.other)
        if link.other is not None and other is None:
            raise self._mismatch(link.version, f"it builds on uplink {link.other}, not held here")
        payload_tag = 0 if self._broadcast else tag
        if base is None:
            raise self._mismatch(link.version, f"it is {link}")
        if not o.builds_on(payload_tag, base, other):
            why = f"it is {link}, of another run, layout or client, or of other values"
            raise self._mismatch(link.version, why)
        # A chain may fail further on, so the held model is updated in place by a single payload.
        spare = alone or base is not self._down
        in_place = spare and self._only_newest_counts and o.copies(OWN)
        out = model_of(base) if in_place else self._layout.empty()
        version = Version(link.version, o.digest, out, base).shortened(self._keep_down)
        return version, partial(o.decode, self._layout, base, other, out)

    @property
    def _only_newest_counts(self) -> bool:
        """Whether nothing looks behind the newest global model."""
        shallow = self._keep_down == 1 and self._keep_up == 0
        return self._broadcast and shallow and not self._needs_models

    def _open_keyframes(self, keyframes: tuple[Keyframe, ...]) -> Following:
        current, newest = self._down, keyframes[-1]
        check_ahead("a keyframe of version", newest.version, current.number)
        if newest.digest == current.digest:
            return Following(current, 0, _make)
        newer = newest.version > current.number or current.number == 0
        if not newer and newest.replaces != current.digest:
            raise self._mismatch(newest.version, "that keyframe is not newer")
        return Following(open_keyframes(self._layout, keyframes), newest.version, _make)

    def _mismatch(self, came: int, why: str) -> StateMismatchError:
        return StateMismatchError(
            f"payload: leads to global version {came}, while {self._down} is held here: {why}"
        )

    def _request(self, refused: bytes) -> bytes:
        digest = version_digest(refused) & LOW32
        return write_message(self._says_what_is_held()._replace(refused=digest))

    @synchronized
    def acknowledge(self) -> bytes:
        """What is held, for :meth:`ServerSession.acknowledged`.

        An uplink says so too; this is for a client that has received and has nothing to send.
        """
        return write_message(self._says_what_is_held())

    def _says_what_is_held(self) -> Message:
        message = self._message(self._tag if self._state.named else 0)
        return message._replace(is_request=True, head=self._head)

    def _message(self, tag: int) -> Message:
        """One with no contents; as long as nothing is known of the server it says who this is."""
        identity = b"" if self._state.heard else self._identity.data
        return Message(tag, run=self._identity.check, identity=identity)

    @property
    def _head(self) -> Head:
        return Head(self._down.number, self._down.digest)

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
        before = self._bounded(self._state)
        number, base, keep = before.number + 1, before.acknowledged, self._keep_up
        out = self._layout.empty() if keep or self._needs_models else None

        def commit(payload: bytes) -> Assignments:
            version = Version(number, version_digest(payload), out, base).shortened(keep)
            start = before.down if self._needs_models else None
            sent = Sent(version, wrapped(payload), payload, self._head, start)
            return [(self, "_state", _with_sent(before, sent))]

        def wrapped(payload: bytes) -> bytes:
            if before.heard:
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

    def _bounded(self, state: ClientState) -> ClientState:
        """Room for one more uplink whose fate is unknown.

        Payloads are small, so a client with feedback keeps many, and learns of nearly all whether
        they arrived. What it has to drop counts as lost if the server has missed it, else as
        arrived: perhaps nobody tells this client.
        """
        sent, dropped = dict(state.sent), []
        per_uplink = 2 * self._layout.n_bytes if self._needs_models else 0
        most = 0 if state.feedback is None else max(self._layout.n_bytes, MIN_PENDING_BYTES)
        n_bytes = sum(len(s.payload) + per_uplink for s in sent.values())
        while len(sent) >= self._history and n_bytes > most:
            oldest = sent.pop(min(sent))
            n_bytes -= len(oldest.payload) + per_uplink
            if oldest.missed:
                dropped.append(oldest)
        if self._keep_up and not self._needs_models:
            for number in sorted(sent)[: max(0, len(sent) + 1 - self._history)]:
                version = sent[number].version
                bare = Version(version.number, version.digest, None)
                sent[number] = sent[number]._replace(version=bare)
        return state._replace(sent=sent, feedback=self._with_lost(state.feedback, dropped))

    def _own_version(self, number: int) -> Version | None:
        if number in self._sent:
            version = self._sent[number].version
            return None if self._keep_up and version.model is None else version
        if number == 0:
            return self._first_uplink()
        base = self._state.acknowledged
        return base if base is not None and base.number == number else None

    def _settled(self, state: ClientState, ack: Ack, *, certain: bool = False) -> ClientState:
        """What an acknowledgement tells of uplinks: they have arrived, got lost, or may arrive.

        ``certain``: this is how the server stands, even if it knew more before.
        """
        arrived = state.sent.get(ack.newest)
        if arrived is not None and arrived.version.digest & LOW32 == ack.digest:
            lost = [s for n, s in state.sent.items() if n < ack.newest and ack.lacks(n, s.missed)]
            acknowledged = arrived.version if arrived.version.model is not None else None
            state = state._replace(
                named=True,
                sent={n: s for n, s in state.sent.items() if n > ack.newest},
                feedback=self._with_lost(state.feedback, lost),
                acknowledged=acknowledged if self._keep_up else None,
            )
        elif self._keep_up and not _knows(state.acknowledged, ack):
            base, unheard_of = state.acknowledged, ack.newest > state.number
            if certain or (unheard_of and base and not base.number):
                state = state._replace(acknowledged=None)
        missed = {
            n: s._replace(missed=True) if n > ack.newest else s for n, s in state.sent.items()
        }
        return state._replace(sent=missed, number=max(state.number, ack.newest))

    def _with_lost(self, feedback: Feedback | None, lost: list[Sent]) -> Feedback | None:
        """What lost uplinks would have contributed goes into the next one."""
        if feedback is None or not lost:
            return feedback
        if not self._needs_models:
            return with_values(self._layout, [sent.payload for sent in lost], feedback)
        layout, roles = self._layout, self._uplink_encoder.roles
        changes = (
            differences(layout, roles, model_of(s.version), model_of(s.start))
            for s in lost
            if s.start is not None
        )
        return sum_of(feedback, changes)

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
        m = open_request(as_bytes(request, REQUEST), tag, self._identity)
        if m.ack is None:
            raise PayloadError("payload: a client's request; it is for the server")
        check_ahead("the acknowledged uplink", m.ack.newest, state.number)
        refused = {
            n for n, s in state.sent.items() if version_digest(s.message) & LOW32 == m.refused
        }
        state = state._replace(heard=True)
        if not state.named:
            state = state._replace(tag=m.tag)  # the uplink may have been given in another's name
        state = self._settled(state, m.ack, certain=True)
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
        self._state = _with_sent(state, again)
        return again.message

    def _keyframe(self, state: ClientState, last: Sent, number: int) -> Sent:
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

    # ---- state

    def _depends(self) -> dict[str, Any]:
        return {
            **super()._depends(),
            **self._uplink_encoder.depends(self._state.feedback is not None),
        }

    def _fields(self) -> dict[str, Any]:
        state = self._state
        return {
            "tag": state.tag,
            "named": state.named,
            "heard": state.heard,
            "down": state.down,
            "held": state.held,
            "acknowledged": state.acknowledged,
            "number": state.number,
            "sent": [
                [s.version, s.message, s.payload, list(s.global_version), s.start, s.missed]
                for s in state.sent.values()
            ],
            "feedback": state.feedback,
        }

    def _checked(self, saved: Any, tensors: Tensors) -> ClientState:
        roles, has_feedback = self._uplink_encoder.roles, self._state.feedback is not None

        def own_version(value: Any, where: str) -> Version:
            has_model = isinstance(value, Version) and value.model is not None
            version: Version = tensors.version(with_model=has_model)(value, where)
            return version

        sent = row(
            Sent,
            version=own_version,
            message=BYTES,
            payload=BYTES,
            global_version=HEAD,
            start=optional(tensors.version()),
            missed=FLAG,
        )
        fields = checked_fields(
            saved,
            {
                "tag": BITS64,
                "named": FLAG,
                "heard": FLAG,
                "down": tensors.version(),
                "held": tensors.versions(at_most=self._history + 1),
                "acknowledged": optional(tensors.version()),
                "number": NUMBER,
                "sent": several(sent, at_most=None if has_feedback else self._history),
                "feedback": tensors.kept_feedback(roles, has_feedback),
            },
        )
        if self._given_tag:
            require(not fields["named"] or fields["tag"] == self._given_tag, "client_id")
            fields |= {"tag": self._given_tag, "named": True}
        down, acknowledged, number = fields["down"], fields["acknowledged"], fields["number"]
        require(fields["held"].get(down.number) is down, "held")
        if acknowledged is not None:
            require(self._keep_up > 0 and acknowledged.number <= number, "acknowledged")
        numbers = [s.version.number for s in fields["sent"]]
        require(numbers == sorted(set(numbers)) and max(numbers, default=0) <= number, "sent")
        for s in fields["sent"]:
            try:
                self._check_sent(s, is_last=s is fields["sent"][-1])
            except CodecError as error:
                raise ValueError(f"state_dict: sent[{s.version.number}]: {error}") from error
        fields["sent"] = {s.version.number: s for s in fields["sent"]}
        return ClientState(**fields)

    def _check_sent(self, sent: Sent, *, is_last: bool) -> None:
        """Whether what was sent can be sent again, and taken back.

        Raises:
            CodecError, ValueError: It cannot.
        """
        parsed = ParsedPayload(sent.payload, self._layout)
        made = (parsed.link.version, parsed.digest)
        if is_message(sent.message):
            m = read_message(sent.message)
            made = m.keyframes[-1][:2] if m.keyframes else made
            require(bool(m.keyframes) or m.payloads == (sent.payload,), "message")
        else:
            require(sent.message == sent.payload, "message")
        require(made == (sent.version.number, sent.version.digest), "version")
        has_model, wanted = sent.version.model is not None, self._needs_models
        require((sent.start is not None) == wanted, "start")
        if has_model or wanted or (self._keep_up and is_last):
            require(has_model and (wanted or self._keep_up > 0), "version")
        if self._state.feedback is not None and not wanted:
            require(special_of(parsed.frame) == self._uplink_encoder.special, "payload")
            nothing = new_feedback(self._layout, self._uplink_encoder.roles)
            with_values(self._layout, [sent.payload], nothing)


def _make(plan: Plan) -> None:
    """For a message that has nothing to decode."""
    for target, name, value in plan():
        setattr(target, name, value)


def _with_sent(state: ClientState, sent: Sent) -> ClientState:
    number = sent.version.number
    return state._replace(number=number, sent={**state.sent, number: sent})


def _knows(base: Version | None, ack: Ack) -> bool:
    """Whether an acknowledgement tells nothing newer than what is known to have arrived."""
    return (
        base is not None
        and base.number == ack.newest
        and (ack.newest == 0 or base.digest & LOW32 == ack.digest)
    )
