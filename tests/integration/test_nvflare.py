"""NVFLARE's filters: repeated tasks and results, client restarts, and the simulator."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import resfed_codec as rfc

pytest.importorskip("nvflare", reason="needs NVFLARE: pip install 'resfed-codec[nvflare]'")

pytest.importorskip("sklearn", reason="needs scikit-learn")

from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.apis.shareable import Shareable, make_copy
from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper
from nvflare.fuel.utils import fobs
from threadpoolctl import threadpool_limits

from digits import task
from resfed_codec.integrations.nvflare import (
    END,
    ClientDecoder,
    ClientEncoder,
    ServerDecoder,
    ServerEncoder,
)

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.integration

Model = dict[str, np.ndarray]


def first_model() -> Model:
    rng = np.random.default_rng(0)
    return {
        "z.weight": rng.standard_normal((40, 50), np.float32),
        "a.weight": rng.standard_normal((50, 30), np.float32),
        "a.bias": np.zeros(30, np.float32),
        "steps": np.array(0, np.int64),
    }


def local_model(model: Model, seed: int) -> Model:
    rng = np.random.default_rng(seed)
    local = {n: a + np.float32(0.01) * rng.standard_t(2, a.shape) for n, a in model.items()}
    return {n: a.astype(model[n].dtype) for n, a in local.items()}


def same(a: Model, b: Model) -> bool:
    return list(a) == list(b) and all(a[n].tobytes() == b[n].tobytes() for n in a)


class Site:
    """One site's filters, and the engine's functions that they call."""

    def __init__(self, name: str, task_data: Any, task_result: Any) -> None:
        self.name, self.task_data, self.task_result = name, task_data, task_result
        self.handlers: dict[str, Any] = {}
        self.server: Site | None = None
        self.manager = FLContextManager(engine=self, identity_name=name, job_id="job")
        for component in (task_data, task_result):
            component.handle_event(EventType.START_RUN, self.context())

    def context(self, peer: str = "", task_id: str = "") -> FLContext:
        context = self.manager.new_context()
        context.set_peer_context(FLContextManager(identity_name=peer, job_id="job").new_context())
        context.set_prop(FLContextKey.TASK_ID, task_id, private=True, sticky=False)
        return context

    def register_aux_message_handler(self, topic: str, handler: Any) -> None:
        self.handlers[topic] = handler

    def fire_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Of the log: FLARE announces warnings."""

    def send_aux_request(
        self, targets: Any, topic: str, request: Any, timeout: float, fl_ctx: Any
    ) -> dict[str, Shareable]:
        assert targets is None
        assert self.server is not None
        handler = self.server.handlers[topic]
        return {"server": over_the_wire(handler(topic, request, self.server.context(self.name)))}


def over_the_wire(shareable: Shareable) -> Shareable:
    copy: Shareable = fobs.loads(fobs.dumps(shareable))
    return copy


class Job:
    """A server and clients; the steps of an NVFLARE task.

    With ``differences``, results are of kind WEIGHT_DIFF; callers give and get models all the same.
    """

    def __init__(self, n_clients: int, *, differences: bool = False, **options: Any) -> None:
        self.kind = DataKind.WEIGHT_DIFF if differences else DataKind.WEIGHTS
        self.taken: dict[str, Model] = {}
        self.server = Site("server", ServerEncoder(**options), ServerDecoder())
        self.clients: dict[str, Site] = {}
        for i in range(1, n_clients + 1):
            self.start(f"site-{i}")

    def start(self, name: str) -> None:
        self.clients[name] = Site(name, ClientDecoder(), ClientEncoder())
        self.clients[name].server = self.server

    def assign(self, name: str, task: Shareable, task_id: str) -> Shareable:
        """The task as the server sends it to a client."""
        context = self.server.context(name, task_id)
        return make_copy(self.server.task_data.process(make_copy(task), context))

    def take(self, name: str, task: Shareable, task_id: str) -> Model:
        """The task as the client's executor receives it."""
        context = self.clients[name].context("server", task_id)
        dxo = from_shareable(self.clients[name].task_data.process(over_the_wire(task), context))
        assert dxo.data_kind == DataKind.WEIGHTS
        model: Model = dxo.data
        self.taken[name] = {key: array.copy() for key, array in model.items()}
        return model

    def reply(self, name: str, result: Shareable, task_id: str) -> Shareable:
        """The result as the client sends it to the server."""
        context = self.clients[name].context("server", task_id)
        if self.kind == DataKind.WEIGHT_DIFF:
            dxo, start = from_shareable(result), self.taken[name]
            data = {key: array - start[key] for key, array in dxo.data.items()}
            result = DXO(self.kind, data, dxo.meta).to_shareable()
        return make_copy(self.clients[name].task_result.process(make_copy(result), context))

    def accept(self, name: str, result: Shareable, task_id: str) -> Model:
        """The result as the controller receives it."""
        context = self.server.context(name, task_id)
        dxo = from_shareable(self.server.task_result.process(over_the_wire(result), context))
        assert dxo.data_kind == self.kind
        assert dxo.meta["loss"] == 0.5
        model: Model = dxo.data
        if self.kind == DataKind.WEIGHT_DIFF:
            return {key: np.asarray(array + self.taken[name][key]) for key, array in model.items()}
        return model


