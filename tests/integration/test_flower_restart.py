"""A ServerApp that restarts: a new CodecGrid goes on from the saved state of the old one."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc

pytest.importorskip("flwr", reason="needs Flower: pip install 'resfed-codec[flower]'")

from flwr.serverapp.strategy import FedAvg

from local_app import App, Clock, first_model, messages_for, model_of, record_of, same
from local_grid import LocalGrid
from resfed_codec.integrations import flower
from resfed_codec.integrations.flower import CodecGrid, CodecMod, codec_mod

pytestmark = pytest.mark.integration

CONFIGS: dict[str, Any] = {
    "default": (None, None),
    "res": (rfc.CodecConfig(predictor="res1"), rfc.CodecConfig(predictor="res0")),
    "own": (
        rfc.CodecConfig(predictor=rfc.LinearPredictor(own=(0.5,), other=(0.5,)), sparsity=0.9),
        rfc.CodecConfig(predictor=rfc.AdaptivePredictor(), exclude=("*.bias",)),
    ),
}
N_BYTES = sum(array.nbytes for array in first_model().values())


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower, "time", Clock())


def on_disk(state: Any) -> Any:
    """The state after it was saved and loaded."""
    file = io.BytesIO()
    np.savez(file, **state)
    file.seek(0)
    return dict(np.load(file))


def train(grid: CodecGrid, nodes: LocalGrid, model: Any, rounds: Any) -> Any:
    for number in rounds:
        replies = list(grid.send_and_receive(messages_for(nodes, model, number)))
        assert len(replies) == len(nodes.contexts)
        model = model_of(replies[0].content["local"])
    return model


@pytest.mark.parametrize("configs", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("shared_initial", [False, True])
def test_a_restarted_server_goes_on(configs: Any, shared_initial: bool) -> None:
    """As if it had not restarted: one message per node and round, and the same bytes."""

    def run(*, restarts: bool) -> tuple[Any, list[tuple[int, int]], CodecGrid]:
        nodes = LocalGrid(App(CodecMod(first_model) if shared_initial else codec_mod).app, 3)
        grid = CodecGrid(nodes, *configs, shared_initial=shared_initial)
        model = train(grid, nodes, first_model(), (1, 2, 3))
        list(grid.send_and_receive(messages_for(nodes, model, 3, "evaluate")))
        if restarts:
            saved = on_disk(grid.state_dict())
            grid = CodecGrid(nodes, *configs, shared_initial=shared_initial)
            grid.load_state_dict(saved)
        n_before = len(nodes.n_bytes)
        return train(grid, nodes, model, (4, 5)), nodes.n_bytes[n_before:], grid

    model, n_bytes, grid = run(restarts=True)
    assert grid.stats["keyframes_down"] == grid.stats["keyframes_up"] == 0
    assert len(n_bytes) == 6
    expected, sizes, unbroken = run(restarts=False)
    assert n_bytes == sizes
    assert same(model, expected)
    assert same(grid.session.state, unbroken.session.state)


def test_a_strategy_that_restarts() -> None:
    """It starts from the last model and sends a small part of it."""
    nodes = LocalGrid(App(codec_mod).app, 3)
    grid = CodecGrid(nodes)
    first = FedAvg().start(grid, record_of(first_model()), num_rounds=2, timeout=5)
    restarted = CodecGrid(nodes)
    restarted.load_state_dict(on_disk(grid.state_dict()))
    n_before = len(nodes.n_bytes)
    FedAvg().start(restarted, first.arrays, num_rounds=2, timeout=5)
    sizes = nodes.n_bytes[n_before:]
    assert len(sizes) == 12
    assert all(down < N_BYTES / 10 and up < N_BYTES / 10 for down, up in sizes)


def test_a_state_older_than_what_clients_hold() -> None:
    """Clients have trained on since it was saved: they recover in the next round."""
    nodes = LocalGrid(App(codec_mod).app, 2)
    grid = CodecGrid(nodes)
    model = train(grid, nodes, first_model(), (1, 2))
    saved = on_disk(grid.state_dict())
    model = train(grid, nodes, model, (3, 4))
    restarted = CodecGrid(nodes)
    restarted.load_state_dict(saved)
    model = train(restarted, nodes, model, (5, 6))
    n_sent = len(nodes.sent[2**63])
    train(restarted, nodes, model, (7,))
    assert len(nodes.sent[2**63]) == n_sent + 1


def test_what_cannot_be_loaded() -> None:
    nodes = LocalGrid(App(codec_mod).app, 1)
    grid = CodecGrid(nodes)
    with pytest.raises(RuntimeError, match="before the first model is sent"):
        grid.state_dict()
    model = train(grid, nodes, first_model(), (1, 2))
    saved = grid.state_dict()
    for other, why in (
        (CodecGrid(nodes, rfc.CodecConfig(predictor="res1")), "saved with predictor=.* in uplink"),
        (CodecGrid(nodes, history=5), "history=4; this object has 5"),
        (CodecGrid(nodes, rfc.CodecConfig(exclude="no such tensor")), "exclude"),
    ):
        with pytest.raises(ValueError, match=why):
            other.load_state_dict(saved)
    for bad in ({}, grid.session.state_dict(), {**saved, "structure": saved["structure"][:-1]}):
        with pytest.raises(ValueError, match="state_dict: "):
            grid.load_state_dict(bad)
    train(grid, nodes, model, (3,))
    assert len(nodes.sent[2**63]) == 3
    assert grid.stats["keyframes_down"] == 1


@pytest.mark.parametrize(
    "uplink",
    [
        rfc.CodecConfig(exclude=("*.bias",)),
        rfc.CodecConfig(dense=("*.bias",)),
        rfc.CodecConfig(error_feedback=False),
    ],
)
def test_other_settings_are_refused_when_the_state_is_loaded(uplink: rfc.CodecConfig) -> None:
    nodes = LocalGrid(App(codec_mod).app, 2)
    grid = CodecGrid(nodes)
    train(grid, nodes, first_model(), [1])
    restarted = CodecGrid(nodes, uplink)
    with pytest.raises(ValueError, match="must stay as in the first message"):
        restarted.load_state_dict(grid.state_dict())
    with pytest.raises(RuntimeError):
        restarted.state_dict()


def test_an_uplink_that_cannot_be_used_changes_nothing() -> None:
    def uplink(message: Any) -> Any:
        return settings[message.metadata.dst_node_id]

    nodes = LocalGrid(App(codec_mod).app, 2)
    first, second = nodes.get_node_ids()
    settings: dict[int, Any] = dict.fromkeys((first, second), rfc.CodecConfig(sparsity=0.9))
    grid = CodecGrid(nodes, uplink)
    model = train(grid, nodes, first_model(), [1])
    before, stats = grid.state_dict(), grid.stats
    for bad in (
        {second: None},
        {first: rfc.CodecConfig(dense=("*.bias",)), second: rfc.CodecConfig(dense=("*.bias",))},
    ):
        good = dict(settings)
        settings |= bad
        with pytest.raises((TypeError, ValueError), match="uplink"):
            grid.push_messages(messages_for(nodes, model, 2))
        settings |= good
        assert same(grid.state_dict(), before)
        assert grid.stats == stats
    train(grid, nodes, model, [2, 3])
