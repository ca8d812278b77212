"""What the integrations share: the setup of sessions, and what server and clients exchange.

They exchange *parcels*, small mappings from names to bytes that any framework can carry:

- ``MESSAGE``: a message or payload of a session;
- ``SETUP``: layout and configurations, for a client that may not have them yet;
- ``REQUEST``: from an end that refused a message: what it holds;
- ``HELD``: in a reply without a model: what the client holds now.

A client takes everything it needs from the setup, so only the server is configured. A client that
does not have the server's initial model starts from zeros, and its first message is a keyframe.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from resfed_codec.config import CodecConfig, check_config
from resfed_codec.session.base import ClientId, check_predictors
from resfed_codec.session.client import ClientSession
from resfed_codec.session.server import ServerSession
from resfed_codec.session.traffic import Traffic
from resfed_codec.stream.message import Message, VersionId, write_message
from resfed_codec.stream.predictor import AdaptivePredictor, LinearPredictor

Model: TypeAlias = "dict[str, NDArray[Any]]"
Parcel: TypeAlias = "dict[str, bytes]"
Initial: TypeAlias = "Callable[[], Mapping[str, Any]]"

MESSAGE, SETUP, REQUEST, HELD = "resfed.message", "resfed.setup", "resfed.request", "resfed.held"

_NOTHING = Message(0, is_request=True, head=VersionId(0, 0))

NOTHING_HELD = write_message(_NOTHING)
"""The request of a client that has no session yet, and so does not know the run."""


class ServerEnd:
    """A ServerSession that starts from the first model it is given, and sends clients the setup.

    Args:
        uplink, downlink, history: Arguments of the ServerSession.
        shared_initial: Whether clients make the first model themselves, so that it is not sent. A
            client that does not have it asks for it and gets a keyframe.
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
        self._run = secrets.token_hex(8)
        self._session: ServerSession | None = None
        self._like: Model = {}
        self._setup = b""
        self._introduced: set[ClientId] = set()

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
            options = self._uplink, self._downlink
            session = ServerSession(model, *options, run=self._run, history=self._history)
            session._logs_rounds = False
            session.update(model)  # a keyframe must be newer than a client's zeros
            self._like = {name: np.empty_like(array) for name, array in model.items()}
            self._setup = write_setup(self._like, *options, self._run, self._history)
            self._session = session
            return True
        fitted = fit(model, self._like)
        if fitted is not None:
            self._session.update(fitted)
        return fitted is not None

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


def difference(model: Mapping[str, NDArray[Any]], like: Mapping[str, NDArray[Any]]) -> str:
    """The first tensor in which names or shapes differ; empty if in none."""
    for name, array in like.items():
        if name not in model:
            return f"tensor {name!r} is missing"
        if model[name].shape != array.shape:
            shapes = f"{list(model[name].shape)} instead of {list(array.shape)}"
            return f"tensor {name!r} has shape {shapes}"
    extra = next((name for name in model if name not in like), None)
    return "" if extra is None else f"tensor {extra!r} is new"


def fit(model: Mapping[str, NDArray[Any]], like: Mapping[str, NDArray[Any]]) -> Model | None:
    """``model`` with the dtypes of ``like``; None if names or shapes differ.

    Frameworks average integers in float64; this function rounds them to integers again.
    """
    if difference(model, like):
        return None
    return {name: _cast(model[name], like[name].dtype) for name in like}


def _cast(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if array.dtype.kind == "f" and dtype.kind in "iu":
        array = np.rint(array)
    return array.astype(dtype, copy=False)


def write_setup(
    like: Model, uplink: CodecConfig, downlink: CodecConfig, run: str, history: int
) -> bytes:
    tensors = [[name, array.dtype.name, array.shape] for name, array in like.items()]
    return json.dumps([tensors, asdict(uplink), asdict(downlink), run, history]).encode()


def read_setup(
    setup: bytes, initial: Initial | None, max_norm: float | None = None
) -> ClientSession:
    """A new session that starts from ``initial()``, or from zeros.

    ``max_norm`` bounds the client's updates, in addition to what the setup says.

    Raises:
        ValueError: The layout of ``initial()`` differs from the server's model, or the other
            settings do not go with ``max_norm``.
    """
    tensors, uplink, downlink, run, history = json.loads(setup)
    zeros = {name: np.zeros(shape, dtype) for name, dtype, shape in tensors}
    model = zeros
    if initial is not None:
        given = {name: np.asarray(value) for name, value in initial().items()}
        fitted = fit(given, zeros)
        if fitted is None:
            where = difference(given, zeros)
            raise ValueError(f"initial: has another layout than the server's model: {where}")
        model = fitted
    up, down = _config(uplink), _config(downlink)
    if max_norm is not None:
        up = replace(up, max_norm=min(max_norm, up.max_norm or max_norm))
    return ClientSession(model, up, down, run=run, history=history)


def _config(fields: dict[str, Any]) -> CodecConfig:
    predictor = fields["predictor"]
    if isinstance(predictor, dict):
        predictor = LinearPredictor(**predictor) if predictor else AdaptivePredictor()
    return CodecConfig(**{**fields, "predictor": predictor})
