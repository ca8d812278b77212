"""The server: federated averaging over all clients."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from flwr.app import Array, ArrayRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from digits import task
from resfed_codec.integrations.flower import CodecGrid

app = ServerApp()


class OrderedFedAvg(FedAvg):
    """FedAvg that sums in the order of the partitions, so that runs are bitwise reproducible."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        def partition(reply: Message) -> int:
            return -1 if reply.has_error() else int(reply.content["metrics"]["partition"])

        return super().aggregate_train(server_round, sorted(replies, key=partition))


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    n_clients = int(config["num-clients"])
    strategy = OrderedFedAvg(
        min_train_nodes=n_clients,
        min_evaluate_nodes=n_clients,
        min_available_nodes=n_clients,
    )
    result = strategy.start(
        grid=CodecGrid(grid, shared_initial=True),
        initial_arrays=ArrayRecord({n: Array(a) for n, a in task.first_model().items()}),
        num_rounds=int(config["num-rounds"]),
        timeout=float(config["timeout"]),
    )
    digest = hashlib.sha256(b"".join(a.numpy().tobytes() for a in result.arrays.values()))
    accuracies = [metrics["accuracy"] for metrics in result.evaluate_metrics_clientapp.values()]
    print(json.dumps({"accuracies": accuracies, "model": digest.hexdigest()[:16]}))
