"""Encoder and Decoder: one direction over a channel that delivers everything in order.

Both hold the versions that predictions need. Each payload names the version that it builds on and
a digest of the whole chain before it, so a decoder never decodes against another base. Several
threads may call the methods of one object; a lock serializes the calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from resfed_codec.codec.keyframe import decode_keyframe, encode_keyframe
from resfed_codec.codec.native_call import Assignments
from resfed_codec.codec.payload import MESSAGE, UPDATE, as_bytes
from resfed_codec.codec.update import Payload, make_config
from resfed_codec.config import CodecConfig, ConfigOptions
from resfed_codec.errors import PayloadError, StateMismatchError
from resfed_codec.locking import synchronized
from resfed_codec.stream.endpoint import Endpoint, chain_root
from resfed_codec.stream.link import version_digest
from resfed_codec.stream.message import (
    Keyframe,
    Message,
    VersionId,
    check_ahead,
    is_message,
    read_message,
    write_message,
)
from resfed_codec.stream.predictor import PREDICTORS, check_max_norm, predictor_of
from resfed_codec.stream.schema import Check, TensorChecks, checked_fields
from resfed_codec.stream.update_encoder import UpdateEncoder
from resfed_codec.stream.versions import (
    OWN,
    Feedback,
    Model,
    ParsedPayload,
    Version,
    model_of,
    new_feedback,
)
from resfed_codec.tensors.layout import ArrayT, Layout, Out, OutT, State, StateT
from resfed_codec.tensors.torch_tensors import untraced

if TYPE_CHECKING:
    from typing_extensions import Unpack


class StreamState(NamedTuple):
    """All that changes in an encoder or decoder; calls replace it as a whole.

    Attributes:
        current: The newest version, with the history that predictions need.
        spare: Memory of a dropped version, for the next one.
        feedback: What payloads have left out; the call that replaces the state updates its arrays
            in place, in the same step.
    """

    current: Version
    spare: Model | None = None
    feedback: Feedback | None = None

    def after(self, version: Version, keep: int) -> StreamState:
        """With ``version`` as the current one, and ``keep`` versions of its lineage."""
        lineage = version.lineage(keep + 1)
        dropped = lineage[keep].model if len(lineage) > keep else None
        spare = None if dropped is version.model else dropped
        return self._replace(current=version.shortened(keep), spare=spare)


class _Stream(Endpoint[StateT]):
    """Base of both ends: the newest version, and its saved form."""

    _state: StreamState

    def __init__(self, initial_state: State, run: str) -> None:
        super().__init__(initial_state, run)
        self._root = chain_root("stream", self._initial)
        self._state = StreamState(Version(0, self._root, self._initial.model))
        self._initial.model = None  # version 0 may be updated in place

    @property
    def version(self) -> int:
        """Number of updates up to the current model."""
        return self._state.current.number

    @property
    @synchronized
    def state(self) -> StateT:
        """A copy of the recovered model, of the initial state's kind."""
        model = self._layout.copy_of(model_of(self._state.current))
        state: StateT = self._layout.state_of(model)
        return state

    def _depends(self) -> dict[str, Any]:
        return {**super()._depends(), "initial_state": self._root}

    def _fields(self) -> dict[str, Any]:
        return {"current": self._state.current}

    def _schema(self, tensors: TensorChecks) -> dict[str, Check]:
        """What :meth:`_fields` may hold."""
        return {"current": tensors.version()}

    def _checked(self, saved: Any, tensors: TensorChecks) -> StreamState:
        return StreamState(**checked_fields(saved, self._schema(tensors)))


