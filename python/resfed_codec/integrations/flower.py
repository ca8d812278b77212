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
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from numpy.typing import NDArray

try:
    from flwr.app import ArrayRecord, Error, Message, RecordDict
    from flwr.common.constant import ErrorCode
    from flwr.serverapp import Grid
except ImportError as error:
    raise ImportError(
        "resfed_codec.integrations.flower needs Flower: pip install 'resfed-codec[flower]'"
    ) from error

from resfed_codec.config import CodecConfig
from resfed_codec.errors import CodecError, StateMismatchError
from resfed_codec.integrations._ends import NOTHING_HELD, REQUEST, TENSORS, Parcel, ServerEnd
from resfed_codec.integrations._flower_mod import CodecMod, codec_mod
from resfed_codec.integrations._flower_notices import Notices
from resfed_codec.integrations._flower_records import (
    arrays_of,
    kind,
    like,
    model_of,
    name_of_model,
    parcel_in,
    record_of,
    replaced,
)
from resfed_codec.session.server import ServerSession
from resfed_codec.session.traffic import Traffic

__all__ = ["CodecGrid", "CodecMod", "codec_mod"]

_Contents: TypeAlias = "Mapping[str, tuple[str, tuple[int, ...], bytes]]"
"""Dtypes, shapes and data of a model's arrays, as they are in messages."""

POLL_SECONDS = 1.0
MAX_MESSAGES = 4
"""Messages to a node for one message of the strategy, before that counts as failed."""


