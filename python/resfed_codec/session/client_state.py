"""What a client's session holds, and its saved form. client.py has the protocol."""

from __future__ import annotations

from typing import Any, NamedTuple

from resfed_codec.errors import CodecError
from resfed_codec.locking import synchronized
from resfed_codec.session.base import LOW32, Session
from resfed_codec.session.traffic import number_of
from resfed_codec.stream.message import Ack, VersionId, is_message, read_message
from resfed_codec.stream.schema import (
    BITS64,
    BYTES,
    FLAG,
    NUMBER,
    VERSION_ID,
    TensorChecks,
    checked_fields,
    list_of,
    optional,
    require,
    tuple_of,
)
from resfed_codec.stream.versions import (
    Feedback,
    ParsedPayload,
    Version,
    differences,
    model_of,
    new_feedback,
    sum_of,
    with_payload_values,
)
from resfed_codec.tensors.layout import StateT

MIN_PENDING_BYTES = 1 << 16
"""A client with error feedback keeps payloads of unacknowledged uplinks up to the model's size in
bytes, or up to this if the model is smaller."""


class SentUplink(NamedTuple):
    """An uplink that the server has not acknowledged yet.

    Attributes:
        version: The version that it makes, with its model if that may be read later.
        message: The bytes that were sent.
        payload: Its contribution: the residual, even if a keyframe was sent instead.
        global_version: The global version that it was trained from.
        start: The same version with its model, if the payload alone is not the contribution. The
            contribution is the recovered model minus this one.
        missed: Whether the server has acknowledged later uplinks, and not this one.
    """

    version: Version
    message: bytes
    payload: bytes
    global_version: VersionId
    start: Version | None = None
    missed: bool = False


class ClientState(NamedTuple):
    """All that changes in a client's session; calls replace it as a whole, including its mappings.

    Attributes:
        tag: Identifies the client in messages and digests; 0 until it has a name.
        confirmed: Whether the server is known to have the same layout and run: the client has
            understood a message of it.
        named: Whether the tag is certain: given, or from an answer to an uplink. Until then it is
            the tag of the last message, which may have been for another client.
        down: The newest global version.
        held: Global versions that the server may build on, by number.
        acknowledged: The last own version that the server has acknowledged, if its model is kept.
        sent: Uplinks without an acknowledgement, by number, oldest first.
        number: Number of the last uplink.
        feedback: What uplinks have left out; the call that replaces the state updates its arrays
            in place, in the same step.
    """

    tag: int
    named: bool
    down: Version
    held: dict[int, Version]
    acknowledged: Version | None
    sent: dict[int, SentUplink]
    confirmed: bool = False
    number: int = 0
    feedback: Feedback | None = None

    def with_sent(self, sent: SentUplink) -> ClientState:
        """The state after an uplink was sent."""
        number = sent.version.number
        return self._replace(number=number, sent={**self.sent, number: sent})


class ClientBase(Session[StateT]):
    """Base of ClientSession: what it holds, which uplinks have arrived, and how that is saved."""

    _state: ClientState
    _given_tag: int
    """The client's tag if ``client_id`` was given, else 0."""

    _needs_models: bool
    """Whether only its recovered model tells what a lost uplink would have contributed."""

    @property
    def version(self) -> int:
        """Number of the current global model."""
        return self._state.down.number

    def __repr__(self) -> str:
        uplinks = number_of(self._state.number, "uplink")
        return self._repr(f"global model {self.version}, {uplinks}")

    @property
    @synchronized
    def state(self) -> StateT:
        """A copy of the recovered global model, of the initial state's kind."""
        model = self._layout.copy_of(model_of(self._state.down))
        state: StateT = self._layout.state_of(model)
        return state

    # ---- which uplinks have arrived

    def _with_room(self, state: ClientState) -> ClientState:
        """The state with room for one more unacknowledged uplink.

        Payloads are small, so a client with feedback keeps many and gets an answer for nearly all
        of them. An uplink that it has to drop counts as lost if the server has missed it, and else
        as arrived: the server may never acknowledge uplinks.
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
        if number in self._state.sent:
            version = self._state.sent[number].version
            return None if self._keep_up and version.model is None else version
        if number == 0:
            return self._first_uplink()
        base = self._state.acknowledged
        return base if base is not None and base.number == number else None

    def _after_ack(self, state: ClientState, ack: Ack, *, certain: bool = False) -> ClientState:
        """The state after an acknowledgement, which says which uplinks have arrived or got lost.

        ``certain``: the server holds exactly this, even if it has acknowledged more before.
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
            base, is_unknown = state.acknowledged, ack.newest > state.number
            if certain or (is_unknown and base and not base.number):
                state = state._replace(acknowledged=None)
        missed = {
            n: s._replace(missed=True) if n > ack.newest else s for n, s in state.sent.items()
        }
        return state._replace(sent=missed, number=max(state.number, ack.newest))

    def _with_lost(self, feedback: Feedback | None, lost: list[SentUplink]) -> Feedback | None:
        """The feedback plus what lost uplinks would have contributed."""
        if feedback is None or not lost:
            return feedback
        if not self._needs_models:
            return with_payload_values(self._layout, [sent.payload for sent in lost], feedback)
        layout, roles = self._layout, self._uplink_encoder.roles
        changes = (
            differences(layout, roles, model_of(s.version), model_of(s.start))
            for s in lost
            if s.start is not None
        )
        return sum_of(feedback, changes)

    # ---- saved form

    def _depends(self) -> dict[str, Any]:
        return {
            **super()._depends(),
            **self._uplink_encoder.depends(self._state.feedback is not None),
        }

    def _fields(self) -> dict[str, Any]:
        return {**self._state._asdict(), "sent": list(self._state.sent.values())}

    def _checked(self, saved: Any, tensors: TensorChecks) -> ClientState:
        roles, has_feedback = self._uplink_encoder.roles, self._state.feedback is not None

        def own_version(value: Any, where: str) -> Version:
            has_model = isinstance(value, Version) and value.model is not None
            version: Version = tensors.version(with_model=has_model)(value, where)
            return version

        sent = tuple_of(
            SentUplink,
            version=own_version,
            message=BYTES,
            payload=BYTES,
            global_version=VERSION_ID,
            start=optional(tensors.version()),
            missed=FLAG,
        )
        fields = checked_fields(
            saved,
            {
                "tag": BITS64,
                "named": FLAG,
                "confirmed": FLAG,
                "down": tensors.version(),
                "held": tensors.versions(at_most=self._history + 1),
                "acknowledged": optional(tensors.version()),
                "number": NUMBER,
                "sent": list_of(sent, at_most=None if has_feedback else self._history),
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

    def _check_sent(self, sent: SentUplink, *, is_last: bool) -> None:
        """Check that a loaded uplink can be sent again, and added to the feedback.

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
            require(parsed.overrides == self._uplink_encoder.overrides, "payload")
            nothing = new_feedback(self._layout, self._uplink_encoder.roles)
            with_payload_values(self._layout, [sent.payload], nothing)


def _knows(base: Version | None, ack: Ack) -> bool:
    """Whether an acknowledgement says nothing new about the last acknowledged version."""
    return (
        base is not None
        and base.number == ack.newest
        and (ack.newest == 0 or base.digest & LOW32 == ack.digest)
    )
