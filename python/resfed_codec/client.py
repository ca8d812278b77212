"""ClientSession: a client's end of both directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from resfed_codec.codec import copy_into, writable_views
from resfed_codec.config import CodecConfig
from resfed_codec.errors import CodecError, PayloadError, StateMismatchError
from resfed_codec.history import (
    OWN,
    Feedback,
    Opened,
    Version,
    add_differences,
    add_values,
    differences,
    filled,
    model_of,
    new_feedback,
    special_of,
)
from resfed_codec.keyframe import encode_keyframe
from resfed_codec.layout import State
from resfed_codec.link import digest64, version_digest
from resfed_codec.message import (
    Ack,
    Head,
    Keyframe,
    Message,
    is_message,
    read_message,
    write_message,
)
from resfed_codec.payload import as_bytes
from resfed_codec.schema import (
    BYTES,
    HEAD,
    NUMBER,
    Tensors,
    checked_fields,
    integer,
    optional,
    require,
    row,
    several,
)
from resfed_codec.session import LOW32, ClientId, Session, client_tag, open_request
from resfed_codec.stream import open_keyframes
from resfed_codec.turns import in_turn


@dataclass(eq=False)
class Sent:
    """An uplink whose fate is unknown.

    ``update`` is what it contributes, where that cannot be had from the payload: the recovered
    model minus the global model.
    """

    version: Version
    message: bytes
    payload: bytes
    global_version: Head
    update: Feedback | None


class ClientSession(Session):
    """A client: receives global models, sends local ones.

    Args:
        initial_state: The model that server and client start from. A client that has another one
            is brought up by a keyframe. Where it is on a CUDA device, so is what the session holds
            and returns (docs/gpu.md); the server's may be on another.
        uplink, downlink: The server's configurations. Of the downlink only the predictor matters
            here.
        run: A name for the run; ends with different names refuse each other's messages.
        history: Uplinks kept while it is not known whether they arrived; see ServerSession.
        client_id: The server's name for this client; by default it is learned from the first
            message.

    Several threads may call at once; their calls take turns.
    """

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
        self._named = client_id is not None
        self._tag = 0 if client_id is None else client_tag(client_id, self._run_digest)
        self._down = first = self._first_downlink()
        self._held = {0: first}  # versions that the server may build on
        self._acknowledged = self._first_uplink()
        self._sent: dict[int, Sent] = {}
        self._number = 0
        self._feedback: Feedback | None = None
        wanted = self._up.config.error_feedback
        if wanted or (wanted is None and self._up.own_depth == 0):
            self._feedback = new_feedback(self._layout, self._up.roles)

    @property
    def version(self) -> int:
        """Number of the global model that is held."""
        return self._down.number

    @property
    @in_turn
    def state(self) -> Any:
        """A copy of the recovered global model, of the initial state's kind."""
        return self._layout.state_of(self._layout.copy_of(model_of(self._down)))

    # ---- downlink

    @in_turn
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
        data = as_bytes(message)
        m = self._message_of(data)
        if self._tag and m.tag != self._tag:
            raise StateMismatchError("payload: a message for another client")
        layout = self._layout
        targets = writable_views(out, layout.specs, layout.device) if out is not None else None
        mine = layout.empty() if copy and targets is None else None  # while it may fail
        try:
            version, oldest = self._follow(m)
        except StateMismatchError as error:
            raise StateMismatchError(str(error), self._request(data)) from None
        if m.keyframes and self._down.number == 0:
            self._acknowledged = None  # perhaps the server started from another model
        self._tag = m.tag
        self._down = version
        self._held[version.number] = version
        for number in sorted(self._held):
            stale = number < oldest or number > version.number
            surplus = len(self._held) > self._history and number not in (oldest, version.number)
            if stale or surplus:
                del self._held[number]
        if m.ack is not None:
            self._settle(m.ack)
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
        if m.is_request:
            raise PayloadError("payload: this is a request: give it to answer()")
        if m.ack is None:
            raise PayloadError("payload: this message is not from a server's session")
        return m

    def _follow(self, m: Message) -> tuple[Version, int]:
        """The version a message leads to, and the oldest that is still wanted. Changes nothing."""
        current = self._down
        if m.keyframes:
            return self._open_keyframes(m.keyframes)
        if not m.payloads:
            if m.head is None or m.head.digest != current.digest:
                raise self._mismatch(m.head.version if m.head else 0, "the message brings nothing")
            return current, 0
        opened = [Opened(payload) for payload in m.payloads]
        if opened[-1].digest == current.digest:
            return current, 0
        newer = [o for o in opened if o.link.version > current.number]
        if not newer:
            raise self._mismatch(opened[-1].link.version, "that is not newer")
        version = current
        for o in newer:
            version = self._apply(o, m.tag, version, alone=len(newer) == 1)
        oldest = version.number if self._broadcast else newer[0].link.base or 0
        return version, oldest

    def _apply(self, o: Opened, tag: int, latest: Version, *, alone: bool) -> Version:
        link = o.link
        base = latest if link.base == latest.number else self._held.get(link.base or 0)
        other = None if link.other is None else self._own_version(link.other)
        if link.other is not None and other is None:
            raise self._mismatch(link.version, f"it builds on uplink {link.other}, not held here")
        payload_tag = 0 if self._broadcast else tag
        if base is None or not o.builds_on(payload_tag, base, other):
            raise self._mismatch(link.version, f"it is {link}")
        # A chain may fail further on, so the held model is updated in place by a single payload.
        spare = alone or base is not self._down
        in_place = spare and self._only_newest_counts and o.copies(OWN)
        out = model_of(base) if in_place else self._layout.empty()
        o.decode(self._layout, base, other, out)
        return Version(link.version, o.digest, out, base).shortened(self._keep_down)

    @property
    def _only_newest_counts(self) -> bool:
        """Whether no prediction looks behind the newest global model."""
        return self._broadcast and self._keep_down == 1 and self._keep_up == 0

    def _open_keyframes(self, keyframes: tuple[Keyframe, ...]) -> tuple[Version, int]:
        current, newest = self._down, keyframes[-1]
        if newest.digest == current.digest:
            return current, 0
        newer = newest.version > current.number or current.number == 0
        if not newer and newest.replaces != current.digest:
            raise self._mismatch(newest.version, "that keyframe is not newer")
        return open_keyframes(self._layout, keyframes), newest.version

    def _mismatch(self, came: int, why: str) -> StateMismatchError:
        return StateMismatchError(
            f"payload: leads to global version {came}, while {self._down} is held here: {why}"
        )

    def _request(self, refused: bytes) -> bytes:
        digest = version_digest(refused) & LOW32
        return write_message(Message(self._tag, is_request=True, head=self._head, refused=digest))

    @in_turn
    def acknowledge(self) -> bytes:
        """What is held, for :meth:`ServerSession.acknowledged`.

        An uplink says so too; this is for a client that has received and has nothing to send.
        """
        return write_message(Message(self._tag, is_request=True, head=self._head))

    @property
    def _head(self) -> Head:
        return Head(self._down.number, self._down.digest)

    # ---- uplink

    @in_turn
    def send(self, local_state: State) -> bytes:
        """A payload for :meth:`ServerSession.receive` that carries ``local_state``.

        It builds on the global model that is held, and, with predictors that look at the client's
        own models, on the last one known to have arrived.

        Args:
            local_state: A model of the initial state's names, shapes and dtypes.

        Raises:
            TypeError, ValueError: As :func:`resfed_codec.encode`; nothing has changed then.
        """
        current = self._layout.model_of(local_state, "local_state")
        number, base = self._number + 1, self._acknowledged
        out = self._layout.empty() if self._keep_up else None
        payload = self._up.encode(
            current,
            tag=self._tag,
            number=number,
            base=base,
            other=self._down,
            keep=max(1, self._keep_up),
            out=out,
            feedback=self._feedback,
        )
        version = Version(number, version_digest(payload), out, base).shortened(self._keep_up)
        update = None
        if self._feedback is not None and out is not None:
            update = differences(self._layout, self._up.roles, out, model_of(self._down))
        self._remember(Sent(version, payload, payload, self._head, update))
        return payload

    def _remember(self, sent: Sent) -> None:
        self._number = sent.version.number
        self._sent[self._number] = sent
        while len(self._sent) > self._history:
            del self._sent[min(self._sent)]

    def _own_version(self, number: int) -> Version | None:
        if number in self._sent:
            return self._sent[number].version
        if number == 0:
            return self._first_uplink()
        base = self._acknowledged
        return base if base is not None and base.number == number else None

    def _settle(self, ack: Ack, *, certain: bool = False) -> None:
        """Take in which uplinks have arrived.

        ``certain``: this is how the server stands, even if it knew more before.
        """
        arrived = self._sent.get(ack.newest)
        if arrived is not None and arrived.version.digest & LOW32 == ack.digest:
            for number in sorted(n for n in self._sent if n <= ack.newest):
                sent = self._sent.pop(number)
                if not ack.has(number):
                    self._take_back(sent)
            self._acknowledged = arrived.version if self._keep_up else None
        elif self._keep_up and not self._knows(ack):
            unheard_of = ack.newest > self._number
            if certain or (unheard_of and self._acknowledged and not self._acknowledged.number):
                self._acknowledged = None
        self._number = max(self._number, ack.newest)

    def _knows(self, ack: Ack) -> bool:
        base = self._acknowledged
        return (
            base is not None
            and base.number == ack.newest
            and (ack.newest == 0 or base.digest & LOW32 == ack.digest)
        )

    def _take_back(self, sent: Sent) -> None:
        """What a lost uplink would have contributed goes into the next one."""
        if self._feedback is None:
            return
        if sent.update is None:
            add_values(self._layout, sent.payload, self._feedback)
        else:
            add_differences(self._feedback, sent.update)

    @in_turn
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
        m = open_request(as_bytes(request), self._tag)
        if m.ack is None:
            raise PayloadError("payload: a client's request; it is for the server")
        self._tag = self._tag or m.tag
        self._settle(m.ack, certain=True)
        if not self._sent:
            raise StateMismatchError("payload: a request, but no update waits to be sent again")
        last = self._sent[max(self._sent)]
        if m.refused is None or version_digest(last.message) & LOW32 != m.refused:
            return last.message
        return self._keyframe(last)

    def _keyframe(self, last: Sent) -> bytes:
        model = last.version.model
        if model is None:
            if is_message(last.message) or last.global_version != self._head:
                raise StateMismatchError(
                    "payload: a request for an update whose global model has been replaced here"
                )
            model = self._layout.empty()
            Opened(last.payload).decode(self._layout, None, self._down, model)
        number = self._number + 1
        data = encode_keyframe(self._layout.state_of(model))
        digest = digest64(b"keyframe", number.to_bytes(8, "little"), data)
        keyframe = Keyframe(number, digest, 0, data)
        message = write_message(Message(self._tag, head=self._head, keyframes=(keyframe,)))
        version = Version(number, digest, model if self._keep_up else None)
        del self._sent[max(self._sent)]
        self._remember(Sent(version, message, last.payload, last.global_version, last.update))
        return message

    # ---- state

    def _depends(self) -> dict[str, Any]:
        return {
            **super()._depends(),
            **self._up.depends(self._feedback is not None),
        }

    def _fields(self) -> dict[str, Any]:
        return {
            "tag": self._tag,
            "down": self._down,
            "held": self._held,
            "acknowledged": self._acknowledged,
            "number": self._number,
            "sent": [
                [s.version, s.message, s.payload, list(s.global_version), s.update]
                for s in self._sent.values()
            ],
            "feedback": self._feedback,
        }

    def _checked(self, saved: Any, tensors: Tensors) -> dict[str, Any]:
        keeps_models, roles = self._keep_up > 0, self._up.roles
        sent = row(
            Sent,
            version=tensors.version(with_model=keeps_models),
            message=BYTES,
            payload=BYTES,
            global_version=HEAD,
            update=optional(tensors.feedback(roles)),
        )
        fields = checked_fields(
            saved,
            {
                "tag": integer(0, LOW32),
                "down": tensors.version(),
                "held": tensors.versions(at_most=self._history + 1),
                "acknowledged": optional(tensors.version()),
                "number": NUMBER,
                "sent": several(sent, at_most=self._history),
                "feedback": tensors.kept_feedback(roles, self._feedback is not None),
            },
        )
        if self._named:
            require(fields["tag"] in (0, self._tag), "client_id")
            fields["tag"] = self._tag
        down, acknowledged, number = fields["down"], fields["acknowledged"], fields["number"]
        require(fields["held"].get(down.number) is down, "held")
        if acknowledged is not None:
            require(keeps_models and acknowledged.number <= number, "acknowledged")
        numbers = [s.version.number for s in fields["sent"]]
        require(numbers == sorted(set(numbers)) and max(numbers, default=0) <= number, "sent")
        for s in fields["sent"]:
            try:
                self._check_sent(s)
            except CodecError as error:
                raise ValueError(f"state_dict: sent[{s.version.number}]: {error}") from error
        fields["sent"] = {s.version.number: s for s in fields["sent"]}
        return {f"_{name}": value for name, value in fields.items()}

    def _check_sent(self, sent: Sent) -> None:
        """Whether what was sent can be sent again, and taken back.

        Raises:
            CodecError, ValueError: It cannot.
        """
        opened = Opened(sent.payload)
        made = (opened.link.version, opened.digest)
        if is_message(sent.message):
            keyframes = read_message(sent.message).keyframes
            made = keyframes[-1][:2] if keyframes else made
        else:
            require(sent.message == sent.payload, "message")
        require(made == (sent.version.number, sent.version.digest), "version")
        has_update = self._feedback is not None and self._keep_up > 0
        require((sent.update is not None) == has_update, "update")
        if self._feedback is not None and not has_update:
            require(special_of(opened.frame) == self._up.special, "payload")
            add_values(self._layout, sent.payload, new_feedback(self._layout, self._up.roles))