def shareable_of(model: Model) -> Shareable:
    return DXO(DataKind.WEIGHTS, dict(model), {"loss": 0.5}).to_shareable()


def n_bytes(shareable: Shareable) -> int:
    return sum(len(value) for value in from_shareable(shareable).data.values())


FINE = {"sparsity": 0.0, "bits": 16}
SPARSE = {"sparsity": 0.99}  # the default sends more of a small model


@pytest.mark.parametrize("differences", [False, True])
def test_models_arrive_in_both_directions(differences: bool) -> None:
    job = Job(2, differences=differences, uplink=FINE, downlink=FINE)
    model = first_model()
    for number in (1, 2, 3):
        task = shareable_of(model)
        locals_ = []
        for name in job.clients:
            sent = job.assign(name, task, f"{number}")
            given_model = job.take(name, sent, f"{number}")
            for key, array in model.items():
                np.testing.assert_allclose(given_model[key], array, atol=1e-3)
            local = local_model(given_model, number)
            reply = job.reply(name, shareable_of(local), f"{number}")
            locals_.append(job.accept(name, reply, f"{number}"))
            for key, array in local.items():
                np.testing.assert_allclose(locals_[-1][key], array, atol=1e-3)
        model = {n: ((a + locals_[1][n]) / 2).astype(a.dtype) for n, a in locals_[0].items()}


def test_rounds_after_the_keyframe_are_small() -> None:
    job = Job(1, uplink=SPARSE, downlink=SPARSE)
    model = first_model()
    sizes = []
    for number in (1, 2, 3):
        sent = job.assign("site-1", shareable_of(model), str(number))
        local = local_model(job.take("site-1", sent, str(number)), number)
        reply = job.reply("site-1", shareable_of(local), str(number))
        model = job.accept("site-1", reply, str(number))
        sizes.append((n_bytes(sent), n_bytes(reply)))
    whole = sum(array.nbytes for array in model.values())
    assert sizes[0][0] > whole / 2
    assert max(down for down, _ in sizes[1:]) < whole / 20
    assert max(up for _, up in sizes) < whole / 20


@pytest.mark.parametrize("differences", [False, True])
def test_repeated_tasks_and_results(differences: bool) -> None:
    """With error feedback, which must not count a result twice."""
    options = {"error_feedback": True}
    job, twice = (
        Job(1, differences=differences, uplink=options, downlink=options) for _ in range(2)
    )
    model = first_model()
    for number in (1, 2, 3):
        task_id, task = str(number), shareable_of(model)
        once = job.take("site-1", job.assign("site-1", task, task_id), task_id)
        result = shareable_of(local_model(once, number))
        recovered = job.accept("site-1", job.reply("site-1", result, task_id), task_id)
        for _ in range(3):
            sent = twice.assign("site-1", task, task_id)
            for _ in range(2):
                assert same(twice.take("site-1", sent, task_id), once)
        for _ in range(2):
            reply = twice.reply("site-1", result, task_id)
            for _ in range(2):
                assert same(twice.accept("site-1", reply, task_id), recovered)
        model = recovered


