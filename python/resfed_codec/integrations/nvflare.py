"""NVIDIA FLARE: four DXO filters that encode and decode task data and task results::

    job.to_server(ServerEncoder(), filter_type=FilterType.TASK_DATA, tasks=["train"])
    job.to_clients(ClientDecoder(), filter_type=FilterType.TASK_DATA, tasks=["train"])
    job.to_clients(ClientEncoder(), filter_type=FilterType.TASK_RESULT, tasks=["train"])
    job.to_server(ServerDecoder(), filter_type=FilterType.TASK_RESULT, tasks=["train"])

Models are DXOs of kind WEIGHTS with NumPy arrays; everything else is sent unchanged. A task or a
result that is sent twice gives the same output twice, and no filter changes its input. If a client
refuses a message, it asks the server for what it lacks by an auxiliary message, so no task is lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    from nvflare.apis.dxo import DXO, DataKind, MetaKey
    from nvflare.apis.dxo_filter import DXOFilter
    from nvflare.apis.event_type import EventType
    from nvflare.apis.fl_constant import FLContextKey, ReturnCode
    from nvflare.apis.fl_context import FLContext
    from nvflare.apis.shareable import Shareable, make_reply
except ImportError as error:
    raise ImportError(
        "resfed_codec.integrations.nvflare needs NVFLARE: pip install 'resfed-codec[nvflare]'"
    ) from error

from resfed_codec.config import CodecConfig
from resfed_codec.errors import StateMismatchError
from resfed_codec.integrations._ends import (
    MESSAGE,
    NOTHING_HELD,
    REQUEST,
    SETUP,
    Model,
    Parcel,
    ServerEnd,
    fit,
    read_setup,
)
from resfed_codec.session.client import ClientSession

END = "resfed_codec.end"
"""The property of a job's FLContext that holds what the filters of a site share."""

TOPIC = "resfed_codec.request"
REQUEST_SECONDS = 60.0
MAX_REQUESTS = 3
PARCEL = "parcel"

_making_an_end = threading.Lock()


