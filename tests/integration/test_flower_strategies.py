"""Flower's strategies with the codec: benchmarks/integrations_flower_strategies.py."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr")
pytest.importorskip("torch")

from benchmarks.integrations_flower_strategies import (
    CASES,
    STRATEGIES,
    Case,
    Training,
    models_of,
    record_of,
    strategy_of,
    train,
)
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import resfed_codec as rfc
from local_grid import LocalGrid
from resfed_codec.integrations.flower import CodecGrid, CodecMod


class InOrder(CodecGrid):
    """Replies in the order of messages: the strategy's sums depend on it."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        messages = list(messages)
        nodes = [message.metadata.dst_node_id for message in messages]
        replies = super().send_and_receive(messages, timeout=timeout)
        return sorted(replies, key=lambda reply: nodes.index(reply.metadata.src_node_id))


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_benchmark_does_what_the_grid_and_the_mod_do(name: str) -> None:
    """The strategy ends at the same model, bit for bit."""
    in_benchmark = train(name, CASES["sparsity 0.99"], 0, 3)
    training = Training(0, Case(None))
    app = ClientApp(mods=[CodecMod(lambda: training.first)])

    @app.train()
    def on_train(message: Message, context: Context) -> Message:
        held = models_of(message.content["arrays"])
        client, config = int(context.node_config["partition-id"]), message.content["config"]
        local = training.local_model(held, client, config)
        metrics = MetricRecord({"num-examples": training.n_examples(client)})
        content = RecordDict({"arrays": record_of(local), "metrics": metrics})
        return Message(content, reply_to=message)

    nodes = LocalGrid(app, 10)
    config = rfc.CodecConfig(sparsity=0.99)
    grid = InOrder(nodes, config, config, shared_initial=True)
    random.seed(0)
    options: dict[str, Any] = {"initial_arrays": record_of(training.first), "num_rounds": 4}
    result = strategy_of(name).start(grid=grid, **options)
    expected = models_of(in_benchmark.result.arrays)
    for key, value in models_of(result.arrays).items():
        np.testing.assert_array_equal(value, expected[key])
    assert grid.stats["messages_up"] == 40
    assert grid.stats["plain_messages"] == 0


def test_a_strategy_that_adds_up_what_downlinks_left_out() -> None:
    """With replies on its exact model, a strategy gets what clients changed."""
    exact = train("FedAvg", CASES["on the exact model"], 0, 3)
    decoded = train("FedAvg", CASES["sparsity 0.99"], 0, 3)
    for number in (1, 2):  # the same models reach clients, up to rounding
        assert exact.held[number] == pytest.approx(decoded.held[number], abs=0.02)
    assert not exact.feeds_back_down
    assert decoded.feeds_back_down
