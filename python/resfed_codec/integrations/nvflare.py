"""NVIDIA FLARE: four DXO filters that encode and decode task data and task results::

    job.to_server(ServerEncoder(), filter_type=FilterType.TASK_DATA, tasks=["train"])
    job.to_clients(ClientDecoder(), filter_type=FilterType.TASK_DATA, tasks=["train"])
    job.to_clients(ClientEncoder(), filter_type=FilterType.TASK_RESULT, tasks=["train"])
    job.to_server(ServerDecoder(), filter_type=FilterType.TASK_RESULT, tasks=["train"])

Tasks are DXOs of kind WEIGHTS, results of kind WEIGHTS or WEIGHT_DIFF, with NumPy arrays or torch
tensors; everything else is sent unchanged. A task or a result that is sent twice gives the same
output twice, and no filter changes its input. If a client refuses a message, it asks the server for
what it lacks by an auxiliary message, so no task is lost.

Of a WEIGHT_DIFF, the client encodes the model that it was made from, which is the one received plus
the difference, and the server makes the difference between that and the same received model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

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
from resfed_codec.integrations._arrays import copied, empty_like, is_array, same
from resfed_codec.integrations._ends import MESSAGE, NOTHING_HELD, REQUEST, SETUP, Parcel, ServerEnd
from resfed_codec.integrations._setup import Model, difference, fit, read_setup
from resfed_codec.session.client import ClientSession

END = "resfed_codec.end"
"""The property of a job's FLContext that holds what the filters of a site share."""

TOPIC = "resfed_codec.request"
REQUEST_SECONDS = 60.0
MAX_REQUESTS = 3
PARCEL = "parcel"

DIFFERENCE = "resfed.difference"
"""In a result's parcel if the result was a WEIGHT_DIFF."""

_making_an_end = threading.Lock()


class _Filter(DXOFilter):
    """Base of the filters: what they log. They see models that they leave alone, to say so."""

    def __init__(self) -> None:
        super().__init__([DataKind.WEIGHTS, DataKind.WEIGHT_DIFF, DataKind.APP_DEFINED], None)
        self._warned: set[str] = set()

    def _log(self, fl_ctx: FLContext, text: str) -> None:
        if text:
            self.log_info(fl_ctx, f"resfed_codec: {text}")

    def _warn(self, fl_ctx: FLContext, dxo: DXO, cause: str, text: str) -> None:
        """Log a warning about a model, once for each cause in a job."""
        if dxo.data_kind != DataKind.APP_DEFINED and cause not in self._warned:
            self._warned.add(cause)
            self.log_warning(fl_ctx, f"resfed_codec: {text}")


class ServerEncoder(_Filter):
    """Server, task data: encodes the global model for the client that gets the task.

    Args:
        uplink, downlink: Fields of :class:`~resfed_codec.CodecConfig`, e.g. ``{"sparsity": 0.99}``,
            or for a PyTorch module ``{"dense": list(resfed_codec.buffer_names(module))}``. Clients
            get them from the server.
        history: See :class:`~resfed_codec.ServerSession`.

    Raises:
        TypeError, ValueError: As :class:`~resfed_codec.CodecConfig`; settings that are not a dict.
    """

    def __init__(
        self,
        uplink: dict[str, Any] | None = None,
        downlink: dict[str, Any] | None = None,
        history: int = 4,
    ) -> None:
        super().__init__()
        # NVFLARE writes attributes of the arguments' names into the job's configuration.
        self.uplink, self.downlink, self.history = uplink, downlink, history
        self._new_end()

    def _new_end(self) -> _Server:
        uplink, downlink = _config("uplink", self.uplink), _config("downlink", self.downlink)
        return _Server(ServerEnd(uplink, downlink, history=self.history, shared_initial=False))

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """At the start of the job, register the answers to clients that refused a message; at its
        end, log the last round."""
        if event_type == EventType.START_RUN:
            fl_ctx.get_engine().register_aux_message_handler(TOPIC, self._answer)
        elif event_type == EventType.END_RUN:
            self._log(fl_ctx, _end_of(fl_ctx, self._new_end).end_round())

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
        why, cause = _obstacle(dxo, DataKind.WEIGHTS), dxo.data_kind
        if not why:
            server = _end_of(fl_ctx, self._new_end)
            sent, line = server.send(_peer_of(fl_ctx), dxo.data)
            self._log(fl_ctx, line)
            if isinstance(sent, dict):
                return _like(dxo, DataKind.APP_DEFINED, sent)
            why, cause = sent, "layout"
        self._warn(fl_ctx, dxo, cause, f"a task is sent uncompressed: {why}")
        return None


class ClientDecoder(_Filter):
    """Client, task data: decodes the global model."""

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO | None:
        """The DXO with the recovered model, a copy for this task.

        Raises:
            CodecError: As :meth:`~resfed_codec.ClientSession.receive`, also after the server's
                answers.
            RuntimeError: The server did not answer a request.
        """
        if MESSAGE not in dxo.data:
            self._warn(
                *(fl_ctx, dxo, "no encoder"),
                "a task's model came uncompressed: the job has no ServerEncoder among its task data"
                " filters, or the server's log says why",
            )
            return None
        client = _end_of(fl_ctx, _Client)
        model, n_bytes = client.receive(dxo.data, lambda r: _ask_server(r, fl_ctx))
        self._log(fl_ctx, f"received {_sizes(n_bytes, model)}")
        return _like(dxo, DataKind.WEIGHTS, model)


