"""The client: trains and evaluates on its own images."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import message_size_mod

from digits import task
from resfed_codec.integrations.flower import CodecMod

app = ClientApp(mods=[message_size_mod, CodecMod(task.first_model)])


def _task(message: Message, context: Context) -> tuple[task.Model, int, int]:
    """The received model, the client's partition, and its seed in this round."""
    model = {name: array.numpy() for name, array in message.content["arrays"].items()}
    partition = int(context.node_config["partition-id"])
    return model, partition, 1000 * int(message.content["config"]["server-round"]) + partition


@app.train()
def train(message: Message, context: Context) -> Message:
    model, partition, seed = _task(message, context)
    images, labels, _, _ = task.load_data(partition, int(context.run_config["num-clients"]))
    local = task.train(model, images, labels, seed)
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(array) for name, array in local.items()}),
            "metrics": MetricRecord({"num-examples": len(labels), "partition": partition}),
        }
    )
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    model, partition, _ = _task(message, context)
    _, _, images, labels = task.load_data(partition, int(context.run_config["num-clients"]))
    metrics = {"num-examples": len(labels), "accuracy": task.accuracy(model, images, labels)}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)
