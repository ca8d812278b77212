"""Settings that change with the node and the round, and a first model of fewer bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc

pytest.importorskip("flwr", reason="needs Flower: pip install 'resfed-codec[flower]'")

from flwr.app import ConfigRecord, Message
from flwr.serverapp.strategy import FedAvg

from local_app import App, Clock, first_model, messages_for, model_of, record_of, same
from local_grid import LocalGrid
from resfed_codec.integrations import flower
from resfed_codec.integrations.flower import CodecGrid, codec_mod

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower, "time", Clock())


def n_changed(grid: CodecGrid, reply: Message) -> int:
    """Elements of matrices in which a reply differs from the global model."""
    shared, local = grid.session.state, model_of(reply.content["local"])
    names = [name for name, array in shared.items() if array.ndim == 2]
    return sum(int(np.count_nonzero(local[name] != shared[name])) for name in names)


N_MATRIX = sum(a.size for a in first_model().values() if a.ndim == 2)


def test_sparsity_by_node_and_round() -> None:
    slow = 2**63 + 1
    asked: list[tuple[int, int]] = []

    def uplink(message: Message) -> rfc.CodecConfig:
        node, number = message.metadata.dst_node_id, message.content["config"]["server-round"]
        asked.append((node, int(number)))
        if node == slow:
            return rfc.CodecConfig(sparsity=0.999)
        return rfc.CodecConfig(sparsity=0.9 if number < 3 else 0.98)

    app = App(codec_mod)
    nodes = LocalGrid(app.app, 2)
    grid = CodecGrid(nodes, uplink)
    model = first_model()
    for number in (1, 2, 3, 4):
        replies = list(grid.send_and_receive(messages_for(nodes, model, number)))
        for reply in replies:
            node = reply.metadata.src_node_id
            density = 0.001 if node == slow else 0.1 if number < 3 else 0.02
            assert n_changed(grid, reply) == -(-N_MATRIX * density // 1)
        model = model_of(replies[0].content["local"])
    assert asked == [(node, number) for number in (1, 2, 3, 4) for node in (2**63, slow)]
    assert set(map(len, nodes.sent.values())) == {4}


def test_a_strategys_config_sets_it() -> None:
    """The function may read what the strategy sends to clients."""
    app = App(codec_mod)
    nodes = LocalGrid(app.app, 2)
    densities = []

    def uplink(message: Message) -> rfc.CodecConfig:
        return rfc.CodecConfig(sparsity=message.content["config"].get("sparsity", 0.99))

    grid = CodecGrid(nodes, uplink)
    decode = grid._decoded

    def decoded(reply: Message) -> Any:
        result = decode(reply)
        if result is not None and "local" in result.content:
            densities.append(n_changed(grid, result))
        return result

    grid._decoded = decoded  # type: ignore[method-assign]
    config = ConfigRecord({"sparsity": 0.95})
    FedAvg().start(grid, record_of(first_model()), num_rounds=2, timeout=5, train_config=config)
    assert densities == [-(-N_MATRIX * 5 // 100)] * 4


@pytest.mark.parametrize("fault", ["rolled back", "killed", "lost", "restarted"])
def test_settings_after_a_fault(fault: str) -> None:
    """A message that is sent for recovery has them, too."""
    app = App(codec_mod)
    faults = {1: fault}
    nodes = LocalGrid(app.app, 1, lambda node, n: faults.get(n, ""))
    sparsities = iter([0.9, 0.95, 0.98, 0.98])
    grid = CodecGrid(nodes, lambda message: rfc.CodecConfig(sparsity=next(sparsities)))
    for number in (1, 2, 3):
        if fault == "restarted" and number == 3:
            nodes.restart_node(2**63)
        replies = list(grid.send_and_receive(messages_for(nodes, first_model(), number), timeout=2))
    assert n_changed(grid, replies[0]) == -(-N_MATRIX * 2 // 100)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (
            {"predictor": "res1"},
            "predictor='res1': must stay as in the first message, None",
        ),
        ({"error_feedback": False}, "uplink: error_feedback=False: must stay"),
        ({"exclude": "*.bias"}, r"uplink: exclude=\('\*\.bias',\): must stay"),
    ],
)
def test_what_cannot_change(changed: Any, why: str) -> None:
    nodes = LocalGrid(App(codec_mod).app, 2)
    later: dict[str, Any] = {}
    grid = CodecGrid(nodes, lambda message: rfc.CodecConfig(**later))
    list(grid.send_and_receive(messages_for(nodes, first_model(), 1)))
    later = changed
    with pytest.raises(ValueError, match=why):
        grid.push_messages(messages_for(nodes, first_model(), 2))
    later = {}
    assert len(list(grid.send_and_receive(messages_for(nodes, first_model(), 2)))) == 2
    assert set(map(len, nodes.sent.values())) == {2}


def test_a_function_that_returns_something_else() -> None:
    nodes = LocalGrid(App(codec_mod).app, 1)
    grid = CodecGrid(nodes, lambda message: 0.9)  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match=f"returned float for node {2**63}: must return a CodecC"):
        grid.push_messages(messages_for(nodes, first_model(), 1))
    assert nodes.sent[2**63] == []


def test_a_restarted_server_with_another_sparsity() -> None:
    """Nodes that know the old one get the new one."""
    nodes = LocalGrid(App(codec_mod).app, 1)
    grid = CodecGrid(nodes)
    list(grid.send_and_receive(messages_for(nodes, first_model(), 1)))
    saved = grid.state_dict()
    for uplink in (rfc.CodecConfig(sparsity=0.9), lambda message: rfc.CodecConfig(sparsity=0.9)):
        grid = CodecGrid(nodes, uplink)
        grid.load_state_dict(saved)
        (reply,) = grid.send_and_receive(messages_for(nodes, first_model(), 2))
        assert n_changed(grid, reply) == N_MATRIX // 10
        assert grid.stats["keyframes_down"] == 0


def rounded(array: np.ndarray, n_bits: int) -> np.ndarray:
    """To this many mantissa bits, ties to even."""
    if array.dtype.kind != "f":
        return array
    mantissas, exponents = np.frexp(array)
    return np.ldexp(np.rint(mantissas * 2 ** (n_bits + 1)) / 2 ** (n_bits + 1), exponents)


def test_a_first_model_of_fewer_bits() -> None:
    sizes = {}
    for bits in (None, 7):
        app = App(codec_mod)
        nodes = LocalGrid(app.app, 2)
        grid = CodecGrid(nodes, initial_bits=bits)
        list(grid.send_and_receive(messages_for(nodes, first_model(), 1)))
        expected = {n: a if bits is None else rounded(a, bits) for n, a in first_model().items()}
        for given in app.given.values():
            assert same(given, {n: a.astype(given[n].dtype) for n, a in expected.items()})
        sizes[bits] = nodes.n_bytes[0][0]
        list(grid.send_and_receive(messages_for(nodes, first_model(), 2)))
        assert nodes.n_bytes[-1][0] < 2000
    assert sizes[7] < 0.5 * sizes[None]


def test_settings_of_the_first_model() -> None:
    nodes = LocalGrid(App(codec_mod).app, 1)
    with pytest.raises(ValueError, match="initial_bits and shared_initial exclude each other"):
        CodecGrid(nodes, initial_bits=7, shared_initial=True)
    with pytest.raises(ValueError, match="initial_bits=53"):
        CodecGrid(nodes, initial_bits=53)
