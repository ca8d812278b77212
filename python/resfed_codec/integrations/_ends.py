"""What the integrations share: the server's end, and what server and clients exchange.

They exchange *parcels*, small mappings from names to bytes that any framework can carry:

- ``MESSAGE``: a message or payload of a session;
- ``SETUP``: layout and configurations, for a client that may not have them yet;
- ``REQUEST``: from an end that refused a message: what it holds;
- ``HELD``: in a reply without a model: what the client holds now.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from resfed_codec.config import CodecConfig, check_config
from resfed_codec.integrations._setup import Model, Setup, difference, fit
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

    Attributes:
        source: What the integration saves with the state.
    """

    def __init__(
        self,
        uplink: CodecConfig | None,
        downlink: CodecConfig | None,
        *,
        history: int,
        shared_initial: bool,
    ) -> None:
        self._uplink = check_config("uplink", uplink)
        self._downlink = check_config("downlink", downlink)
        check_predictors(self._uplink, self._downlink)
        self._history, self.shared_initial = history, shared_initial
        self._session: ServerSession | None = None
        self._like: Model = {}
        self._setup = b""
        self._introduced: set[ClientId] = set()
        self.source = b""

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Everything that changes, as plain arrays; RuntimeError before the first model."""
        session = self.session
        initial, saved = session._initial, session.state_dict()
        fields = {
            "setup": self._setup,
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
            session = self._new_session(setup.like, setup.run)
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"state_dict: setup: {error}") from error
        if saved["initial_model"] is None:
            session._begin_with(Version(0, saved["initial"], session._initial.model))
        else:
            model = TensorChecks(session._layout).model(saved["initial_model"], "initial_model")
            session = self._new_session(session._layout.state_of(model), setup.run)
        require(len(saved["names"]) == len(saved["arrays"]), "names")
        session.load_state_dict(dict(zip(saved["names"], saved["arrays"], strict=True)))
        self._session, self._like, self._setup = session, setup.like, saved["setup"]
        self._introduced, self.source = set(saved["introduced"]), saved["source"]

    @property
    def stats(self) -> dict[str, int]:
        """:attr:`ServerSession.stats`, with the bytes of setups; zeros before the first model."""
        return Traffic(0).total if self._session is None else self._session.stats

    def reset_stats(self) -> None:
        """Let :attr:`stats` count from zero."""
        if self._session is not None:
            self._session.reset_stats()

    def end_round(self) -> str:
        """A line on what was sent and received since the last call; empty if nothing was."""
        session = self._session
        return "" if session is None else session._end_round(session.version)

    def is_introduced(self, client_id: ClientId) -> bool:
        """Whether the client has answered, other than by a request."""
        return client_id in self._introduced

    def is_tensor(self, name: str) -> bool:
        """Whether the first model has a tensor of this name."""
        return name in self._like

    def difference(self, model: Mapping[str, NDArray[Any]]) -> str:
        """The first tensor in which a model differs from the first one; empty if in none."""
        return difference(model, self._like)

    @property
    def session(self) -> ServerSession:
        """The session; RuntimeError before the first model is sent."""
        if self._session is None:
            raise RuntimeError("session: there is none before the first model is sent")
        return self._session

    def update(self, model: Mapping[str, NDArray[Any]]) -> bool:
        """Set the global model; False if its names or shapes differ from the first one's."""
        if self._session is None:
            run = secrets.token_hex(8)
            session = self._new_session(model, run)
            session.update(model)  # a keyframe must be newer than a client's zeros
            like = {name: np.empty_like(array) for name, array in model.items()}
            setup = Setup(like, self._uplink, self._downlink, run, self._history)
            self._session, self._like, self._setup = session, like, setup.written()
            return True
        fitted = fit(model, self._like)
        if fitted is not None:
            self._session.update(fitted)
        return fitted is not None

    def _new_session(self, model: Mapping[str, Any], run: str) -> ServerSession:
        session = ServerSession(model, self._uplink, self._downlink, run=run, history=self._history)
        session._logs_rounds = False
        return session

    def send(self, client_id: ClientId) -> Parcel:
        """The parcel that brings the client to the newest global model."""
        if client_id in self._introduced:
            return {MESSAGE: self.session.send(client_id)}
        if self.shared_initial:
            return self._with_setup(self.session.send(client_id))
        return self.answer(client_id, NOTHING_HELD)

    def answer(self, client_id: ClientId, request: bytes) -> Parcel:
        """The parcel for a client that refused the last message; raises CodecError."""
        session = self.session
        if request == NOTHING_HELD:
            request = write_message(_NOTHING._replace(run=session._identity.check))
        return self._with_setup(session.answer(client_id, request))

    def _with_setup(self, message: bytes) -> Parcel:
        n_bytes = len(self._setup)
        self.session._traffic.add("down", n_bytes, n_messages=0, keyframe=False)
        return {MESSAGE: message, SETUP: self._setup}

    def receive(self, client_id: ClientId, parcel: Mapping[str, bytes]) -> Model | None:
        """The recovered local model, or None if the reply has no model; raises CodecError."""
        model: Model | None = None
        if MESSAGE in parcel:
            model = self.session.receive(client_id, parcel[MESSAGE])
        else:
            self.session.acknowledged(client_id, parcel[HELD])
        self._introduced.add(client_id)
        return model
