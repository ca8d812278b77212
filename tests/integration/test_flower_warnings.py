"""What CodecGrid and CodecMod count, log and refuse: each warning comes once, with its cause."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install 'resfed-codec[flower]'")

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from local_app import App, Clock, first_model, messages_for, model_of, record_of
from local_grid import LocalGrid
from resfed_codec.integrations import _flower_notices, flower
from resfed_codec.integrations.flower import CodecGrid, CodecMod, codec_mod

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower, "time", Clock())


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_flower_notices, "_warned_of_no_grid", False)


class Log(logging.Handler):
    """The codec's lines in Flower's log."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def of(self, level: int) -> list[str]:
        texts = [r.getMessage() for r in self.records if r.levelno == level]
        return [t.removeprefix("resfed_codec: ") for t in texts if t.startswith("resfed_codec: ")]

    @property
    def warnings(self) -> list[str]:
        return self.of(logging.WARNING)


@pytest.fixture
def log() -> Iterator[Log]:
    handler = Log()
    logger = logging.getLogger("flwr")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def exchange(grid: CodecGrid, nodes: LocalGrid, number: int, kind: str = "train") -> list[Message]:
    return list(grid.send_and_receive(messages_for(nodes, first_model(), number, kind)))


# ---- what is counted


def test_no_warning_in_a_training_without_faults(log: Log) -> None:
    """With evaluation, averaged counters, and clients that make the first model themselves."""
    nodes = LocalGrid(App(CodecMod(first_model)).app, 3)
    grid = CodecGrid(nodes, shared_initial=True)
    FedAvg().start(grid, record_of(first_model()), num_rounds=3, timeout=5)
    assert log.warnings == []


@pytest.mark.parametrize("shared_initial", [False, True])
def test_a_grid_counts_what_it_sends(shared_initial: bool, log: Log) -> None:
    nodes = LocalGrid(App(CodecMod(first_model) if shared_initial else codec_mod).app, 3)
    grid = CodecGrid(nodes, shared_initial=shared_initial)
    assert set(grid.stats.values()) == {0}
    grid.reset_stats()
    exchange(grid, nodes, 1)
    exchange(grid, nodes, 1, "evaluate")
    n_bytes = sum(array.nbytes for array in first_model().values())
    stats = grid.stats
    assert stats["messages_down"] == 6
    assert stats["messages_up"] == 3, "evaluation brings no model"
    assert stats["keyframes_down"] == (0 if shared_initial else 3)
    assert stats["uncompressed_bytes"] == 9 * n_bytes
    assert stats["plain_messages"] == stats["plain_bytes"] == 0
    counted = [sum(sizes) for sizes in zip(*nodes.n_bytes, strict=True)]
    names = 9 * 50  # of records, and the rest of replies
    assert 0 <= counted[0] - stats["bytes_down"] < names
    assert 0 <= counted[1] - stats["bytes_up"] < 4 * names
    first, second = log.of(logging.INFO)
    assert first.startswith("global model 1: 3 messages down of ")
    assert ", 3 messages up of " in first
    assert first.endswith(f" models, {stats['keyframes_down']} keyframes, feedback up and down")
    assert second.startswith("global model 1: 3 messages down of ")
    assert " up of " not in second
    grid.reset_stats()
    assert set(grid.stats.values()) == {0}


def test_a_line_for_each_model_without_send_and_receive(log: Log) -> None:
    nodes = LocalGrid(App(codec_mod).app, 2)
    grid = CodecGrid(nodes)
    for number in (1, 2):
        model = {n: a + a.dtype.type(number) for n, a in first_model().items()}
        list(grid.pull_messages(grid.push_messages(messages_for(nodes, model, number))))
    (line,) = log.of(logging.INFO)
    assert line.startswith("global model 1: 2 messages down of ")


# ---- models that travel uncompressed


