"""What the integrations share: the server's end, and what server and clients exchange.

They exchange *parcels*, small mappings from names to bytes that any framework can carry:

- ``MESSAGE``: a message or payload of a session;
- ``SETUP``: layout and configurations, for a client that may not have them yet;
- ``REQUEST``: from an end that refused a message: what it holds;
- ``HELD``: in a reply without a model: what the client holds now;
- ``TENSORS``: which tensors the message is about, if not all of the layout: one bit for each;
- ``UPLINK``: the configuration of the reply, if it is another than the setup's.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from resfed_codec._native import MAX_MANTISSA_BITS
from resfed_codec.codec.keyframe import decode_keyframe, encode_keyframe
from resfed_codec.codec.numbers import checked_integer
from resfed_codec.config import CodecConfig, check_config
from resfed_codec.integrations._arrays import empty_like
from resfed_codec.integrations._setup import (
    Model,
    Setup,
    check_fixed,
    difference,
    fit,
    part_of,
    write_config,
    write_names,
)
from resfed_codec.session.base import ClientId, check_predictors
from resfed_codec.session.server import ServerSession
from resfed_codec.session.traffic import Traffic
from resfed_codec.stream.message import Message, VersionId, write_message
from resfed_codec.stream.schema import (
    BITS64,
    BYTES,
    TensorChecks,
    checked_fields,
    client_name,
    instance,
    list_of,
    optional,
    require,
)
from resfed_codec.stream.snapshot import read_snapshot, write_snapshot
from resfed_codec.stream.versions import Version

Parcel: TypeAlias = "dict[str, bytes]"

MESSAGE, SETUP, REQUEST, HELD = "resfed.message", "resfed.setup", "resfed.request", "resfed.held"
TENSORS, UPLINK = "resfed.tensors", "resfed.uplink"

_KIND = "server of an integration"

_NOTHING = Message(0, is_request=True, head=VersionId(0, 0))

NOTHING_HELD = write_message(_NOTHING)
"""The request of a client that has no session yet, and so does not know the run."""


class ServerEnd:
    """A ServerSession that starts from the first model it is given, and sends clients the setup.

    Args:
        uplink, downlink, history: Arguments of the ServerSession.
        shared_initial: Whether clients make the first model themselves, so that it is not sent. A
            client that does not have it asks for it and gets a keyframe.
        initial_bits: Mantissa bits to which the first model is rounded, if not None.

    Attributes:
        source: What the integration saves with the state.
        takes_uplink: Whether :meth:`load_state_dict` takes the saved configuration of uplinks.
    """

    def __init__(
        self,
        uplink: CodecConfig | None,
        downlink: CodecConfig | None,
        *,
        history: int,
        shared_initial: bool,
        initial_bits: int | None = None,
    ) -> None:
        self._uplink = check_config("uplink", uplink)
        self._downlink = check_config("downlink", downlink)
        check_predictors(self._uplink, self._downlink)
        self._history, self.shared_initial = history, shared_initial
        if initial_bits is not None:
            checked_integer("initial_bits", initial_bits, 0, MAX_MANTISSA_BITS)
            if shared_initial:
                raise ValueError("initial_bits and shared_initial exclude each other: give one")
        self._initial_bits = initial_bits
        self._session: ServerSession | None = None
        self._setup = Setup({}, self._uplink, self._downlink, "", history, shared_initial)
        self._introduced: set[ClientId] = set()
        self._tensors = b""
        self.source = b""
        self.takes_uplink = False

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Everything that changes, as plain arrays; RuntimeError before the first model."""
        session = self.session
        initial, saved = session._initial, session.state_dict()
        fields = {
            "setup": self._setup.written(),
            "tensors": self._tensors,
            "source": self.source,
            "introduced": sorted(self._introduced, key=str),
            "initial": initial.digest,
            "initial_model": initial.model,
            "names": list(saved),
            "arrays": list(saved.values()),
        }
        return write_snapshot(_KIND, {}, fields, as_torch=False)

    def load_state_dict(self, state_dict: Any) -> None:
        """Continue from what :meth:`state_dict` returned, in an end of the same arguments.

        Raises:
            ValueError: As :meth:`ServerSession.load_state_dict`; nothing has changed then.
        """
        saved = checked_fields(
            read_snapshot(_KIND, {}, state_dict),
            {
                "setup": BYTES,
                "tensors": BYTES,
                "source": BYTES,
                "introduced": list_of(client_name),
                "initial": BITS64,
                "initial_model": optional(lambda value, where: value),
                "names": list_of(instance(str)),
                "arrays": list_of(instance(np.ndarray)),
            },
        )
        try:
            setup = Setup.read(saved["setup"])
            uplink = setup.uplink if self.takes_uplink else self._uplink
            session = self._new_session(setup.like, uplink, setup.run)
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"state_dict: setup: {error}") from error
        if saved["initial_model"] is None:
            session._begin_with(Version(0, saved["initial"], session._initial.model))
        else:
            model = TensorChecks(session._layout).model(saved["initial_model"], "initial_model")
            session = self._new_session(session._layout.state_of(model), uplink, setup.run)
        require(len(saved["names"]) == len(saved["arrays"]), "names")
        session.load_state_dict(dict(zip(saved["names"], saved["arrays"], strict=True)))
        check_fixed(uplink, setup.uplink)
        if saved["tensors"]:
            part_of(setup.like, saved["tensors"])
        self._session, self._setup, self._uplink = session, setup, uplink
        self._introduced, self._tensors = set(saved["introduced"]), saved["tensors"]
        self.source = saved["source"]

    @property
    def traffic(self) -> Traffic:
        """What the session counts, and the bytes of setups."""
        return self.session._traffic

    def end_round(self) -> str:
        """A line on what was sent and received since the last call; empty if nothing was."""
        session = self._session
        return "" if session is None else session._end_round(session.version)

    def is_introduced(self, client_id: ClientId) -> bool:
        """Whether the client has answered, other than by a request."""
        return client_id in self._introduced

    def is_tensor(self, name: str) -> bool:
        """Whether the first model has a tensor of this name."""
        return name in self._setup.like

    def resembles(self, model: Mapping[str, Any]) -> bool:
        """Whether a model has a tensor of the same name as the first model."""
        return any(map(self.is_tensor, model))

    def difference(self, model: Mapping[str, Any]) -> str:
        """The first tensor in which a model differs from the first one; empty if in none."""
        return difference(model, self._setup.like)

    @property
    def has_session(self) -> bool:
        return self._session is not None

    @property
    def session(self) -> ServerSession:
        """The session; RuntimeError before the first model is sent."""
        if self._session is None:
            raise RuntimeError("session: there is none before the first model is sent")
        return self._session

    def update(
        self,
        model: Mapping[str, Any],
        *,
        partial: bool = False,
        uplink: CodecConfig | None = None,
    ) -> bool:
        """Set the global model; False if its names or shapes differ from the first one's.

        With ``partial`` it may lack tensors; they stay as they are. ``uplink`` is that of the
        message which brings the model.

        Raises:
            ValueError: As :meth:`send`; nothing has changed then.
        """
        if self._session is None:
            self._begin(model)
            return True
        like = self._setup.like
        fitted = fit(model, like, partial=partial)
        if fitted is None:
            return False
        check_fixed(uplink or self._uplink, self._setup.uplink)
        if len(fitted) == len(like):
            self._session.update(fitted)
            self._tensors = b""
        else:
            self._session._update_part(fitted)
            self._tensors = write_names(fitted, like)
        return True

    def _begin(self, model: Mapping[str, Any]) -> None:
        if self._initial_bits is not None:
            rounded = encode_keyframe(model, mantissa_bits=self._initial_bits)
            model = decode_keyframe(rounded, model)
        run = secrets.token_hex(8)
        session = self._new_session(model, self._uplink, run)
        session.update(model)  # a keyframe must be newer than a client's zeros
        like = {name: empty_like(array) for name, array in model.items()}
        self._session, self._setup = session, self._setup._replace(like=like, run=run)

    def _new_session(
        self, model: Mapping[str, Any], uplink: CodecConfig, run: str
    ) -> ServerSession:
        session = ServerSession(model, uplink, self._downlink, run=run, history=self._history)
        session._logs_rounds = False
        return session

    def send(self, client_id: ClientId, uplink: CodecConfig | None = None) -> Parcel:
        """The parcel that brings the client to the newest global model.

        ``uplink`` replaces the configuration for the client's reply.

        Raises:
            ValueError: It differs from the first one in more than targets and steps.
        """
        settings = self._settings(uplink)
        if client_id in self._introduced:
            return {MESSAGE: self.session.send(client_id), **settings}
        if self.shared_initial:
            return self._with_setup(self.session.send(client_id), settings)
        return self.answer(client_id, NOTHING_HELD, uplink)

    def answer(
        self, client_id: ClientId, request: bytes, uplink: CodecConfig | None = None
    ) -> Parcel:
        """The parcel for a client that refused the last message; raises CodecError."""
        session = self.session
        if request == NOTHING_HELD:
            request = write_message(_NOTHING._replace(run=session._identity.check))
        return self._with_setup(session.answer(client_id, request), self._settings(uplink))

    def _settings(self, uplink: CodecConfig | None) -> Parcel:
        """What a message says beside the model: which tensors it has, and how to reply."""
        uplink = uplink or self._uplink
        check_fixed(uplink, self._setup.uplink)
        parcel = {TENSORS: self._tensors} if self._tensors else {}
        if uplink != self._setup.uplink:
            parcel[UPLINK] = write_config(uplink)
        self.traffic.add("down", sum(map(len, parcel.values())), n_messages=0, keyframe=False)
        return parcel

    def _with_setup(self, message: bytes, settings: Parcel) -> Parcel:
        setup = self._setup.written()
        self.traffic.add("down", len(setup), n_messages=0, keyframe=False)
        return {MESSAGE: message, SETUP: setup, **settings}

    def receive(self, client_id: ClientId, parcel: Mapping[str, bytes]) -> Model | None:
        """The recovered local model, or None if the reply has no model; raises CodecError."""
        model: Model | None = None
        if MESSAGE in parcel:
            held = self._setup.like
            if TENSORS in parcel:
                held = part_of(held, parcel[TENSORS])
            whole = self.session.receive(client_id, parcel[MESSAGE])
            model = {name: whole[name] for name in held}
        else:
            self.session.acknowledged(client_id, parcel[HELD])
        self._introduced.add(client_id)
        return model
