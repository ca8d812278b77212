"""A ClientApp that records what it gets, the models of its tests, and a clock that stands still."""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from local_grid import LocalGrid

Model = dict[str, np.ndarray]


class Clock:
    """A clock that advances only in sleep()."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def first_model() -> Model:
    rng = np.random.default_rng(0)
    return {
        "z.weight": rng.standard_normal((40, 50), np.float32),
        "a.weight": rng.standard_normal((50, 30), np.float32),
        "a.bias": np.zeros(30, np.float32),
        "steps": np.array(0, np.int64),
    }


def record_of(model: Model) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in model.items()})


def model_of(record: ArrayRecord) -> Model:
    return {name: array.numpy() for name, array in record.items()}


def same(a: Model, b: Model) -> bool:
    return list(a) == list(b) and all(
        a[n].dtype == b[n].dtype and a[n].tobytes() == b[n].tobytes() for n in a
    )


def local_model(model: Model, partition: int, number: int) -> Model:
    """A client's local model; depends only on the arguments."""
    rng = np.random.default_rng([partition, number])
    local = {n: a + np.float32(0.01) * rng.standard_t(2, a.shape) for n, a in model.items()}
    return {**{n: a.astype(model[n].dtype) for n, a in local.items()}, "steps": model["steps"] + 3}


class App:
    """A ClientApp that records the models it receives."""

    def __init__(self, *mods: Any) -> None:
        self.app = ClientApp(mods=[*mods])
        self.given: dict[int, Model] = {}
        self.runs = 0
        self.app.train()(self.train)
        self.app.evaluate()(self.evaluate)
        self.app.query()(self.query)

    def take(self, message: Message, context: Context) -> Model:
        self.runs += 1
        self.given[context.node_id] = model_of(message.content["arrays"])
        if context.node_config["fault"] == "raise":
            raise RuntimeError("raised on purpose")
        return self.given[context.node_id]

    def train(self, message: Message, context: Context) -> Message:
        model = self.take(message, context)
        number = int(message.content["config"]["server-round"])
        local = local_model(model, int(context.node_config["partition-id"]), number)
        metrics = MetricRecord({"num-examples": 10, "loss": 0.5})
        return Message(
            RecordDict({"metrics": metrics, "local": record_of(local)}), reply_to=message
        )

    def evaluate(self, message: Message, context: Context) -> Message:
        self.take(message, context)
        metrics = MetricRecord({"num-examples": 10, "accuracy": 0.5})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    def query(self, message: Message, context: Context) -> Message:
        return Message(message.content, reply_to=message)


def messages_for(grid: LocalGrid, model: Model, number: int, kind: str = "train") -> list[Message]:
    """A message for each node, all with the same content, as strategies create them."""
    config = ConfigRecord({"server-round": number})
    content = RecordDict({"arrays": record_of(model), "config": config})
    return [Message(content, node, kind) for node in grid.get_node_ids()]
