"""CodecMod: the mod of a Flower ClientApp. flower.py has the server's side."""

from __future__ import annotations

from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from resfed_codec.errors import StateMismatchError
from resfed_codec.integrations._ends import (
    HELD,
    MESSAGE,
    NOTHING_HELD,
    REQUEST,
    SETUP,
    TENSORS,
    UPLINK,
)
from resfed_codec.integrations._flower_notices import warn_of_no_grid
from resfed_codec.integrations._flower_records import (
    SESSION,
    STATE,
    arrays_of,
    clipping_norm,
    kind,
    model_of,
    name_of_model,
    parcel_in,
    record_of,
    replaced,
    shared_arrays_of,
)
from resfed_codec.integrations._setup import (
    Initial,
    Model,
    Setup,
    fit,
    part_of,
    read_config,
    write_names,
)
from resfed_codec.session.client import ClientSession


class CodecMod:
    """A client's mod that decodes received models and encodes models in replies.

    ``ClientApp(mods=[codec_mod])``: mods before it see encoded messages, mods after it and the app
    see models. The settings come from the server. Between messages the session is stored in
    ``Context.state``, which is written only if the app replies without an error. Messages that do
    not come from a :class:`CodecGrid` pass unchanged.

    If a message has a ``clipping_norm``, as Flower's strategies for differential privacy with
    client-side clipping send it, that bounds what the server decodes, as ``max_norm`` does.

    Args:
        initial: For a server with ``shared_initial=True``: a function that makes the server's
            initial model, bit for bit, as a mapping from names to NumPy arrays or torch CPU
            tensors.

    Raises:
        PayloadError: A message is damaged. The error is raised in the app's process, so the server
            gets an error reply.
        TypeError: ``initial`` is not a function.
        ValueError: ``initial()`` has other names or shapes than the server's model, or is another
            model than before. The server gets an error reply, too.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> CodecMod:
        if args and isinstance(args[0], Message):  # the class was called as a mod is
            raise TypeError("mods=[CodecMod]: must be an instance: mods=[codec_mod]")
        return super().__new__(cls)

    def __init__(self, initial: Initial | None = None) -> None:
        if initial is not None and (not callable(initial) or hasattr(initial, "state_dict")):
            raise TypeError(
                f"initial: must be a function that makes the model, not {kind(initial)}; as in"
                " CodecMod(lambda: model)"
            )
        self._initial = initial

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        name, parcel = parcel_in(message.content)
        if not parcel:
            warn_of_no_grid(message, context)
            return call_next(message, context)
        saved = context.state.config_records.get(STATE, {}).get(SETUP)
        setup = parcel.get(SETUP, saved)
        if not isinstance(setup, bytes):
            return _request(message, NOTHING_HELD)
        uplink = read_config(parcel[UPLINK]) if UPLINK in parcel else None
        norm = clipping_norm(message.content)
        session = Setup.read(setup).client_session(self._initial, uplink, norm)
        if saved == setup:
            try:
                session.load_state_dict(model_of(context.state.array_records[SESSION]))
            except ValueError as error:
                raise ValueError(
                    "Context.state: the session in it cannot be loaded; if CodecMod was given an"
                    " initial, that must make the same model every time"
                ) from error
        if REQUEST in parcel:
            parcel = {MESSAGE: session.answer(parcel[REQUEST])}
            reply = Message(RecordDict({name: record_of(parcel)}), reply_to=message)
        else:
            try:
                model = session.receive(parcel[MESSAGE], copy=False)
            except StateMismatchError as error:
                return _request(message, error.request or NOTHING_HELD)
            given = part_of(model, parcel[TENSORS]) if TENSORS in parcel else model
            message.content = replaced(message.content, name, arrays_of(given))
            reply = call_next(message, context)
            if reply.has_error():
                return reply
            reply.content = _with_local_model(reply.content, session, model)
        context.state[STATE] = ConfigRecord({SETUP: setup})
        context.state[SESSION] = shared_arrays_of(session.state_dict())
        return reply


codec_mod = CodecMod()
"""The mod for ``ClientApp(mods=[codec_mod])``."""


def _with_local_model(content: RecordDict, session: ClientSession, like: Model) -> RecordDict:
    """The app's reply with an encoded model; a model of another layout stays unchanged."""
    name = name_of_model(content)
    local = fit(model_of(content.array_records[name]), like, partial=True) if name else None
    if local is None:
        return RecordDict({**content, STATE: record_of({HELD: session.acknowledge()})})
    if len(local) == len(like):
        return replaced(content, name, record_of({MESSAGE: session.send(local)}))
    parcel = {MESSAGE: session._send_part(local), TENSORS: write_names(local, like)}
    return replaced(content, name, record_of(parcel))


def _request(message: Message, request: bytes) -> Message:
    return Message(RecordDict({STATE: record_of({REQUEST: request})}), reply_to=message)
