"""A Grid that runs ClientApps in this process and simulates faults of Flower's engine.

Messages and contexts pass through Flower's wire format, so the ends share no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import (
    context_from_proto,
    context_to_proto,
    message_from_proto,
    message_to_proto,
)
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

Fault = Callable[[int, int], str]


class LocalGrid(Grid):
    """Each node has a context of its own. Node numbers start at 2**63; Flower's are unsigned.

    Attributes:
        fault: The fault of a message, by node and the number of messages that it got before:
            "" none; "raise" the app raises, and its context is kept; "killed" its process dies
            before it replies, so its context is rolled back; "rolled back" its process dies just
            after it replied; "lost" the reply never arrives, but the context is kept; "late" the
            reply arrives at the second pull; "damaged down", "damaged up" one byte of the codec's
            message changes.
        n_bytes: Sizes of the records sent down and up, as ``message_size_mod`` counts them.
        sent: Messages by node.
    """

    def __init__(self, app: ClientApp, n_nodes: int, fault: Fault = lambda node, n: "") -> None:
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
        self.app, self.fault = app, fault
        self.contexts: dict[int, Context] = {}
        self.sent: dict[int, list[Message]] = {}
        self.n_bytes: list[tuple[int, int]] = []
        self._replies: dict[str, Message] = {}
        self._late: dict[str, Message] = {}
        self._next = 2**63
        self._count = 0
        for partition in range(n_nodes):
            self.start_node(partition)

    def start_node(self, partition: int) -> int:
        node, self._next = self._next, self._next + 1
        self.contexts[node] = Context(1, node, {"partition-id": partition}, RecordDict(), {})
        self.sent[node] = []
        return node

    def restart_node(self, node: int) -> int:
        """Restart a node as Flower does a killed SuperNode: a new id and an empty context."""
        return self.start_node(int(self.contexts.pop(node).node_config["partition-id"]))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            self._count += 1
            id_ = f"message {self._count}"
            message.metadata.__dict__["_message_id"] = id_
            ids.append(id_)
            self._deliver(message_from_proto(message_to_proto(message)))
        return ids

    def _deliver(self, message: Message) -> None:
        node, id_ = message.metadata.dst_node_id, message.metadata.message_id
        if node not in self.contexts:
            return
        fault = self.fault(node, len(self.sent[node]))
        self.sent[node].append(message_from_proto(message_to_proto(message)))
        context = context_from_proto(context_to_proto(self.contexts[node]))
        context.node_config["fault"] = fault
        if fault == "damaged down":
            damage(message)
        down = count_bytes(message)
        try:
            reply = self.app(message, context)
        except Exception as error:  # as Flower does
            reply = Message(Error(2, f"{type(error)}:<'{error}'>"), reply_to=message)
            reply.metadata.__dict__["_src_node_id"] = 1
        if fault not in ("killed", "rolled back"):
            self.contexts[node] = context
        self.n_bytes.append((down, 0 if reply.has_error() else count_bytes(reply)))
        reply = message_from_proto(message_to_proto(reply))
        if fault == "damaged up":
            damage(reply)
        if fault == "late":
            self._late[id_] = reply
        elif fault not in ("lost", "killed"):
            self._replies[id_] = reply

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ids = sorted(message_ids, reverse=True)  # replies may arrive in any order
        replies = [self._replies.pop(id_) for id_ in ids if id_ in self._replies]
        self._replies |= {id_: self._late.pop(id_) for id_ in ids if id_ in self._late}
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return Message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)


def count_bytes(message: Message) -> int:
    return sum(record.count_bytes() for record in message.content.values())


def damage(message: Message) -> None:
    """Change the last byte of the codec's message; in a parcel that is in the checksum."""
    for record in message.content.array_records.values() if message.has_content() else ():
        for array in record.values():
            if array.stype.startswith("resfed_codec"):
                array.data = array.data[:-1] + bytes([array.data[-1] ^ 1])
