"""A federation in Flower's simulation engine; prints what test_flower_simulation.py checks.

python tests/integration/simulated_app.py

Nodes share a few processes of Ray. Half of the nodes train in a round, and some fail.
"""

from __future__ import annotations

import json

import numpy as np
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from local_app import first_model, local_model, model_of, record_of
from resfed_codec.integrations.flower import CodecGrid, codec_mod

N_NODES, N_ROUNDS = 10, 6
app, server = ClientApp(mods=[codec_mod]), ServerApp()


def train(message: Message, context: Context) -> Message:
    number = int(message.content["config"]["server-round"])
    partition = int(context.node_config["partition-id"])
    if (partition + number) % 4 == 0:
        raise RuntimeError("raised on purpose")
    local = local_model(model_of(message.content["arrays"]), partition, number)
    metrics = MetricRecord({"num-examples": 10 + partition})
    return Message(RecordDict({"metrics": metrics, "local": record_of(local)}), reply_to=message)


def evaluate(message: Message, context: Context) -> Message:
    model = model_of(message.content["arrays"])
    metrics = {"num-examples": 10, "norm": float(np.linalg.norm(model["z.weight"]))}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def main(grid: Grid, context: Context) -> None:
    codec = CodecGrid(grid)
    strategy = FedAvg(fraction_train=0.5, fraction_evaluate=0.3, min_available_nodes=N_NODES)
    result = strategy.start(codec, record_of(first_model()), num_rounds=N_ROUNDS, timeout=120)
    norms = [metrics["norm"] for metrics in result.evaluate_metrics_clientapp.values()]
    norm = float(np.linalg.norm(codec.session.state["z.weight"]))
    print(json.dumps({"stats": codec.stats, "norms": norms, "norm": norm}))


if __name__ == "__main__":
    app.train()(train)
    app.evaluate()(evaluate)
    server.main()(main)
    run_simulation(
        server,
        app,
        N_NODES,
        backend_config={
            "client_resources": {"num_cpus": 1},
            "init_args": {"num_cpus": 2, "object_store_memory": 10**8, "log_to_driver": False},
        },
    )