def without_mod(use: Any) -> ClientApp:
    """A ClientApp without CodecMod whose training reads the model as ``use`` does."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model = use(message.content)
        return Message(RecordDict({"local": record_of(model)}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(RecordDict(), reply_to=message)

    return app


@pytest.mark.parametrize(
    ("use", "error"),
    [
        (lambda content: model_of(content["arrays"]), "'resfed_codec.1'"),
        (lambda content: content["arrays"].to_numpy_ndarrays(), "'resfed_codec.1'"),
        (lambda content: content["arrays"]["a.weight"].numpy(), "'a.weight'"),
    ],
)
def test_a_forgotten_mod(use: Any, error: str, log: Log) -> None:
    nodes = LocalGrid(without_mod(use), 2)
    grid = CodecGrid(nodes)
    for number in (1, 2):
        for reply in exchange(grid, nodes, number):
            assert error in reply.error.reason
            assert "it has no CodecMod, or a mod that " in reply.error.reason
            assert "ClientApp(mods=[codec_mod, ...])" in reply.error.reason
    (text,) = log.of(logging.ERROR)
    assert "reads a model that is still encoded" in text
    assert log.warnings == []


def test_a_forgotten_mod_of_an_app_that_needs_no_model(log: Log) -> None:
    nodes = LocalGrid(without_mod(lambda content: first_model()), 2)
    grid = CodecGrid(nodes)
    for number in (1, 2):
        assert all("local" in reply.content for reply in exchange(grid, nodes, number))
    (warning,) = log.warnings
    assert "does not answer as CodecMod does" in warning
    n_bytes = sum(array.nbytes for array in first_model().values())
    assert grid.stats["plain_messages"] == 4
    assert n_bytes <= grid.stats["plain_bytes"] / 4 < n_bytes + 1000


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyError("lr")])
def test_other_errors_of_an_app_are_left_alone(error: Exception, log: Log) -> None:
    def fail(content: RecordDict) -> Any:
        raise error

    app = without_mod(fail)
    nodes = LocalGrid(app, 1)
    (reply,) = exchange(CodecGrid(nodes), nodes, 1)
    assert reply.error.reason == f"{type(error)}:<'{error}'>"
    assert log.warnings == []


def test_an_error_after_good_replies_is_not_a_forgotten_mod(log: Log) -> None:
    app = App(codec_mod)
    nodes = LocalGrid(app.app, 1)
    grid = CodecGrid(nodes)
    exchange(grid, nodes, 1)
    nodes.app = without_mod(lambda content: model_of(content["arrays"]))
    (reply,) = exchange(grid, nodes, 2)
    assert "CodecMod" not in reply.error.reason
    assert log.warnings == []


def test_no_grid(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning in a process, and one of a node, whose later messages come to new processes."""
    nodes = LocalGrid(App(codec_mod).app, 2)
    node = next(iter(nodes.get_node_ids()))
    for number in (1, 2):
        list(nodes.send_and_receive(messages_for(nodes, first_model(), number)))
    (warning,) = log.warnings
    assert "the ServerApp has no CodecGrid" in warning
    monkeypatch.setattr(_flower_notices, "_warned_of_no_grid", False)
    messages = [m for m in messages_for(nodes, first_model(), 3) if m.metadata.dst_node_id == node]
    list(nodes.send_and_receive(messages))
    assert len(log.warnings) == 1


def test_messages_without_a_model_are_no_cause(log: Log) -> None:
    nodes = LocalGrid(App(codec_mod).app, 1)
    (node,) = nodes.get_node_ids()
    for grid in (nodes, CodecGrid(nodes)):
        list(grid.send_and_receive([Message(RecordDict(), node, "query")]))
    assert log.warnings == []


OTHER = {"gradient": np.ones(3, np.float32)}
WHY = "tensor 'z.weight' is missing"


def test_a_model_of_another_kind(log: Log) -> None:
    """It has no tensor of the first model's names."""
    nodes = LocalGrid(App(codec_mod).app, 1)
    (node,) = nodes.get_node_ids()
    grid = CodecGrid(nodes)
    exchange(grid, nodes, 1)
    for _ in range(2):
        content = RecordDict({"arrays": record_of(OTHER)})
        (reply,) = grid.send_and_receive([Message(content, node, "query")])
        assert reply.content == content
    assert log.warnings == [
        f"a message has another layout than the first model and is sent uncompressed: {WHY}"
    ]
    assert grid.stats["plain_messages"] == 4, "two messages and their replies"
    assert grid.stats["plain_bytes"] == 4 * sum(len(a.data) for a in content["arrays"].values())