class CodecGrid(Grid):
    """A Grid that encodes the models it sends and decodes those it receives.

    Give it to a strategy instead of the Grid. The first model that is sent sets names, shapes and
    dtypes. Messages and replies may lack tensors of it, and then only hold the others. If the model
    changes in another way, the grid begins anew with what is then the first model. A message
    without a model, with several, or with no tensor of the first model's names is sent unchanged.
    If a node refuses a message (it is new, was restarted, or has missed rounds), the grid brings it
    up to date at once, and the strategy sees only its reply. If a reply still cannot be decoded,
    the strategy gets an error reply.

    Args:
        grid: The Grid of the ServerApp.
        uplink: How clients encode their replies; they get it from the server. Or a function that
            returns that for each message, such as ``lambda message: slow if
            message.metadata.dst_node_id in slow_nodes else fast``. Only targets and steps may
            differ between messages. With a PyTorch model, use
            ``dense=resfed_codec.buffer_names(model)`` for tensors that a round replaces.
        downlink, history: Arguments of the :class:`~resfed_codec.ServerSession`.
        shared_initial: True if clients make the first model themselves, with
            ``CodecMod(initial)``, so that it is not sent.
        initial_bits: To how many explicit mantissa bits the first model is rounded, so that it
            takes fewer bytes; the training starts from the rounded one. Default: not at all.

    Raises:
        TypeError: ``grid`` is not a Grid, or ``uplink`` or ``downlink`` is not a CodecConfig.
        ValueError: ``initial_bits`` is out of range, or ``shared_initial`` is given, too.
    """

    def __init__(
        self,
        grid: Grid,
        uplink: CodecConfig | Callable[[Message], CodecConfig] | None = None,
        downlink: CodecConfig | None = None,
        *,
        history: int = 4,
        shared_initial: bool = False,
        initial_bits: int | None = None,
    ) -> None:
        self._grid = grid
        if not isinstance(grid, Grid):
            raise TypeError(
                f"grid: must be the ServerApp's Grid, not {kind(grid)}; as in"
                " strategy.start(grid=CodecGrid(grid), ...)"
            )
        if isinstance(uplink, type):
            raise TypeError(f"uplink: must be a CodecConfig or a function, not {kind(uplink)}")
        self._uplink, self._downlink, self._history = uplink, downlink, history
        self._first: dict[str, Any] = {
            "shared_initial": shared_initial,
            "initial_bits": initial_bits,
        }
        self._end = self._new_end(None if callable(uplink) else uplink, **self._first)
        self._traffics: list[Traffic] = []
        self._current: _Contents = {}
        self._waiting: dict[str, _Waiting] = {}
        self._asked_as: dict[str, str] = {}
        self._notices = Notices(self._end)

    def _new_end(
        self,
        uplink: CodecConfig | None,
        *,
        shared_initial: bool = False,
        initial_bits: int | None = None,
    ) -> ServerEnd:
        end = ServerEnd(
            uplink,
            self._downlink,
            history=self._history,
            shared_initial=shared_initial,
            initial_bits=initial_bits,
        )
        end.takes_uplink = callable(self._uplink)
        return end

    @property
    def stats(self) -> dict[str, int]:
        """What was sent and received since the grid was made or :meth:`reset_stats` was called.

        The keys are those of :attr:`ServerSession.stats <resfed_codec.ServerSession.stats>`, and
        "plain_messages" and "plain_bytes": models that were sent or came uncompressed. After each
        ``send_and_receive`` Flower's log has a line on it.
        """
        counts = Counter(Traffic(0).total)
        for traffic in self._traffics:
            counts.update(traffic.total)
        return {**counts, **self._notices.plain}

    def reset_stats(self) -> None:
        """Let :attr:`stats` count from zero."""
        self._notices.reset()
        for traffic in self._traffics:
            traffic.reset()

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
        end = self._new_end(None if callable(self._uplink) else self._uplink, **self._first)
        end.load_state_dict(state_dict)
        self._take(end)
        self._current, self._waiting, self._asked_as = {}, {}, {}

    def _take(self, end: ServerEnd) -> None:
        """Use an end that has a session."""
        self._end = self._notices.end = end
        self._traffics.append(end.traffic)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Encode the models in messages, and send them.

        Returns:
            The ids for :meth:`pull_messages`.

        Raises:
            TypeError, ValueError: A model cannot be encoded, see
                :meth:`~resfed_codec.ServerSession.update`; nothing has been sent then.
        """
        given = list(messages)
        uplinks = [  # all, before the first message changes anything
            self._uplink_for(message) if name_of_model(message.content) else None
            for message in given
        ]
        sent = [self._encoded(*each) for each in zip(given, uplinks, strict=True)]
        ids = list(self._grid.push_messages([message for message, _ in sent]))
        for original, (message, waiting) in zip(given, sent, strict=True):
            message_id = message.metadata.message_id
            if waiting is not None and message_id in ids:
                original.metadata.__dict__["_message_id"] = message_id  # as Grids do
                self._waiting[message_id] = waiting
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies so far, with their models decoded."""
        ids = [self._asked_as.get(message_id, message_id) for message_id in message_ids]
        replies = [self._decoded(reply) for reply in self._grid.pull_messages(ids)]
        return [reply for reply in replies if reply is not None]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and wait at most ``timeout`` seconds for the replies.

        Replies are in the order of the messages, whenever they arrive: a strategy that sums floats
        gets the same sum in every run.
        """
        end = None if timeout is None else time.monotonic() + timeout
        places = {message_id: i for i, message_id in enumerate(self.push_messages(messages))}
        missing = {message_id for message_id in places if message_id}
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
        return sorted(replies, key=lambda reply: places[reply.metadata.reply_to_message_id])

    def _encoded(
        self, message: Message, uplink: CodecConfig | None
    ) -> tuple[Message, _Waiting | None]:
        """What to send, and what waits for the reply; None if there is no model for the codec."""
        name = self._notices.name_of_model(message.content, "a message")
        if not name or not self._update(message.content.array_records[name], uplink):
            self._notices.count_plain(message.content)
            return message, None
        parcel = self._end.send(message.metadata.dst_node_id, uplink)
        encoded = like(message, replaced(message.content, name, record_of(parcel)))
        return encoded, _Waiting(message, self._end, uplink)

    def _uplink_for(self, message: Message) -> CodecConfig | None:
        if not callable(self._uplink):
            return self._uplink
        uplink = self._uplink(message)
        if not isinstance(uplink, CodecConfig):
            node_id = message.metadata.dst_node_id
            raise TypeError(
                f"uplink: returned {kind(uplink)} for node {node_id}: must return a CodecConfig"
            )
        return uplink

    def _update(self, arrays: ArrayRecord, uplink: CodecConfig | None) -> bool:
        """Set the global model to ``arrays``, unless it is that already."""
        contents = {name: (a.dtype, (*a.shape,), a.data) for name, a in arrays.items()}
        source = "" if self._current else self._end.source
        is_loaded = source and source == _digest(contents)
        if is_loaded or contents == self._current:
            self._current = contents
            return True
        self._notices.log_round()
        model, end = model_of(arrays), self._end
        if not end.has_session:
            end = self._new_end(uplink, **self._first)
        if not end.update(model, partial=True, uplink=uplink):
            if not end.resembles(model):
                self._notices.warn_of_layout("a message", model)
                return False
            self._notices.warn_of_change(model)
            end = self._new_end(uplink)
            end.update(model)
        if end is not self._end:
            self._take(end)
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
            name, parcel = parcel_in(reply.content)
            if waiting.reply is not None:  # only its model was sent again
                name, first = parcel_in(content)
                parcel = {k: first[k] for k in (TENSORS,) if k in first} | parcel
            self._notices.check_reply(waiting.node_id, reply.content, parcel)
            if REQUEST in parcel:
                waiting.reply = None
                return self._ask(waiting, self._answer(waiting, parcel[REQUEST]))
            model = waiting.end.receive(waiting.node_id, parcel) if parcel else None
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

    def _answer(self, waiting: _Waiting, request: bytes) -> Parcel:
        """The model again, for a node that refused it; raises CodecError."""
        self._update(waiting.message.content.array_records[waiting.name], waiting.uplink)
        if waiting.end is not self._end:  # the model has another layout than the last one sent
            waiting.end, request = self._end, NOTHING_HELD
        return self._end.answer(waiting.node_id, request, waiting.uplink)

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

    Attributes:
        end: The end that encoded the message.
        uplink: How the reply is to be encoded.
        reply: The reply that came, while the node is asked to send only its model again.
        n_messages: Messages that the node got.
    """

    message: Message
    end: ServerEnd
    uplink: CodecConfig | None
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
