"""Flower: :class:`CodecGrid` wraps the server's Grid, :data:`codec_mod` is a mod of the client.

They are for Flower's message API. On the server::

    strategy.start(grid=CodecGrid(grid), ...)

and on the client::

    app = ClientApp(mods=[codec_mod])

Strategy, training and evaluation do not change. The ArrayRecord of a message is sent as one of the
same name that holds a single array of bytes; other records do not change. docs/integrations.md has
the rest.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from numpy.typing import NDArray

try:
    from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
    from flwr.clientapp.typing import ClientAppCallable
    from flwr.common.constant import ErrorCode
    from flwr.serverapp import Grid
except ImportError as error:
    raise ImportError(
        "resfed_codec.integrations.flower needs Flower: pip install 'resfed-codec[flower]'"
    ) from error

from resfed_codec.config import CodecConfig
from resfed_codec.errors import CodecError, StateMismatchError
from resfed_codec.integrations._ends import (
    HELD,
    MESSAGE,
    NOTHING_HELD,
    REQUEST,
    SETUP,
    Parcel,
    ServerEnd,
)
from resfed_codec.integrations._flower_notices import Notices, warn_of_no_grid
from resfed_codec.integrations._flower_records import (
    SESSION,
    STATE,
    arrays_of,
    clipping_norm,
    kind,
    like,
    model_of,
    name_of_model,
    parcel_in,
    record_of,
    replaced,
)
from resfed_codec.integrations._setup import Initial, Model, fit, read_setup
from resfed_codec.session.client import ClientSession
from resfed_codec.session.server import ServerSession

_Contents: TypeAlias = "Mapping[str, tuple[str, tuple[int, ...], bytes]]"
"""Dtypes, shapes and data of a model's arrays, as they are in messages."""

POLL_SECONDS = 1.0
MAX_MESSAGES = 4
"""Messages to a node for one message of the strategy, before that counts as failed."""