class Encoder(_Stream[StateT]):
    """The sending end of one direction.

    Each payload builds on the one before, so the channel must deliver all of them in order. For
    other channels use sessions.

    Args:
        initial_state: The model that both ends start from, see :func:`resfed_codec.encode`. If it
            is on a CUDA device, so is what the stream holds and returns; docs/gpu.md says what is
            copied to the host nevertheless.
        config: The configuration; its predictor may read the direction's own history ("previous",
            the default, "adaptive", or a LinearPredictor of own terms).
        run: A name for the run; ends with different names refuse each other's payloads.
        **options: Fields of :class:`CodecConfig`, instead of ``config``.

    Raises:
        TypeError, ValueError: As :func:`resfed_codec.encode`; or the predictor reads the other
            direction.
    """

    @overload
    def __init__(
        self: Encoder[dict[str, ArrayT]],
        initial_state: Mapping[str, ArrayT],
        config: CodecConfig | None = ...,
        *,
        run: str = ...,
        **options: Unpack[ConfigOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: Encoder[list[ArrayT]],
        initial_state: Sequence[ArrayT],
        config: CodecConfig | None = ...,
        *,
        run: str = ...,
        **options: Unpack[ConfigOptions],
    ) -> None: ...
    @untraced
    def __init__(
        self,
        initial_state: State,
        config: CodecConfig | None = None,
        *,
        run: str = "",
        **options: Unpack[ConfigOptions],
    ) -> None:
        config = make_config(config, options)
        super().__init__(initial_state, run)
        predictor = predictor_of(config.predictor or "previous")
        check_max_norm("config", config.max_norm, predictor, "previous")
        self._update_encoder = UpdateEncoder(self._layout, config, predictor, two_way=False)
        self._keep = max(1, self._update_encoder.own_depth)
        self._keyframe_cache: dict[int, bytes] = {}  # keyframes of the current version, by digest
        if config.error_feedback:
            feedback = new_feedback(self._layout, self._update_encoder.roles)
            self._state = self._state._replace(feedback=feedback)

    @synchronized
    def encode(self, state: State) -> bytes:
        """The payload that turns the receiver's current model into (nearly) ``state``.

        Args:
            state: A model of the initial state's names, shapes and dtypes.

        Raises:
            TypeError, ValueError: As :func:`resfed_codec.encode`; nothing has changed then.
        """
        current = self._layout.model_of(state, "state")
        before, keep = self._state, self._keep
        base = before.current
        in_place = self._update_encoder.predictor == PREDICTORS["previous"]
        out = model_of(base) if in_place else before.spare or self._layout.empty()

        def commit(payload: bytes) -> Assignments:
            version = Version(base.number + 1, version_digest(payload), out, base)
            return [(self, "_state", before.after(version, keep)), (self, "_keyframe_cache", {})]

        return self._update_encoder.encode(
            current,
            number=base.number + 1,
            base=base,
            keep=keep,
            out=out,
            feedback=before.feedback,
            commit=commit,
        )

    @synchronized
    def keyframe(self) -> bytes:
        """The current recovered model, lossless and whole, for a decoder that holds another.

        A decoder accepts it if it is newer than the decoder's version.
        """
        return self._keyframe(replaces=0)

    @synchronized
    def answer(self, request: bytes) -> bytes:
        """A keyframe that brings a decoder that refused a payload to the current version.

        Args:
            request: The ``request`` of the decoder's StateMismatchError.

        Raises:
            PayloadError: The bytes are not a request, or damaged.
            StateMismatchError: The request is from another stream.
        """
        head = self._read_request(request, self._root, "stream").head
        return self._keyframe(replaces=head.digest if head else 0)

    def _keyframe(self, replaces: int) -> bytes:
        versions = self._state.current.lineage(self._keep)
        keyframes = keyframes_of(self._layout, versions, replaces, self._keyframe_cache)
        message = self._empty_message(self._root, with_identity=True)
        return write_message(message._replace(keyframes=keyframes))

    def _depends(self) -> dict[str, Any]:
        return {
            **super()._depends(),
            **self._update_encoder.depends(self._state.feedback is not None),
        }

    def _fields(self) -> dict[str, Any]:
        return {**super()._fields(), "feedback": self._state.feedback}

    def _schema(self, tensors: TensorChecks) -> dict[str, Check]:
        feedback = tensors.kept_feedback(
            self._update_encoder.roles, self._state.feedback is not None
        )
        return {**super()._schema(tensors), "feedback": feedback}


class Decoder(_Stream[StateT]):
    """The receiving end of one direction. Payloads say how they are predicted.

    Args:
        initial_state: The model that both ends start from. What :meth:`decode` returns has its
            kind and device; the encoder's device may differ.
        run: The encoder's ``run``.
    """

    @overload
    def __init__(
        self: Decoder[dict[str, ArrayT]],
        initial_state: Mapping[str, ArrayT],
        *,
        run: str = ...,
    ) -> None: ...
    @overload
    def __init__(
        self: Decoder[list[ArrayT]],
        initial_state: Sequence[ArrayT],
        *,
        run: str = ...,
    ) -> None: ...
    @untraced
    def __init__(self, initial_state: State, *, run: str = "") -> None:
        super().__init__(initial_state, run)

    @overload
    def decode(self, payload: Payload, *, out: OutT) -> OutT: ...
    @overload
    def decode(self, payload: Payload, *, copy: bool = ...) -> StateT: ...
    @synchronized  # type: ignore[misc]  # mypy does not match decorated overloads
    def decode(self, payload: Payload, *, copy: bool = True, out: Out | None = None) -> Any:
        """The model after this payload.

        If the payload of the current version comes again, the result is the same model again.

        Args:
            payload: From :meth:`Encoder.encode`, :meth:`Encoder.keyframe` or
                :meth:`Encoder.answer`.
            copy: False returns the decoder's own memory, valid until the next call and read-only
                if the array type supports that. If the encoder's predictor is "previous", the
                call then costs only what changed.
            out: Arrays of the same layout to write into.

        Raises:
            PayloadError: The payload is damaged, truncated, or not of this codec.
            StateMismatchError: The payload does not build on the current version. The error names
                both; its ``request`` is for :meth:`Encoder.answer`.
            TypeError, ValueError: ``out`` cannot be written to.

        After any error nothing has changed.
        """
        data = as_bytes(payload, UPDATE, MESSAGE)
        output = self._output(copy=copy, out=out, read_only=not copy)
        if is_message(data):
            self._take_keyframe(read_message(data))
        else:
            self._take_payload(ParsedPayload(data, self._layout))
        return output(model_of(self._state.current))

    def _take_payload(self, parsed: ParsedPayload) -> None:
        before, link = self._state, parsed.link
        current = before.current
        if parsed.digest == current.digest:
            return
        if link.other is not None or link.base is None:
            raise StateMismatchError("payload: belongs to a session, not to an Encoder")
        if link.base != current.number or not parsed.builds_on(0, current, None):
            raise StateMismatchError(
                f"payload: {link}, does not follow on what is held here, {current}:"
                f" {_why(link.version, link.base, current.number)}",
                self._request(),
            )
        check_ahead("version", link.version, current.number)
        in_place = parsed.copies(OWN) and link.keep == 1
        out = model_of(current) if in_place else before.spare or self._layout.empty()
        after = before.after(Version(link.version, parsed.digest, out, current), link.keep)
        parsed.decode(self._layout, current, None, out, lambda: [(self, "_state", after)])

    def _take_keyframe(self, message: Message) -> None:
        if not message.keyframes:
            raise PayloadError("payload: a request or a session's message, not a stream's payload")
        self._identity.require_same(message)
        if message.tag != self._root:
            raise StateMismatchError("payload: a keyframe of another stream")
        current, keyframe = self._state.current, message.keyframes[-1]
        check_ahead("a keyframe of version", keyframe.version, current.number)
        if keyframe.digest == current.digest:
            return
        if keyframe.version <= current.number and keyframe.replaces != current.digest:
            raise StateMismatchError(
                f"payload: a keyframe of version {keyframe.version}, older than what is held here,"
                f" {current}",
                self._request(),
            )
        self._state = StreamState(open_keyframes(self._layout, message.keyframes))

    def _request(self) -> bytes:
        head = VersionId(self._state.current.number, self._state.current.digest)
        message = self._empty_message(self._root, with_identity=head.version == 0)
        return write_message(message._replace(is_request=True, head=head))


def keyframes_of(
    layout: Layout, versions: Sequence[Version], replaces: int, cache: dict[int, bytes]
) -> tuple[Keyframe, ...]:
    """Keyframes of versions that are given newest first; ``cache`` has them by digest."""
    made = {
        v.digest: cache.get(v.digest) or encode_keyframe(layout.state_of(model_of(v)))
        for v in versions
    }
    cache.clear()
    cache.update(made)
    return tuple(Keyframe(v.number, v.digest, replaces, made[v.digest]) for v in reversed(versions))


def open_keyframes(layout: Layout, keyframes: Sequence[Keyframe]) -> Version:
    """Decode consecutive keyframes: the newest version, with the others as its lineage."""
    version = None
    for keyframe in keyframes:
        if version is not None and keyframe.version <= version.number:
            raise PayloadError("payload: keyframes that are not in sequence")
        model = layout.empty()
        state = layout.state_of(model)
        decode_keyframe(keyframe.data, state, out=state)
        version = Version(keyframe.version, keyframe.digest, model, version)
    assert version is not None
    return version


def _why(version: int, base: int, held: int) -> str:
    if version <= held:
        return "it is older, or of another run"
    if base > held:
        return "payloads between them are missing"
    return "it was made by another run, or after a restart from an older state"
