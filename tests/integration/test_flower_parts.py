"""Replies and messages with a part of the tensors, and models that change their layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc

pytest.importorskip("flwr", reason="needs Flower: pip install 'resfed-codec[flower]'")

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from local_app import App, Clock, Model, first_model, local_model, messages_for, model_of, record_of
from local_grid import LocalGrid
from resfed_codec.integrations import flower
from resfed_codec.integrations.flower import CodecGrid, codec_mod

pytestmark = pytest.mark.integration

FINE = rfc.CodecConfig(sparsity=0.0, bits=16)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower, "time", Clock())


class PartApp(App):
    """Replies with the tensors named ``held``; all, if it is empty."""

    def __init__(self, *held: str, mod: Any = codec_mod) -> None:
        super().__init__(mod)
        self.held = held
        self.trained: dict[int, Model] = {}

    def train(self, message: Message, context: Context) -> Message:
        model = self.take(message, context)
        number = int(message.content["config"]["server-round"])
        steps = model if "steps" in model else {**model, "steps": np.array(0)}
        local = local_model(steps, int(context.node_config["partition-id"]), number)
        part = {name: local[name] for name in self.held or model}
        self.trained[context.node_id] = part
        content = {"metrics": MetricRecord({"num-examples": 10}), "local": record_of(part)}
        return Message(RecordDict(content), reply_to=message)


@pytest.mark.parametrize("held", [("z.weight",), ("a.bias", "steps"), ("steps",)])
@pytest.mark.parametrize("uplink", [FINE, rfc.CodecConfig(sparsity=0.0, predictor="res1")])
def test_the_server_gets_what_was_sent(held: tuple[str, ...], uplink: Any) -> None:
    app = PartApp()
    nodes = LocalGrid(app.app, 2)
    grid = CodecGrid(nodes, uplink)
    model = first_model()
    for number in range(1, 6):
        app.held = held if number % 2 else ()
        for reply in grid.send_and_receive(messages_for(nodes, model, number)):
            got = model_of(reply.content["local"])
            expected = app.trained[reply.metadata.src_node_id]
            assert list(got) == [name for name in first_model() if name in expected]
            for name, array in got.items():
                assert array.dtype == expected[name].dtype
                np.testing.assert_allclose(array, expected[name], atol=2e-2)
            model = {**model, **got}
    assert grid.stats["plain_messages"] == 0
    assert set(map(len, nodes.sent.values())) == {5}


def test_feedback_of_what_is_not_sent_waits() -> None:
    """What full replies left out of a tensor arrives after replies without it."""
    app = PartApp()
    nodes = LocalGrid(app.app, 1)
    grid = CodecGrid(nodes, rfc.CodecConfig(sparsity=0.9))
    sums = {name: np.zeros(a.shape) for name, a in first_model().items()}
    wanted = {name: np.zeros(a.shape) for name, a in first_model().items()}
    for number in range(1, 61):
        app.held = ("z.weight", "a.bias") if number % 3 else ()
        (reply,) = grid.send_and_receive(messages_for(nodes, first_model(), number))
        for name, array in model_of(reply.content["local"]).items():
            sums[name] += array - first_model()[name]
            wanted[name] += app.trained[2**63][name] - app.given[2**63][name]
    for name in ("z.weight", "a.weight"):
        missing = np.linalg.norm(wanted[name] - sums[name]) / np.linalg.norm(wanted[name])
        assert missing < 0.18, "0.16; if what is not sent used up feedback, 0.2; without any 0.38"


def test_a_strategy_that_averages_a_part() -> None:
    """FedAvg sends on what it has aggregated, so later messages lack tensors, too."""
    app = PartApp("z.weight", "a.bias")
    nodes = LocalGrid(app.app, 3)
    grid = CodecGrid(nodes)
    result = FedAvg().start(grid, record_of(first_model()), num_rounds=3, timeout=5)
    assert set(result.arrays) == {"z.weight", "a.bias"}
    for given in app.given.values():
        assert list(given) == ["z.weight", "a.bias"]
    assert grid.stats["plain_messages"] == 0
    assert grid.stats["keyframes_down"] == 3
    assert set(map(len, nodes.sent.values())) == {6}
    n_bytes = sum(array.nbytes for array in first_model().values())
    assert all(down < n_bytes / 10 and up < n_bytes / 10 for down, up in nodes.n_bytes[3:])


def test_a_restart_of_a_node_that_gets_a_part() -> None:
    app = PartApp("z.weight")
    nodes = LocalGrid(app.app, 2)
    grid = CodecGrid(nodes)
    part = {"z.weight": first_model()["z.weight"]}
    list(grid.send_and_receive(messages_for(nodes, first_model(), 1)))
    list(grid.send_and_receive(messages_for(nodes, part, 2)))
    nodes.restart_node(2**63)
    replies = list(grid.send_and_receive(messages_for(nodes, part, 3)))
    assert [list(r.content["local"]) for r in replies] == [["z.weight"]] * 2
    assert all(list(given) == ["z.weight"] for given in app.given.values())


def grown(model: Model) -> Model:
    return {**model, "head.weight": np.ones((30, 10), np.float32)}


def reshaped(model: Model) -> Model:
    return {**model, "a.bias": np.ones(31, np.float32)}


@pytest.mark.parametrize("change", [grown, reshaped])
@pytest.mark.parametrize("shared_initial", [False, True])
def test_a_model_that_changes(change: Any, shared_initial: bool) -> None:
    """Every node gets it whole, once, and then updates again."""
    app = PartApp(mod=flower.CodecMod(first_model) if shared_initial else codec_mod)
    nodes = LocalGrid(app.app, 3)
    grid = CodecGrid(nodes, FINE, FINE, shared_initial=shared_initial)
    model = first_model()
    for number in range(1, 7):
        if number == 4:
            model = change(model)
        replies = list(grid.send_and_receive(messages_for(nodes, model, number)))
        assert len(replies) == 3
        for name, array in app.given[2**63].items():
            np.testing.assert_allclose(array, model[name], atol=1e-2)
        model = model_of(replies[0].content["local"])
    assert grid.stats["plain_messages"] == 0
    assert grid.stats["keyframes_down"] == (3 if shared_initial else 6)
    assert grid.stats["messages_down"] == grid.stats["messages_up"] == 18
    assert set(map(len, nodes.sent.values())) == {6}


def test_nodes_with_models_of_different_layouts() -> None:
    """Each message starts anew, and each reply is decoded with what the node got."""
    app = PartApp()
    nodes = LocalGrid(app.app, 2, lambda node, n: "rolled back" if n == 1 else "")
    grid = CodecGrid(nodes, FINE, FINE)
    for number in (1, 2, 3):
        messages = messages_for(nodes, first_model(), number)
        messages[1] = messages_for(nodes, reshaped(first_model()), number)[1]
        replies = list(grid.send_and_receive(messages))
        assert len(replies) == 2
        for reply in replies:
            node = reply.metadata.src_node_id
            for name, array in model_of(reply.content["local"]).items():
                np.testing.assert_allclose(array, app.trained[node][name], atol=1e-2)