def test_a_difference_is_that_of_the_recovered_model() -> None:
    """With error feedback, over several rounds: bit for bit what a WEIGHTS result recovers."""
    whole, parts = (Job(1, differences=d, uplink=SPARSE, downlink=SPARSE) for d in (False, True))
    for number in (1, 2, 3):
        task, task_id = shareable_of(local_model(first_model(), number)), str(number)
        held = [
            j.take("site-1", j.assign("site-1", task, task_id), task_id) for j in (whole, parts)
        ]
        assert same(*held)
        local = local_model(held[0], number)
        moved = {name: array - held[0][name] for name, array in local.items()}
        summed = {name: np.asarray(held[0][name] + array) for name, array in moved.items()}
        reply = whole.reply("site-1", shareable_of(summed), task_id)
        size = n_bytes(reply)
        recovered = whole.accept("site-1", reply, task_id)
        sent = parts.reply("site-1", shareable_of(local), task_id)
        assert n_bytes(sent) == size
        dxo = from_shareable(parts.server.task_result.process(sent, parts.server.context("site-1")))
        assert same(dxo.data, {name: recovered[name] - held[0][name] for name in recovered})
        weights = dxo.data["z.weight"]
        assert (weights == 0).mean() > 0.95, "what was not sent is exactly zero"


@pytest.mark.parametrize("kind", [DataKind.WEIGHTS, DataKind.WEIGHT_DIFF])
def test_torch_tensors(kind: str) -> None:
    """Of bfloat16, too, which NumPy does not know."""
    torch = pytest.importorskip("torch")
    job = Job(1, uplink=FINE, downlink=FINE)
    first = {
        "w": torch.randn(40, 30).bfloat16(),
        "b": torch.zeros(30),
        "n": torch.tensor(3),
    }
    for number in (1, 2):
        task_id = str(number)
        task = DXO(DataKind.WEIGHTS, first, {"loss": 0.5}).to_shareable()
        job.taken.clear()
        client, server = job.clients["site-1"], job.server
        sent = over_the_wire(job.assign("site-1", task, task_id))
        held = from_shareable(
            client.task_data.process(sent, client.context("server", task_id))
        ).data
        local = {name: tensor + 1 for name, tensor in held.items()}
        start = held if kind == DataKind.WEIGHT_DIFF else dict.fromkeys(held, 0)
        data = {name: tensor - start[name] for name, tensor in local.items()}
        reply = client.task_result.process(
            DXO(kind, data).to_shareable(), client.context("server", task_id)
        )
        context = server.context("site-1", task_id)
        dxo = from_shareable(server.task_result.process(over_the_wire(reply), context))
        assert dxo.data_kind == kind
        for name, tensor in first.items():
            assert held[name].dtype == dxo.data[name].dtype == tensor.dtype
            assert torch.allclose(held[name].float(), tensor.float(), atol=0.02)
            assert torch.allclose(dxo.data[name].float(), data[name].float(), atol=0.05)
        first = {
            name: tensor + 0.5 if tensor.is_floating_point() else tensor + 1
            for name, tensor in local.items()
        }


def test_numpy_arrays_of_bfloat16() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    job = Job(1, differences=True, uplink=FINE, downlink=FINE)
    model = {"w": np.arange(12).reshape(3, 4).astype(ml_dtypes.bfloat16)}
    held = job.take("site-1", job.assign("site-1", shareable_of(model), "1"), "1")
    assert same(held, model)
    reply = job.reply("site-1", shareable_of({"w": held["w"] + held["w"]}), "1")
    recovered = job.accept("site-1", reply, "1")
    np.testing.assert_allclose(
        recovered["w"].astype(float), 2 * model["w"].astype(float), rtol=0.02
    )


def test_nothing_is_changed_in_place() -> None:
    """The tasks of all clients share the data of one DXO."""
    job = Job(2)
    model, kept = first_model(), first_model()
    task = shareable_of(model)
    data, meta = from_shareable(task).data, from_shareable(task).meta
    for name in job.clients:
        given_model = job.take(name, job.assign(name, task, "1"), "1")
        assert from_shareable(task).data is data
        assert same(data, kept)
        assert meta == {"loss": 0.5}
        for array in given_model.values():
            array[...] = 1
        result = shareable_of(local_model(first_model(), 1))
        result_data = from_shareable(result).data
        job.reply(name, result, "1")
        assert from_shareable(result).data is result_data
        assert same(result_data, local_model(first_model(), 1))


EVENTS = ["", "task lost", "task twice", "result lost", "result twice", "restarted", "old result"]