class ServerEncoder(DXOFilter):
    """Server, task data: encodes the global model for the client that gets the task.

    Args:
        uplink, downlink: Fields of :class:`~resfed_codec.CodecConfig`, e.g. ``{"sparsity": 0.99}``,
            or for a PyTorch module ``{"dense": list(resfed_codec.buffer_names(module))}``. Clients
            get them from the server.
        history: See :class:`~resfed_codec.ServerSession`.

    Raises:
        TypeError, ValueError: As :class:`~resfed_codec.CodecConfig`.
    """

    def __init__(
        self,
        uplink: dict[str, Any] | None = None,
        downlink: dict[str, Any] | None = None,
        history: int = 4,
    ) -> None:
        super().__init__([DataKind.WEIGHTS], None)
        # NVFLARE writes attributes of the arguments' names into the job's configuration.
        self.uplink, self.downlink, self.history = uplink, downlink, history
        self._new_end()

    def _new_end(self) -> _Server:
        uplink, downlink = CodecConfig(**self.uplink or {}), CodecConfig(**self.downlink or {})
        return _Server(ServerEnd(uplink, downlink, history=self.history, shared_initial=False))

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """At the start of the job, register the answers to clients that refused a message."""
        if event_type == EventType.START_RUN:
            fl_ctx.get_engine().register_aux_message_handler(TOPIC, self._answer)

    def _answer(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        client = _peer_of(fl_ctx)
        reply = make_reply(ReturnCode.OK)
        reply[PARCEL] = _end_of(fl_ctx, self._new_end).answer(client, request[PARCEL][REQUEST])
        self.log_info(fl_ctx, f"resfed_codec: {client} refused a message and gets what it lacks")
        return reply

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO | None:
        """The encoded DXO; None, which leaves it unchanged, if its layout is another.

        Raises:
            TypeError, ValueError: As :meth:`~resfed_codec.ServerSession.update`.
        """
        if not _is_model(dxo.data):
            return None
        parcel = _end_of(fl_ctx, self._new_end).send(_peer_of(fl_ctx), dxo.data)
        if parcel is None:
            return None
        self.log_info(fl_ctx, _sizes(dxo.data, parcel))
        return _like(dxo, DataKind.APP_DEFINED, parcel)


class ClientDecoder(DXOFilter):
    """Client, task data: decodes the global model."""

    def __init__(self) -> None:
        super().__init__([DataKind.APP_DEFINED], None)

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO | None:
        """The DXO with the recovered model, a copy for this task.

        Raises:
            CodecError: As :meth:`~resfed_codec.ClientSession.receive`, also after the server's
                answers.
            RuntimeError: The server did not answer a request.
        """
        if MESSAGE not in dxo.data:
            return None
        model = _end_of(fl_ctx, _Client).receive(dxo.data, lambda r: _ask_server(r, fl_ctx))
        return _like(dxo, DataKind.WEIGHTS, model)


class ClientEncoder(DXOFilter):
    """Client, task results: encodes the local model."""

    def __init__(self) -> None:
        super().__init__([DataKind.WEIGHTS], None)

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO | None:
        """The encoded DXO; None, which leaves it unchanged, if its layout is another.

        Raises:
            TypeError, ValueError: As :meth:`~resfed_codec.ClientSession.send`.
        """
        if not _is_model(dxo.data):
            return None
        task_id = fl_ctx.get_prop(FLContextKey.TASK_ID)
        parcel = _end_of(fl_ctx, _Client).send(task_id, dxo.data)
        if parcel is None:
            return None
        self.log_info(fl_ctx, _sizes(dxo.data, parcel))
        return _like(dxo, DataKind.APP_DEFINED, parcel)


class ServerDecoder(DXOFilter):
    """Server, task results: decodes the local model."""

    def __init__(self) -> None:
        super().__init__([DataKind.APP_DEFINED], None)

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO | None:
        """The DXO with the recovered model.

        Raises:
            CodecError: As :meth:`~resfed_codec.ServerSession.receive`, for a result older than the
                client's last one or trained from a model that the server no longer holds.
            RuntimeError: The job has no :class:`ServerEncoder`.
        """
        if MESSAGE not in dxo.data:
            return None
        model = _end_of(fl_ctx, _no_encoder).receive(_peer_of(fl_ctx), dxo.data)
        return _like(dxo, DataKind.WEIGHTS, model)


class _Server:
    """The server's session, with a lock: NVFLARE filters tasks of several clients concurrently."""

    def __init__(self, end: ServerEnd) -> None:
        self._end, self._lock = end, threading.Lock()
        self._current: Model = {}

    def send(self, client: str, model: Model) -> Parcel | None:
        with self._lock:
            if not _same(model, self._current):
                if not self._end.update(model):
                    return None
                self._current = {name: array.copy() for name, array in model.items()}
            return self._end.send(client)

    def receive(self, client: str, parcel: Parcel) -> Model | None:
        with self._lock:
            return self._end.receive(client, parcel)

    def answer(self, client: str, request: bytes) -> Parcel:
        with self._lock:
            return self._end.answer(client, request)


class _Client:
    """A client's session, with a lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._setup = b""
        self._session: ClientSession | None = None
        self._like: Model = {}
        self._sent: tuple[str, Parcel] | None = None

    def receive(self, parcel: Parcel, ask: Callable[[bytes], Parcel]) -> Model:
        with self._lock:
            for _ in range(MAX_REQUESTS):
                try:
                    return self._receive(parcel)
                except StateMismatchError as error:
                    parcel = ask(error.request or NOTHING_HELD)
            return self._receive(parcel)

    def _receive(self, parcel: Parcel) -> Model:
        setup = parcel.get(SETUP, self._setup)
        session = self._session
        if session is None or setup != self._setup:
            if not setup:
                raise StateMismatchError("payload: from a session that this client does not know")
            session = read_setup(setup, None)
        model: Model = session.receive(parcel[MESSAGE])
        if session is not self._session:
            self._session, self._setup, self._sent = session, setup, None
        self._like = {name: np.empty_like(array) for name, array in model.items()}
        return model

    def send(self, task_id: str, model: Model) -> Parcel | None:
        with self._lock:
            if self._sent is not None and self._sent[0] == task_id:
                return self._sent[1]
            fitted = fit(model, self._like)
            if self._session is None or fitted is None:
                return None
            self._sent = task_id, {MESSAGE: self._session.send(fitted)}
            return self._sent[1]


def _end_of(fl_ctx: FLContext, make: Callable[[], Any]) -> Any:
    """The object that this site's filters share in this job."""
    with _making_an_end:
        end = fl_ctx.get_prop(END)
        if end is None:
            end = make()
            fl_ctx.set_prop(END, end, private=True, sticky=True)
    return end


def _no_encoder() -> Any:
    raise RuntimeError("ServerDecoder: the job needs a ServerEncoder among its task data filters")


def _ask_server(request: bytes, fl_ctx: FLContext) -> Parcel:
    asked = Shareable()
    asked[PARCEL] = {REQUEST: request}
    replies = fl_ctx.get_engine().send_aux_request(None, TOPIC, asked, REQUEST_SECONDS, fl_ctx)
    for reply in replies.values():
        if PARCEL in reply:
            parcel: Parcel = reply[PARCEL]
            return parcel
    raise RuntimeError("resfed_codec: the server has not answered a request for its model")


def _peer_of(fl_ctx: FLContext) -> str:
    name: str = fl_ctx.get_peer_context().get_identity_name()
    return name


def _is_model(data: Mapping[str, Any]) -> bool:
    return all(isinstance(value, (np.ndarray, np.generic)) for value in data.values())


def _same(a: Model, b: Model) -> bool:
    """Whether two models are bitwise equal."""
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype
        and a[name].shape == b[name].shape
        and np.array_equal(_bytes_of(a[name]), _bytes_of(b[name]))
        for name in a
    )


def _bytes_of(array: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _sizes(model: Model, parcel: Parcel) -> str:
    n_bytes = sum(map(len, parcel.values()))
    return f"resfed_codec: {n_bytes} bytes instead of {sum(a.nbytes for a in model.values())}"


def _like(dxo: DXO, kind: str, data: dict[str, Any]) -> DXO:
    """A new DXO with this content; NVFLARE adds the history of filters itself."""
    meta = {key: value for key, value in dxo.meta.items() if key != MetaKey.FILTER_HISTORY}
    return DXO(kind, data, meta)
