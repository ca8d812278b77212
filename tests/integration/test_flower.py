"""CodecGrid and CodecMod on nodes in this process, with lost messages, kills and restarts."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import resfed_codec as rfc
from resfed_codec import _native

pytest.importorskip("flwr", reason="needs Flower: pip install 'resfed-codec[flower]'")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg

from local_app import App, Clock, first_model, local_model, messages_for, model_of, record_of, same
from local_grid import LocalGrid, count_bytes
from resfed_codec.integrations import flower
from resfed_codec.integrations._ends import NOTHING_HELD
from resfed_codec.integrations._flower_records import PARCEL_STYPE
from resfed_codec.integrations._flower_records import record_of as record_of_parcel
from resfed_codec.integrations.flower import CodecGrid, CodecMod, codec_mod

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower, "time", Clock())


@pytest.mark.parametrize("strategy_type", [FedAvg, FedAdam])
@pytest.mark.parametrize("shared_initial", [False, True])
def test_stock_strategies_train_and_evaluate(strategy_type: Any, shared_initial: bool) -> None:
    app = App(CodecMod(first_model) if shared_initial else codec_mod)
    nodes = LocalGrid(app.app, 3)
    grid = CodecGrid(nodes, shared_initial=shared_initial)
    result = strategy_type().start(grid, record_of(first_model()), num_rounds=3, timeout=5)
    assert len(result.evaluate_metrics_clientapp) == len(result.train_metrics_clientapp) == 3
    assert set(map(len, nodes.sent.values())) == {6}, "one message each for training and evaluation"
    for given_model in app.given.values():
        assert same(given_model, grid.session.state)
    n_bytes = sum(array.nbytes for array in first_model().values())
    first, later = nodes.n_bytes[:3], nodes.n_bytes[3:]
    assert all((down < n_bytes / 10) == shared_initial for down, _ in first)
    assert all(down < n_bytes / 10 for down, _ in later)
    assert all(up < n_bytes / 10 for _, up in nodes.n_bytes)
    assert set(grid.session.clients) == set(nodes.get_node_ids())


def test_clients_get_the_aggregate_and_the_server_their_models() -> None:
    """At sparsity 0 and a fine step the values are nearly exact, so mixed-up models would show."""
    fine = rfc.CodecConfig(sparsity=0.0, bits=16)
    app = App(codec_mod)
    nodes = LocalGrid(app.app, 3)
    grid = CodecGrid(nodes, fine, fine)
    model = first_model()
    for number in (1, 2):
        replies = list(grid.send_and_receive(messages_for(nodes, model, number)))
        assert [r.metadata.src_node_id for r in replies] == list(nodes.get_node_ids())
        for reply in replies:
            node = reply.metadata.src_node_id
            partition = int(nodes.contexts[node].node_config["partition-id"])
            expected = local_model(app.given[node], partition, number)
            got = model_of(reply.content["local"])
            assert reply.content["metrics"]["loss"] == 0.5
            assert set(reply.content) == {"metrics", "local"}
            for name, array in expected.items():
                np.testing.assert_allclose(got[name], array, atol=1e-3)
                np.testing.assert_allclose(app.given[node][name], model[name], atol=1e-3)
        model = model_of(replies[0].content["local"])


def test_an_averaged_counter_stays_an_integer() -> None:
    app = App(codec_mod)
    nodes = LocalGrid(app.app, 2)
    grid = CodecGrid(nodes)
    list(grid.send_and_receive(messages_for(nodes, first_model(), 1)))
    averaged = {**first_model(), "steps": np.array(2.9999999)}
    list(grid.send_and_receive(messages_for(nodes, averaged, 2)))
    for given_model in app.given.values():
        assert given_model["steps"].dtype == np.int64
        assert given_model["steps"] == 3


CONFIGS = {
    "default": (None, None),
    "feedback": (rfc.CodecConfig(error_feedback=True), rfc.CodecConfig(error_feedback=True)),
    "res": (rfc.CodecConfig(predictor="res1"), rfc.CodecConfig(predictor="res0")),
    "own": (
        rfc.CodecConfig(predictor=rfc.LinearPredictor(own=(0.5,), other=(0.5,)), sparsity=0.9),
        rfc.CodecConfig(predictor=rfc.AdaptivePredictor(), exclude=("*.bias",)),
    ),
}
FAULTS = [
    *("", "raise", "killed", "rolled back", "lost", "late", "restarted"),
    *("damaged down", "damaged up"),
]


@pytest.mark.parametrize("configs", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("shared_initial", [False, True])
@given(plan=st.lists(st.tuples(*[st.sampled_from(FAULTS)] * 2, st.booleans()), max_size=6))
def test_sessions_recover_from_any_faults(configs: Any, shared_initial: bool, plan: Any) -> None:
    app = App(CodecMod(first_model) if shared_initial else codec_mod)
    faults: dict[int, str] = {}
    nodes = LocalGrid(app.app, 2, lambda node, n: faults.get(node, ""))
    grid = CodecGrid(nodes, *configs, shared_initial=shared_initial)
    model = first_model()

    def one_round(number: int, kind: str = "train") -> list[Message]:
        nonlocal model
        replies = list(grid.send_and_receive(messages_for(nodes, model, number, kind), timeout=3))
        good = [reply for reply in replies if reply.has_content()]
        for reply in good:
            if kind == "train":
                model = model_of(reply.content["local"])
        return good

    for number, (first, second, evaluates) in enumerate(plan, 1):
        faults = dict(zip(nodes.get_node_ids(), (first, second), strict=True))
        for node in [node for node, fault in faults.items() if fault == "restarted"]:
            nodes.restart_node(node)
        one_round(number, "evaluate" if evaluates else "train")
    faults = {}
    for number in (100, 101, 102):
        n_sent = {node: len(messages) for node, messages in nodes.sent.items()}
        assert len(one_round(number)) == 2, "a client is lost"
        for node in nodes.get_node_ids():
            assert number == 100 or len(nodes.sent[node]) == n_sent[node] + 1, "not recovered"
    if configs[1] is None or configs[1].predictor != "res0":  # one downlink for all
        for node in nodes.get_node_ids():
            assert same(app.given[node], grid.session.state)


@pytest.mark.parametrize("configs", CONFIGS.values(), ids=CONFIGS)
def test_a_server_restored_from_an_older_state(configs: Any) -> None:
    """Clients are ahead of the server. It refuses their uplinks and requests what it can decode."""
    app = App(codec_mod)
    nodes = LocalGrid(app.app, 2)
    grid = CodecGrid(nodes, *configs)
    model = first_model()
    saved: dict[str, Any] = {}
    for number in range(1, 6):
        replies = list(grid.send_and_receive(messages_for(nodes, model, number)))
        assert [r.content["metrics"]["loss"] for r in replies] == [0.5, 0.5]
        assert [list(r.content) for r in replies] == [list(replies[0].content)] * 2
        model = model_of(replies[0].content["local"])
        if number == 2:
            saved = grid.session.state_dict()
        if number == 3:
            grid.session.load_state_dict(saved)


def test_only_a_refused_uplink_is_requested_again() -> None:
    """The app does not run again, and the grid keeps the rest of its reply."""
    fine = rfc.CodecConfig(sparsity=0.0, bits=16, predictor="res1")
    app = App(codec_mod)
    nodes = LocalGrid(app.app, 1)
    grid = CodecGrid(nodes, fine)
    list(grid.send_and_receive(messages_for(nodes, first_model(), 1)))
    (message_id,) = grid.push_messages(messages_for(nodes, first_model(), 2))
    forgetful = rfc.ServerSession(first_model(), fine, run=grid.session._run)
    forgetful.update(first_model())
    grid.session.load_state_dict(forgetful.state_dict())
    assert list(grid.pull_messages([message_id])) == []
    (reply,) = grid.pull_messages([message_id])
    assert app.runs == 2
    assert reply.metadata.reply_to_message_id == message_id
    assert set(reply.content) == {"metrics", "local"}
    expected = local_model(app.given[2**63], 0, 2)
    for name, array in model_of(reply.content["local"]).items():
        np.testing.assert_allclose(array, expected[name], atol=1e-3)


def test_a_node_that_never_recovers_fails() -> None:
    app = App(codec_mod)
    nodes = LocalGrid(app.app, 1)
    grid = CodecGrid(nodes)
    list(grid.send_and_receive(messages_for(nodes, first_model(), 1)))

    def refuses(message: Message, context: Context) -> Message:
        parcel = record_of_parcel({"resfed.request": NOTHING_HELD})
        return Message(RecordDict({"resfed_codec": parcel}), reply_to=message)

    nodes.app = refuses  # type: ignore[assignment]
    (reply,) = grid.send_and_receive(messages_for(nodes, first_model(), 2))
    assert "cannot agree on a model" in reply.error.reason
    assert reply.metadata.src_node_id == 2**63
    assert len(nodes.sent[2**63]) == 1 + flower.MAX_MESSAGES


def raw(entries: bytes, stype: str = PARCEL_STYPE) -> ArrayRecord:
    data = entries + _native.crc32c(entries).to_bytes(4, "little")
    return ArrayRecord({"x": Array("uint8", (len(data),), stype, data)})


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (record_of_parcel({"resfed.message": b"no message"}), "payload: "),
        (record_of_parcel({"resfed.request": b"no request"}), "payload: "),
        (record_of_parcel({"resfed.held": b"nothing"}), "payload: "),
        (record_of_parcel({"resfed.held": NOTHING_HELD[:-1] + b"x"}), "payload: "),
        (raw(b""), "holds neither a message nor"),
        (raw(b"\1\5abc"), "the record is truncated"),
        (raw(b"\1\0\1\0"), "holds an unknown entry 1, or the same twice"),
        (raw(b"\xff\0"), "holds an unknown entry 255"),
        (raw(b"\1\0\3\0"), "holds neither a message nor .* or both"),
        (
            raw(b"\1\0", "resfed_codec.2"),
            "'resfed_codec.2', of another version .* 'resfed_codec.1'",
        ),
    ],
)
def test_an_invalid_reply_affects_only_its_client(record: ArrayRecord, why: str) -> None:
    app = App(codec_mod)
    nodes = LocalGrid(app.app, 2)
    grid = CodecGrid(nodes)
    list(grid.send_and_receive(messages_for(nodes, first_model(), 1)))

    def nonsense(message: Message, context: Context) -> Message:
        if context.node_id == 2**63:
            return app.app(message, context)
        return Message(RecordDict({"x": record}), reply_to=message)

    nodes.app = nonsense  # type: ignore[assignment]
    replies = {
        reply.metadata.src_node_id: reply
        for reply in grid.send_and_receive(messages_for(nodes, first_model(), 2))
    }
    assert "local" in replies[2**63].content
    bad = replies[2**63 + 1]
    assert re.search(why, bad.error.reason)
    nodes.app = app.app
    assert len(list(grid.send_and_receive(messages_for(nodes, first_model(), 3)))) == 2


def test_missing_replies_leave_no_state() -> None:
    nodes = LocalGrid(App(codec_mod).app, 2, lambda node, n: "lost")
    grid = CodecGrid(nodes)
    assert list(grid.send_and_receive(messages_for(nodes, first_model(), 1), timeout=2)) == []
    assert grid._waiting == grid._asked_as == {}


def test_error_replies_name_their_node() -> None:
    nodes = LocalGrid(App(codec_mod).app, 2, lambda node, n: "raise" if node % 2 else "")
    replies = list(CodecGrid(nodes).send_and_receive(messages_for(nodes, first_model(), 1)))
    assert sorted((r.metadata.src_node_id, r.has_error()) for r in replies) == [
        (2**63, False),
        (2**63 + 1, True),
    ]


def test_other_messages_are_unchanged(caplog: pytest.LogCaptureFixture) -> None:
    app = App(codec_mod)
    nodes = LocalGrid(app.app, 1)
    grid = CodecGrid(nodes)
    (node,) = nodes.get_node_ids()
    list(grid.send_and_receive(messages_for(nodes, first_model(), 1)))
    version = grid.session.version
    other = record_of({"other": np.ones(3, np.float32)})
    contents = [
        RecordDict({"config": ConfigRecord({"a": b"1"})}),
        RecordDict({"one": other, "two": record_of(first_model())}),
        RecordDict({"arrays": other}),
    ]
    for content in contents:
        (reply,) = grid.send_and_receive([Message(content, node, "query")])
        assert nodes.sent[node][-1].content == content
        assert reply.content == content
    assert grid.session.version == version


def test_a_reply_of_another_layout_is_unchanged() -> None:
    """The server still learns which model the client holds."""
    app = App(codec_mod)
    nodes = LocalGrid(app.app, 1)
    grid = CodecGrid(nodes)
    other = record_of({"gradient": np.ones(3, np.float32)})
    app.query = lambda m, c: Message(RecordDict({"other": other}), reply_to=m)  # type: ignore[method-assign]
    app.app.query("gradient")(app.query)
    for number in (1, 2):
        (message,) = messages_for(nodes, first_model(), number, "query.gradient")
        (reply,) = grid.send_and_receive([message])
        assert reply.content == RecordDict({"other": other})
    assert count_bytes(nodes.sent[2**63][1]) < 100, "the model had arrived"


def test_a_second_grid_in_the_same_run() -> None:
    """Clients find a session of the first grid in their contexts and start a new one."""
    app = App(codec_mod)
    nodes = LocalGrid(app.app, 2)
    for offset in (0, 1):
        grid = CodecGrid(nodes)
        model = {n: a + a.dtype.type(offset) for n, a in first_model().items()}
        for number in (1, 2):
            n_sent = len(nodes.sent[2**63])
            assert len(list(grid.send_and_receive(messages_for(nodes, model, number)))) == 2
            assert len(nodes.sent[2**63]) == n_sent + 1
            assert all(same(given_model, model) for given_model in app.given.values())


@pytest.mark.parametrize("fault", ["", "rolled back"])
def test_different_models_in_one_push(fault: str) -> None:
    """Each node gets its own model, also one that must recover first."""
    fine = rfc.CodecConfig(sparsity=0.0, bits=16)
    app = App(codec_mod)
    nodes = LocalGrid(app.app, 2, lambda node, n: fault if n == 0 else "")
    grid = CodecGrid(nodes, fine, fine)
    for number in (1, 2):
        messages = messages_for(nodes, first_model(), number)
        messages[1] = messages_for(nodes, local_model(first_model(), 9, 9), number)[1]
        assert len(list(grid.send_and_receive(messages))) == 2
        for node, message in zip(nodes.get_node_ids(), messages, strict=True):
            for name, array in model_of(message.content["arrays"]).items():
                np.testing.assert_allclose(app.given[node][name], array, atol=2e-3)
    assert [len(sent) for sent in nodes.sent.values()] == [3 if fault else 2] * 2


def test_a_model_changed_in_place() -> None:
    app = App(codec_mod)
    nodes = LocalGrid(app.app, 1)
    grid = CodecGrid(nodes)
    (message,) = messages_for(nodes, first_model(), 1)
    list(grid.send_and_receive([message]))
    message.content["arrays"]["steps"] = Array(np.array(7))
    list(grid.send_and_receive([Message(message.content, 2**63, "train")]))
    assert app.given[2**63]["steps"] == 7


@pytest.mark.parametrize("shared_initial", [False, True])
@pytest.mark.parametrize("initial", [None, first_model, lambda: local_model(first_model(), 1, 1)])
def test_clients_may_hold_another_first_model(shared_initial: bool, initial: Any) -> None:
    """A client without the first model that the server expects says so and gets a keyframe."""
    app = App(CodecMod(initial))
    nodes = LocalGrid(app.app, 1)
    grid = CodecGrid(nodes, shared_initial=shared_initial)
    for number in (1, 2):
        assert len(list(grid.send_and_receive(messages_for(nodes, first_model(), number)))) == 1
        assert same(app.given[2**63], first_model())
    asked = shared_initial and initial is not first_model
    assert len(nodes.sent[2**63]) == 2 + asked


def test_clear_errors() -> None:
    nodes = LocalGrid(App(codec_mod).app, 1)
    with pytest.raises(TypeError, match="uplink: must be a CodecConfig"):
        CodecGrid(nodes, 0.99)  # type: ignore[arg-type]
    grid = CodecGrid(nodes)
    with pytest.raises(RuntimeError, match="before the first model is sent"):
        _ = grid.session
    bad = {**first_model(), "a.bias": np.full(30, np.nan, np.float32)}
    list(grid.send_and_receive(messages_for(nodes, first_model(), 1)))
    with pytest.raises(ValueError, match=r"'a\.bias'.*not finite"):
        grid.push_messages(messages_for(nodes, bad, 2))
    assert len(list(grid.send_and_receive(messages_for(nodes, first_model(), 2)))) == 1

    nodes = LocalGrid(App(CodecMod(lambda: {"x": np.zeros(3)})).app, 1)
    grid = CodecGrid(nodes, shared_initial=True)
    (reply,) = grid.send_and_receive(messages_for(nodes, first_model(), 1))
    assert "initial: has another layout" in reply.error.reason
    assert "tensor 'z.weight' is missing" in reply.error.reason

    seeds = iter(range(9))
    nodes = LocalGrid(App(CodecMod(lambda: local_model(first_model(), 0, next(seeds)))).app, 1)
    grid = CodecGrid(nodes, shared_initial=True)
    assert not next(iter(grid.send_and_receive(messages_for(nodes, first_model(), 1)))).has_error()
    (reply,) = grid.send_and_receive(messages_for(nodes, first_model(), 2))
    assert "must make the same model every time" in reply.error.reason


def test_other_calls_go_to_the_inner_grid() -> None:
    nodes = LocalGrid(App(codec_mod).app, 3)
    grid = CodecGrid(nodes)
    assert grid.get_node_ids() == nodes.get_node_ids()
    assert grid.contexts is nodes.contexts
    assert [node.node_id for node in grid.get_nodes()] == nodes.get_node_ids()