class CodecGrid(Grid):
    """A Grid that encodes the models it sends and decodes those it receives.

    Give it to a strategy instead of the Grid. The first model that is sent sets names, shapes and
    dtypes. A message with another model, without a model or with several is sent unchanged. If a
    node refuses a message (it is new, was restarted, or has missed rounds), the grid brings it up
    to date at once, and the strategy sees only its reply. If a reply still cannot be decoded, the
    strategy gets an error reply.

    Args:
        grid: The Grid of the ServerApp.
        uplink, downlink, history: Arguments of the :class:`~resfed_codec.ServerSession`; clients
            get them from the server. With a PyTorch model, use
            ``dense=resfed_codec.buffer_names(model)`` for tensors that a round replaces.
        shared_initial: True if clients make the first model themselves, with
            ``CodecMod(initial)``, so that it is not sent.

    Raises:
        TypeError: ``grid`` is not a Grid, or ``uplink`` or ``downlink`` is not a CodecConfig.
    """

    def __init__(
        self,
        grid: Grid,
        uplink: CodecConfig | None = None,
        downlink: CodecConfig | None = None,
        *,
        history: int = 4,
        shared_initial: bool = False,
    ) -> None:
        self._grid = grid
        if not isinstance(grid, Grid):
            raise TypeError(
                f"grid: must be the ServerApp's Grid, not {kind(grid)}; as in"
                " strategy.start(grid=CodecGrid(grid), ...)"
            )
        self._end = ServerEnd(uplink, downlink, history=history, shared_initial=shared_initial)
        self._current: _Contents = {}
        self._waiting: dict[str, _Waiting] = {}
        self._asked_as: dict[str, str] = {}
        self._notices = Notices(self._end)

    @property
    def stats(self) -> dict[str, int]:
        """What was sent and received since the grid was made or :meth:`reset_stats` was called.

        The keys are those of :attr:`ServerSession.stats <resfed_codec.ServerSession.stats>`, and
        "plain_messages" and "plain_bytes": models that were sent or came uncompressed. After each
        ``send_and_receive`` Flower's log has a line on it.
        """
        return {**self._end.stats, **self._notices.plain}

    def reset_stats(self) -> None:
        """Let :attr:`stats` count from zero."""
        self._notices.reset()
        self._end.reset_stats()

    @property
    def session(self) -> ServerSession:
        """The server's session, for ``memory()`` and ``forget(node_id)``.

        Raises:
            RuntimeError: No model has been sent yet.
        """
        return self._end.session

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Everything that a restarted ServerApp needs to go on with its nodes, as plain arrays.

        Save it where you save the model.

        Raises:
            RuntimeError: No model has been sent yet.
        """
        self._end.source = _digest(self._current) if self._current else self._end.source
        return self._end.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned, in a grid of the same arguments.

        Raises:
            ValueError: As :meth:`~resfed_codec.ServerSession.load_state_dict`: damaged, or saved
                with other settings than targets and steps. Nothing has changed then.
        """
        self._end.load_state_dict(state_dict)
        self._current, self._waiting, self._asked_as = {}, {}, {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Encode the models in messages, and send them.

        Returns:
            The ids for :meth:`pull_messages`.

        Raises:
            TypeError, ValueError: A model cannot be encoded, see
                :meth:`~resfed_codec.ServerSession.update`; nothing has been sent then.
        """
        given = list(messages)
        sent = [self._encoded(message) for message in given]
        ids = list(self._grid.push_messages(sent))
        for original, message in zip(given, sent, strict=True):
            message_id = message.metadata.message_id
            if message is not original and message_id in ids:
                original.metadata.__dict__["_message_id"] = message_id  # as Grids do
                self._waiting[message_id] = _Waiting(original)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies so far, with their models decoded."""
        ids = [self._asked_as.get(message_id, message_id) for message_id in message_ids]
        replies = [self._decoded(reply) for reply in self._grid.pull_messages(ids)]
        return [reply for reply in replies if reply is not None]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and wait at most ``timeout`` seconds for the replies."""
        end = None if timeout is None else time.monotonic() + timeout
        missing = {message_id for message_id in self.push_messages(messages) if message_id}
        replies: list[Message] = []
        while missing and (end is None or time.monotonic() < end):
            arrived = list(self.pull_messages(missing))
            replies += arrived
            missing -= {reply.metadata.reply_to_message_id for reply in arrived}
            if missing and not arrived:
                time.sleep(POLL_SECONDS)
        for message_id in missing:
            self._waiting.pop(self._asked_as.pop(message_id, message_id), None)
        self._notices.log_round()
        return replies

    def _encoded(self, message: Message) -> Message:
        """The message to send; ``message`` itself if it has no model for the codec."""
        name = self._notices.name_of_model(message.content, "a message")
        if not name or not self._update(message.content.array_records[name]):
            self._notices.count_plain(message.content)
            return message
        parcel = self._end.send(message.metadata.dst_node_id)
        return like(message, replaced(message.content, name, record_of(parcel)))

    def _update(self, arrays: ArrayRecord) -> bool:
        """Set the global model to ``arrays``, unless it is that already."""
        contents = {name: (a.dtype, (*a.shape,), a.data) for name, a in arrays.items()}
        source = "" if self._current else self._end.source
        is_loaded = source and source == _digest(contents)
        if is_loaded or contents == self._current:
            self._current = contents
            return True
        self._notices.log_round()
        model = model_of(arrays)
        if not self._end.update(model):
            self._notices.warn_of_layout("a message", model)
            return False
        self._current = contents
        return True

    def _decoded(self, reply: Message) -> Message | None:
        """The strategy's reply; None if the node got another message first."""
        waiting = self._waiting.pop(reply.metadata.reply_to_message_id, None)
        if waiting is None:
            if reply.has_content():
                self._notices.count_plain(reply.content)
            return reply
        self._asked_as.pop(waiting.message.metadata.message_id, None)
        if reply.has_error():
            error = self._notices.explained(reply.error, waiting.node_id)
            return Message(error, reply_to=waiting.message)
        content = waiting.reply or reply.content
        try:
            name, parcel = parcel_in(content)
            if waiting.reply is not None:
                parcel = parcel_in(reply.content)[1]
            self._notices.check_reply(waiting.node_id, reply.content, parcel)
            if REQUEST in parcel:
                waiting.reply = None
                self._update(waiting.message.content.array_records[waiting.name])
                return self._ask(waiting, self._end.answer(waiting.node_id, parcel[REQUEST]))
            model = self._end.receive(waiting.node_id, parcel) if parcel else None
        except StateMismatchError as error:
            if error.request:
                waiting.reply = content
                return self._ask(waiting, {REQUEST: error.request})
            return _failed(waiting, error)
        except CodecError as error:
            return _failed(waiting, error)
        record = None if model is None else arrays_of(model)
        content = replaced(content, name, record)
        return Message(content, reply_to=waiting.message)

    def _ask(self, waiting: _Waiting, parcel: Parcel) -> Message | None:
        """Send the node another message for the one that is waiting."""
        if waiting.n_messages == MAX_MESSAGES:
            return _failed(waiting, "the node and the server cannot agree on a model")
        original = waiting.message
        message = like(original, replaced(original.content, waiting.name, record_of(parcel)))
        self._grid.push_messages([message])
        waiting.n_messages += 1
        self._waiting[message.metadata.message_id] = waiting
        self._asked_as[original.metadata.message_id] = message.metadata.message_id
        return None

    # ---- the rest of a Grid: calls of the wrapped one

    def set_run(self, run: Any) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return self._grid.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._grid.get_node_ids())

    def get_nodes(self) -> Iterable[Any]:
        return list(self._grid.get_nodes())

    def __getattr__(self, name: str) -> Any:
        if name == "_grid":  # while being unpickled
            raise AttributeError(name)
        return getattr(self._grid, name)