class ClientEncoder(_Filter):
    """Client, task results: encodes the local model."""

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO | None:
        """The encoded DXO; None, which leaves it unchanged, if its layout is another.

        Raises:
            TypeError, ValueError: As :meth:`~resfed_codec.ClientSession.send`.
        """
        why, cause = _obstacle(dxo, DataKind.WEIGHTS, DataKind.WEIGHT_DIFF), dxo.data_kind
        if not why:
            task_id = fl_ctx.get_prop(FLContextKey.TASK_ID)
            is_diff = dxo.data_kind == DataKind.WEIGHT_DIFF
            sent = _end_of(fl_ctx, _Client).send(task_id, dxo.data, is_diff=is_diff)
            if isinstance(sent, dict):
                self._log(fl_ctx, f"sent {_sizes(_size(sent), dxo.data)}")
                return _like(dxo, DataKind.APP_DEFINED, sent)
            why, cause = sent, "layout"
        self._warn(fl_ctx, dxo, cause, f"a result is sent uncompressed: {why}")
        return None


class ServerDecoder(_Filter):
    """Server, task results: decodes the local model."""

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO | None:
        """The DXO with the recovered model, or difference.

        Raises:
            CodecError: As :meth:`~resfed_codec.ServerSession.receive`, for a result older than the
                client's last one or trained from a model that the server no longer holds.
            RuntimeError: The job has no :class:`ServerEncoder`.
        """
        if MESSAGE not in dxo.data:
            self._warn(
                *(fl_ctx, dxo, "no encoder"),
                "a result's model came uncompressed: the job has no ClientEncoder among its task"
                " result filters, or the client's log says why",
            )
            return None
        model = _end_of(fl_ctx, _no_encoder).receive(_peer_of(fl_ctx), dxo.data)
        kind = DataKind.WEIGHT_DIFF if DIFFERENCE in dxo.data else DataKind.WEIGHTS
        return _like(dxo, kind, model)


class _Server:
    """The server's session, with a lock: NVFLARE filters tasks of several clients concurrently."""

    def __init__(self, end: ServerEnd) -> None:
        self._end, self._lock = end, threading.Lock()
        self._current: Model = {}

    def send(self, client: str, model: Model) -> tuple[Parcel | str, str]:
        """The parcel, or why there is none; and a line on the round that ended, if one has."""
        with self._lock:
            line = ""
            if not _same(model, self._current):
                line = self._end.end_round()
                if not self._end.update(model):
                    return self._end.difference(model), line
                self._current = {name: copied(array) for name, array in model.items()}
            return self._end.send(client), line

    def end_round(self) -> str:
        with self._lock:
            return self._end.end_round()

    def receive(self, client: str, parcel: Parcel) -> Model | None:
        """The local model, or what was added to the received one."""
        with self._lock:
            if DIFFERENCE not in parcel:
                return self._end.receive(client, parcel)
            start = self._end.session._trained_from(client, parcel[MESSAGE])
            model = self._end.receive(client, parcel)
            return model and {name: model[name] - start[name] for name in model}

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

    def receive(self, parcel: Parcel, ask: Callable[[bytes], Parcel]) -> tuple[Model, int]:
        """The model, and the bytes of the parcels that it took."""
        with self._lock:
            n_bytes = _size(parcel)
            for _ in range(MAX_REQUESTS):
                try:
                    return self._receive(parcel), n_bytes
                except StateMismatchError as error:
                    parcel = ask(error.request or NOTHING_HELD)
                    n_bytes += _size(parcel)
            return self._receive(parcel), n_bytes

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
        self._like = {name: empty_like(array) for name, array in model.items()}
        return model

    def send(self, task_id: str, model: Model, *, is_diff: bool = False) -> Parcel | str:
        """The parcel of a model, or of what is to be added to the received one; or why there is
        none."""
        with self._lock:
            if self._session is None:
                return "no ClientDecoder has decoded a task before"
            if self._sent is not None and self._sent[0] == task_id:
                return self._sent[1]
            why = difference(model, self._like)
            if why:
                return why
            if is_diff:
                truths = [name for name, array in self._like.items() if "bool" in str(array.dtype)]
                if truths:
                    return f"tensor {truths[0]!r} is bool, of which there are no differences"
                start = self._session.state
                model = {name: start[name] + model[name] for name in start}
            fitted = fit(model, self._like)
            if fitted is None:
                return "it has no tensors"
            parcel = {MESSAGE: self._session.send(fitted)}
            if is_diff:
                parcel[DIFFERENCE] = b""
            self._sent = task_id, parcel
            return parcel


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


def _config(name: str, fields: dict[str, Any] | None) -> CodecConfig:
    if fields is not None and not isinstance(fields, dict):
        raise TypeError(
            f"{name}: must be a dict of fields of CodecConfig, not {type(fields).__name__}"
        )
    return CodecConfig(**fields or {})


def _obstacle(dxo: DXO, *kinds: Any) -> str:
    """Why the codec does not encode a DXO; empty if it does."""
    if dxo.data_kind not in kinds:
        kind = getattr(dxo.data_kind, "value", dxo.data_kind)  # an enum's, or a str
        return f"its kind is {kind}; the codec encodes only {kinds[0].value} there"
    for name, value in dxo.data.items():
        if not is_array(value):
            kind = type(value).__name__
            return f"{name!r} is a {kind}; the codec encodes NumPy arrays and torch tensors"
    return ""


def _same(a: Model, b: Model) -> bool:
    """Whether two models are bitwise equal."""
    return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)


def _size(parcel: Parcel) -> int:
    return sum(map(len, parcel.values()))


def _sizes(n_bytes: int, model: Model) -> str:
    return f"{n_bytes} bytes instead of {sum(a.nbytes for a in model.values())}"


def _like(dxo: DXO, kind: str, data: dict[str, Any]) -> DXO:
    """A new DXO with this content; NVFLARE adds the history of filters itself."""
    meta = {key: value for key, value in dxo.meta.items() if key != MetaKey.FILTER_HISTORY}
    return DXO(kind, data, meta)