@pytest.mark.parametrize(
    ("rule", "differences"), [("global", False), ("res1", False), ("global", True)]
)
@given(plan=st.lists(st.tuples(*[st.sampled_from(EVENTS)] * 2), max_size=6))
def test_every_task_is_decoded_despite_faults(rule: str, differences: bool, plan: Any) -> None:
    job = Job(2, differences=differences, uplink={"predictor": rule})
    model = first_model()
    old: dict[str, tuple[str, Shareable]] = {}
    for number, events in enumerate([*plan, ("", ""), ("", "")], 1):
        task_id, task = str(number), shareable_of(model)
        received = []
        for name, event in zip(sorted(job.clients), events, strict=True):
            if event == "restarted":
                job.start(name)
            sent = job.assign(name, task, task_id)
            if event == "task lost":
                continue
            if event == "task twice":
                job.take(name, sent, task_id)
                sent = job.assign(name, task, task_id)
            received.append(job.take(name, sent, task_id))
            reply = job.reply(name, shareable_of(local_model(received[-1], number)), task_id)
            if event == "result lost":
                continue
            if event == "old result" and name in old:
                job.accept(name, reply, task_id)
                with pytest.raises(rfc.StateMismatchError, match="older"):
                    job.accept(name, old[name][1], old[name][0])
            model = job.accept(name, reply, task_id)
            if event == "result twice":
                assert same(job.accept(name, reply, task_id), model)
            old[name] = task_id, reply
        assert len(received) < 2 or same(*received)


def test_a_server_that_restarts() -> None:
    job = Job(2)
    for number in (1, 2, 3, 4):
        if number == 3:
            job.server = Site("server", ServerEncoder(), ServerDecoder())
            for client in job.clients.values():
                client.server = job.server
        model = local_model(first_model(), number)
        for name in job.clients:
            task_id = str(number)
            sent = job.assign(name, shareable_of(model), task_id)
            given_model = job.take(name, sent, task_id)
            assert number % 2 == 0 or same(given_model, model)
            local = shareable_of(local_model(given_model, number))
            job.accept(name, job.reply(name, local, task_id), task_id)