@dataclass(eq=False)
class _Waiting:
    """A message of the strategy that waits for its reply.

    ``reply`` is the reply that came, while the node is asked to send only its model again.
    """

    message: Message
    reply: RecordDict | None = None
    n_messages: int = 1

    @property
    def node_id(self) -> int:
        node_id: int = self.message.metadata.dst_node_id
        return node_id

    @property
    def name(self) -> str:
        """Name of the record that holds the model."""
        return name_of_model(self.message.content)


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
        session = read_setup(setup, self._initial, clipping_norm(message.content))
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
            message.content = replaced(message.content, name, arrays_of(model))
            reply = call_next(message, context)
            if reply.has_error():
                return reply
            reply.content = _with_local_model(reply.content, session, model)
        context.state[STATE] = ConfigRecord({SETUP: setup})
        context.state[SESSION] = arrays_of(session.state_dict())
        return reply


codec_mod = CodecMod()
"""The mod for ``ClientApp(mods=[codec_mod])``."""


def _with_local_model(content: RecordDict, session: ClientSession, like: Model) -> RecordDict:
    """The app's reply with an encoded model; a model of another layout stays unchanged."""
    name = name_of_model(content)
    local = None if not name else fit(model_of(content.array_records[name]), like)
    if local is None:
        return RecordDict({**content, STATE: record_of({HELD: session.acknowledge()})})
    return replaced(content, name, record_of({MESSAGE: session.send(local)}))


def _request(message: Message, request: bytes) -> Message:
    return Message(RecordDict({STATE: record_of({REQUEST: request})}), reply_to=message)


def _digest(contents: _Contents) -> bytes:
    """A digest of a model's arrays as they are in messages."""
    digest = hashlib.blake2b(digest_size=16)
    for name, (dtype, shape, data) in contents.items():
        digest.update(f"{len(name)}:{name} {dtype} {shape}\n".encode())
        digest.update(data)
    return digest.digest()


def _failed(waiting: _Waiting, why: object) -> Message:
    error = Error(ErrorCode.MOD_FAILED_PRECONDITION, f"resfed_codec: {why}")
    return Message(error, reply_to=waiting.message)