REPLIES = {
    "another kind": (OTHER, WHY),
    "more": ({**first_model(), "lora": np.ones(3, np.float32)}, "tensor 'lora' is new"),
    "another shape": (
        {**first_model(), "a.bias": np.ones(31, np.float32)},
        "tensor 'a.bias' has shape [31] instead of [30]",
    ),
}


@pytest.mark.parametrize(("model", "why"), REPLIES.values(), ids=REPLIES)
def test_a_reply_of_another_layout(model: Any, why: str, log: Log) -> None:
    app = App(codec_mod)
    nodes = LocalGrid(app.app, 2)
    grid = CodecGrid(nodes)
    content = RecordDict({"local": record_of(model)})
    app.app.query("other")(lambda m, c: Message(content, reply_to=m))
    for number in (1, 2):
        replies = exchange(grid, nodes, number, "query.other")
        assert [reply.content for reply in replies] == [content] * 2
    assert log.warnings == [
        f"a reply has another layout than the first model and is sent uncompressed: {why}"
    ]
    assert grid.stats["plain_messages"] == 4


def test_several_records(log: Log) -> None:
    app = App(codec_mod)
    nodes = LocalGrid(app.app, 1)
    (node,) = nodes.get_node_ids()
    grid = CodecGrid(nodes)
    exchange(grid, nodes, 1)
    content = RecordDict({"model": record_of(first_model()), "control": record_of(first_model())})
    for _ in range(2):
        list(grid.send_and_receive([Message(content, node, "query")]))
    text = (
        " has 2 ArrayRecords ('model', 'control'), which are sent uncompressed: the codec encodes"
        " one"
    )
    assert log.warnings == [f"a message{text}"]
    app.app.query("two")(lambda m, c: Message(content, reply_to=m))
    for number in (2, 3):
        (reply,) = exchange(grid, nodes, number, "query.two")
        assert reply.content == content
    assert log.warnings == [f"a message{text}", f"a reply{text}"]


@pytest.mark.parametrize("mod", [codec_mod, CodecMod(lambda: {**first_model(), "steps": 1})])
def test_a_first_model_that_is_not_shared(mod: Any, log: Log) -> None:
    nodes = LocalGrid(App(mod).app, 2)
    grid = CodecGrid(nodes, shared_initial=True)
    for number in (1, 2):
        exchange(grid, nodes, number)
    assert grid.stats["keyframes_down"] == 2
    (warning,) = log.warnings
    assert "does not hold the first model, so that is sent to it" in warning
    assert "needs CodecMod(initial)" in warning


@pytest.mark.parametrize("fault", ["rolled back", "killed", "lost", "raise", "damaged down"])
def test_faults_are_not_a_first_model_that_is_not_shared(fault: str, log: Log) -> None:
    nodes = LocalGrid(App(CodecMod(first_model)).app, 2, lambda node, n: fault if n == 0 else "")
    grid = CodecGrid(nodes, shared_initial=True)
    for number in (1, 2, 3):
        list(grid.send_and_receive(messages_for(nodes, first_model(), number), timeout=2))
    assert log.warnings == []


# ---- errors


@pytest.mark.parametrize("initial", [first_model(), 3, type("Module", (dict,), {"state_dict": 1})])
def test_initial_must_be_a_function(initial: Any) -> None:
    with pytest.raises(TypeError, match="initial: must be a function that makes the model, not "):
        CodecMod(initial)


def test_a_class_among_the_mods() -> None:
    nodes = LocalGrid(App(CodecMod).app, 1)
    (reply,) = exchange(CodecGrid(nodes), nodes, 1)
    assert "mods=[CodecMod]: must be an instance: mods=[codec_mod]" in reply.error.reason


@pytest.mark.parametrize("grid", [None, CodecGrid, codec_mod])
def test_a_grid_must_be_one(grid: Any) -> None:
    with pytest.raises(TypeError, match="grid: must be the ServerApp's Grid, not "):
        CodecGrid(grid)