def test_tasks_of_many_clients_are_filtered_at_the_same_time() -> None:
    job = Job(16)
    task = shareable_of(first_model())
    given_models: dict[str, Model] = {}

    def work(name: str) -> None:
        sent = job.assign(name, task, "1")
        given_models[name] = job.take(name, sent, "1")
        job.accept(name, job.reply(name, shareable_of(first_model()), "1"), "1")

    threads = [threading.Thread(target=work, args=(name,)) for name in job.clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(given_models) == 16
    assert all(same(model, first_model()) for model in given_models.values())
    assert job.server.context().get_prop(END)._end.session.version == 1


def test_other_data_is_unchanged() -> None:
    job = Job(1)
    job.take("site-1", job.assign("site-1", shareable_of(first_model()), "1"), "1")
    other = {"gradient": np.ones(3, np.float32)}
    for kind, data in [
        (DataKind.WEIGHTS, other),
        (DataKind.WEIGHTS, {"text": "no array"}),
        (DataKind.METRICS, {"accuracy": 0.5}),
        (DataKind.WEIGHT_DIFF, {"gradient": np.ones(3, np.float32)}),
        (DataKind.APP_DEFINED, {"anything": 1}),
    ]:
        task = DXO(kind, data).to_shareable()
        for site in (job.server, job.clients["site-1"]):
            for component in (site.task_data, site.task_result):
                dxo = from_shareable(
                    component.process(make_copy(task), site.context("site-1", "2"))
                )
                if site is job.server or component is site.task_result:
                    assert dxo.data_kind == kind
                    assert dxo.data is data


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The codec's warnings so far."""

    def texts() -> list[str]:
        lines = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        return [line.split("resfed_codec: ")[1] for line in lines if "resfed_codec: " in line]

    return texts


def repeated(component: Any, site: Site, kind: str, data: Any) -> None:
    """Let a filter have the same data three times."""
    for _ in range(3):
        component.process(DXO(kind, dict(data)).to_shareable(), site.context("site-1", "2"))


UNCOMPRESSED = {
    "no array": (
        DataKind.WEIGHTS,
        {**first_model(), "a.bias": [0.0] * 30},
        "'a.bias' is a list; the codec encodes NumPy arrays and torch tensors",
    ),
    "layout": (
        DataKind.WEIGHTS,
        {**first_model(), "a.bias": np.zeros(31, np.float32)},
        "tensor 'a.bias' has shape [31] instead of [30]",
    ),
}


@pytest.mark.parametrize(("kind", "data", "why"), UNCOMPRESSED.values(), ids=UNCOMPRESSED)
def test_models_that_travel_uncompressed(kind: str, data: Any, why: str, warned: Any) -> None:
    job = Job(1)
    client = job.clients["site-1"]
    job.take("site-1", job.assign("site-1", shareable_of(first_model()), "1"), "1")
    repeated(job.server.task_data, job.server, kind, data)
    assert warned() == [f"a task is sent uncompressed: {why}"]
    repeated(client.task_result, client, kind, data)
    assert warned()[1:] == [f"a result is sent uncompressed: {why}"]


def test_differences_that_travel_uncompressed(warned: Any) -> None:
    job, model = Job(1), {"mask": np.ones(3, bool)}
    client = job.clients["site-1"]
    job.take("site-1", job.assign("site-1", shareable_of(model), "1"), "1")
    repeated(job.server.task_data, job.server, DataKind.WEIGHT_DIFF, first_model())
    repeated(client.task_result, client, DataKind.WEIGHT_DIFF, {"mask": np.zeros(3, bool)})
    assert warned() == [
        "a task is sent uncompressed: its kind is WEIGHT_DIFF; the codec encodes only WEIGHTS"
        " there",
        "a result is sent uncompressed: tensor 'mask' is bool, of which there are no differences",
    ]


def test_missing_filters(warned: Any) -> None:
    job = Job(1)
    client = job.clients["site-1"]
    repeated(client.task_data, client, DataKind.WEIGHTS, first_model())
    assert "the job has no ServerEncoder" in warned()[0]
    repeated(client.task_result, client, DataKind.WEIGHTS, first_model())
    assert warned()[1] == (
        "a result is sent uncompressed: no ClientDecoder has decoded a task before"
    )
    repeated(job.server.task_result, job.server, DataKind.WEIGHTS, first_model())
    assert "the job has no ClientEncoder" in warned()[2]
    assert len(warned()) == 3


def test_other_data_is_no_cause(warned: Any) -> None:
    job = Job(1)
    for site in (job.server, job.clients["site-1"]):
        for component in (site.task_data, site.task_result):
            repeated(component, site, DataKind.METRICS, {"accuracy": 0.5})
            repeated(component, site, DataKind.APP_DEFINED, {"anything": 1})
    assert warned() == []


def test_a_line_for_each_round(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    job = Job(2)
    model = first_model()
    for number in (1, 2):
        for name in job.clients:
            given_model = job.take(name, job.assign(name, shareable_of(model), f"{number}"), "")
            job.accept(name, job.reply(name, shareable_of(given_model), f"{number}"), f"{number}")
        model = local_model(model, number)
    job.server.task_data.handle_event(EventType.END_RUN, job.server.context())
    texts = [r.getMessage().split("resfed_codec: ")[-1] for r in caplog.records]
    lines = [text for text in texts if text.startswith("global model")]
    assert [re.sub(r"of [\d.]+ k?B|[\d.]+x", "_", line) for line in lines] == [
        "global model 1: 2 messages down _, 2 messages up _, _ less than models, 2 keyframes,"
        " feedback up and down",
        "global model 2: 2 messages down _, 2 messages up _, _ less than models, 0 keyframes,"
        " feedback up and down",
    ]


def test_clear_errors() -> None:
    with pytest.raises(TypeError, match="uplink: must be a dict of fields of CodecConfig, not Cod"):
        ServerEncoder(uplink=rfc.CodecConfig())
    with pytest.raises(ValueError, match="sparsity=2"):
        ServerEncoder(uplink={"sparsity": 2})
    with pytest.raises(TypeError):
        ServerEncoder(downlink={"sparse": 0.5})
    job = Job(1)
    sent = job.assign("site-1", shareable_of(first_model()), "1")
    job.take("site-1", sent, "1")
    reply = job.reply("site-1", shareable_of(first_model()), "1")
    alone = Site("server", ServerDecoder(), ServerDecoder())
    with pytest.raises(RuntimeError, match="needs a ServerEncoder"):
        alone.task_result.process(reply, alone.context("site-1", "1"))


def in_one_process(n_rounds: int) -> Model:
    """The example's job in one process, with NVFLARE's averaging.

    Clients lose their state before the second round, including their error feedback.
    """
    first = model = task.first_model()
    server = rfc.ServerSession(first)
    server.update(model)
    for number in range(1, n_rounds + 1):
        if number <= 2:
            clients = [rfc.ClientSession(first) for _ in range(2)]
        total = WeightedAggregationHelper()
        for i, client in enumerate(clients):
            images, labels, _, _ = task.load_data(i, 2)
            try:
                held = client.receive(server.send(i))
            except rfc.StateMismatchError as error:
                held = client.receive(server.answer(i, error.request))
            local = task.train(held, images, labels, 1000 * number + i)
            recovered = server.receive(i, client.send(local))
            total.add(recovered, len(labels), f"site-{i + 1}", number)
        model = total.get_result()
        server.update(model)
    return model


def simulated(job: Path, folder: Path, *options: str) -> None:
    """Run a job's script, which has to succeed."""
    process = subprocess.Popen(
        [sys.executable, job, folder, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        assert process.wait(400) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def test_simulator(tmp_path: Path) -> None:
    """The example equals one process bit for bit, although its clients lose their state once."""
    job = Path(__file__).parent / "restarting_clients.py"
    simulated(job, tmp_path, "--rounds", "3")
    with np.load(tmp_path / "server" / "simulate_job" / "model.npz") as saved:
        final = {name: saved[name] for name in saved.files}
    with threadpool_limits(1, "blas"):
        assert same(final, in_one_process(3))
    logs = [tmp_path / site / "log.txt" for site in ("server", "site-1", "site-2")]
    server, *clients = [log.read_text() for log in logs]
    for log in clients:
        received, sent = (
            [
                int(n)
                for n in re.findall(rf"resfed_codec: {verb} (\d+) bytes instead of 4020960", log)
            ]
            for verb in ("received", "sent")
        )
        assert len(received) == len(sent) == 3
        assert max(received[2:] + sent) * 200 < 4020960
        assert min(received[:2]) > 3_000_000, "the first model, and after its loss another"
    assert sorted(re.findall(r"(site-\d) refused a message", server)) == ["site-1", "site-2"]
    lines = re.findall(r"resfed_codec: global model (\d): .*, (\d) keyframes, feedback up", server)
    assert lines == [("1", "2"), ("2", "2"), ("3", "0")]
    assert not any("uncompressed" in log for log in (server, *clients))


def differences_in_one_process(dtype: str, orders: list[list[int]]) -> Any:
    """The recipe's job in one process, with NVFLARE's averaging.

    The mean of torch tensors depends on the order of results, ``orders`` of clients by round.
    """
    import torch

    import net as recipe_task

    net = recipe_task.Net(dtype)
    model = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    server, clients = rfc.ServerSession(model), [rfc.ClientSession(model) for _ in range(2)]
    for number, order in enumerate(orders, 1):
        server.update(model)
        total = WeightedAggregationHelper()
        for i in order:
            client = clients[i]
            images, labels, _, _ = recipe_task.load_data(i, 2)
            held = client.receive(server.send(i))
            net.load_state_dict(held)
            recipe_task.train(net, images, labels, 1000 * number + i)
            trained = net.state_dict()
            local = {name: held[name] + (trained[name] - held[name]) for name in held}
            recovered = server.receive(i, client.send(local))
            moved = {name: recovered[name] - held[name] for name in held}
            total.add(moved, len(labels), f"site-{i + 1}", number)
        moves = total.get_result()
        model = {name: tensor + moves[name] for name, tensor in model.items()}
    assert {tensor.dtype for tensor in model.values()} == {getattr(torch, dtype)}
    return model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_simulator_with_a_recipe(tmp_path: Path, dtype: str) -> None:
    """Torch tensors and differences: the model is that of one process, bit for bit."""
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    simulated(EXAMPLES / "nvflare_recipe" / "job.py", tmp_path, "--rounds", "4", "--dtype", dtype)
    server = tmp_path / "digits" / "server" / "simulate_job"
    logs = [path.read_text() for path in (tmp_path / "digits").rglob("log.txt")]
    lines = [line for log in logs for line in log.splitlines() if "resfed_codec: " in line]
    sizes = [int(n) for n in re.findall(r"sent (\d+) bytes instead of", "\n".join(lines))]
    assert len(sizes) == 8
    assert max(sizes) * 100 < 4 * 22510
    assert not any("uncompressed" in log for log in logs)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    firsts = re.findall(r"peer=site-(\d).* - Aggregated 1/2 results", "\n".join(logs))
    assert len(firsts) == 4
    orders = [[0, 1] if first == "1" else [1, 0] for first in firsts]
    expected = differences_in_one_process(dtype, orders)
    torch.set_num_threads(n_threads)
    final = torch.load(server / "app_server" / "FL_global_model.pt")["model"]
    assert {n: t.tolist() for n, t in final.items()} == {n: t.tolist() for n, t in expected.items()}
