"""Memory of the clients' sessions in Flower's simulation engine, messages and their time.

One process, the engine's, holds the contexts of all nodes; the apps run in others. Here the apps
run in the same process, and messages and contexts are pickled on both ways, as Ray does. The model
has the size of ResNet-18; each node adds noise to it.
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from benchmarks.common import write_results
from resfed_codec.integrations.flower import CodecGrid, codec_mod

ROUNDS = 2


def layout() -> dict[str, tuple[int, ...]]:
    """The shapes of ResNet-18's parameters, 11.7 million."""
    shapes: dict[str, tuple[int, ...]] = {"conv1": (64, 3, 7, 7), "bn1": (2, 64)}
    before = 64
    for stage, width in enumerate((64, 128, 256, 512)):
        for block in range(2):
            n_in = before if block == 0 else width
            shapes[f"{stage}.{block}.conv1"] = (width, n_in, 3, 3)
            shapes[f"{stage}.{block}.conv2"] = (width, width, 3, 3)
            shapes[f"{stage}.{block}.bn"] = (4, width)
            if n_in != width:
                shapes[f"{stage}.{block}.down"] = (width, n_in, 1, 1)
        before = width
    return {**shapes, "fc": (1000, 512), "fc.bias": (1000,)}


def record_of(model: dict[str, Any]) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in model.items()})


class Engine(Grid):  # type: ignore[misc]
    """Runs a message when it is pushed, and keeps only the contexts."""

    def __init__(self, n_nodes: int) -> None:
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
        self.app = ClientApp(mods=[codec_mod])
        self.app.train()(train)
        self.contexts = {
            i: Context(1, i, {"partition-id": i}, RecordDict(), {}) for i in range(n_nodes)
        }
        self.reply: Message | None = None

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        (message,) = messages
        node = message.metadata.dst_node_id
        message.metadata.__dict__["_message_id"] = str(node)
        given, context = copied((message, self.contexts[node]))
        self.reply, self.contexts[node] = copied((self.app(given, context), context))
        return [str(node)]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        reply, self.reply = self.reply, None
        return [] if reply is None else [reply]

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        raise NotImplementedError

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)


def copied(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def train(message: Message, context: Context) -> Message:
    rng = np.random.default_rng(int(context.node_config["partition-id"]))
    model = {
        name: array.numpy() + rng.standard_normal(array.shape, np.float32) * np.float32(1e-3)
        for name, array in message.content["arrays"].items()
    }
    content = {"arrays": record_of(model), "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)


def measure(n_nodes: int) -> dict[str, float]:
    """A row of the table, after two rounds in which all nodes take part."""
    engine = Engine(n_nodes)
    grid = CodecGrid(engine)
    rng = np.random.default_rng(0)
    model = {n: rng.standard_normal(s, np.float32) * np.float32(0.05) for n, s in layout().items()}
    for number in range(ROUNDS):
        grid.reset_stats()
        times = []
        record = record_of({n: a + np.float32(number * 1e-3) for n, a in model.items()})
        for node in engine.get_node_ids():
            content = RecordDict({"arrays": record})
            start = time.perf_counter()
            (reply,) = grid.send_and_receive([Message(content, node, "train")])
            times.append(time.perf_counter() - start)
            assert reply.has_content(), reply.error
    data = [
        array.data
        for context in engine.contexts.values()
        for record in context.state.array_records.values()
        for array in record.values()
    ]
    distinct = {id(held): len(held) for held in data}
    return {
        "nodes": n_nodes,
        "arrays, MB": round(sum(map(len, data)) / 1e6),
        "memory, MB": round(sum(distinct.values()) / 1e6),
        "kB down": round(grid.stats["bytes_down"] / grid.stats["messages_down"] / 1e3, 1),
        "kB up": round(grid.stats["bytes_up"] / grid.stats["messages_up"] / 1e3, 1),
        "s a node": round(statistics.median(times), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nodes", type=int, nargs="+", default=[4, 16, 100])
    parser.add_argument("--print", action="store_true", help="write no results")
    args = parser.parse_args()
    n_bytes = 4 * sum(int(np.prod(shape)) for shape in layout().values())
    rows = [measure(n) for n in args.nodes]
    note = (
        f"The model takes {n_bytes / 1e6:.1f} MB. Arrays are those in all contexts, after two"
        " rounds with all nodes; memory counts those once that are the same object in the engine's"
        " process. Messages and times are of the second round: a node's time is that of"
        " encoding, decoding, its noise and all pickling, the median."
    )
    if args.print:
        print(rows, note)
        return
    print(write_results("integrations_flower_simulation", "Flower's simulation engine", rows, note))


if __name__ == "__main__":
    main()
