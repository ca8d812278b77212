"""Which statistics of BatchNorm clients send, and the readings of a test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from benchmarks.federated.batchnorm import RECEIVED, Statistics
from benchmarks.federated.clients import make_clients
from benchmarks.federated.config import RunConfig
from benchmarks.federated.curves import read
from benchmarks.federated.data import load
from benchmarks.federated.methods.base import State
from benchmarks.federated.models import build
from benchmarks.federated.runner import run
from benchmarks.federated.runs import read_runs
from benchmarks.federated.text import load_text
from benchmarks.federated.train import Trainer

STAMP = dict.fromkeys(("machine", "versions", "command", "commit", "date"), "-")
CONFIG = RunConfig(
    model="batchnorm_cnn",
    options={"sparsity": 0.9, "up_feedback": True, "down_feedback": True},
    clients=3,
    rounds=6,
    images=300,
    test_images=100,
    lr=0.05,
    batch=16,
)
DATA = load("digits", None)


@pytest.fixture
def trainer() -> Trainer:
    model = build("batchnorm_cnn", (1, 8, 8), 10, 0)
    return Trainer(model, DATA.subset(300, 100, 0), lr=0.05, batch=16)


def parts(state: State) -> tuple[State, State]:
    """Parameters and statistics."""
    found: tuple[State, State] = ({}, {})
    for name, value in state.items():
        found["running" in name][name] = value
    return found


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_what_clients_send(trainer: Trainer) -> None:
    torch.set_num_threads(1)
    shards = [np.arange(100), np.arange(100, 300)]
    first = trainer.state()
    held = [first, first]
    trained = [trainer.train(first, s, np.random.default_rng(i)) for i, s in enumerate(shards)]
    sent = {}
    for choice in ("trained", "received", "both"):
        statistics = Statistics(choice, trainer, shards, [1, 2])
        assert statistics.first(first).keys() >= first.keys()
        sent[choice] = list(statistics.sent(held, trained))
        assert {*sent[choice][0]} == {*statistics.first(first)}
    for i, shard in enumerate(shards):
        assert same(sent["trained"][i], trained[i])
        parameters, received = parts(sent["received"][i])
        assert same(parameters, parts(trained[i])[0])
        # Those of the model before training, on the client's images alone.
        assert same(received, parts(trainer.recomputed(first, shard))[1])
        both = sent["both"][i]
        assert same({name: both[name] for name in trained[i]}, trained[i])
        assert same({n.removeprefix(RECEIVED): both[n] for n in both if RECEIVED in n}, received)
    with pytest.raises(ValueError, match="statistics 'fresh': must be one of trained, received"):
        Statistics("fresh", trainer, shards, [1, 2])


def test_readings_differ_in_statistics_alone(trainer: Trainer) -> None:
    shards, weights = [np.arange(100), np.arange(100, 300)], [1, 3]
    first = trainer.state()
    statistics = Statistics("both", trainer, shards, weights)
    assert Statistics("trained", trainer, shards, weights).readings(first).keys() == {"recomputed"}
    start = statistics.first(first)
    local = next(
        statistics.sent([start], [trainer.train(start, shards[0], np.random.default_rng(0))])
    )
    readings = statistics.readings(local)
    assert [*readings] == ["recomputed", "received", "own", "asked", "pooled"]
    found = {name: parts({n: state[n] for n in first}) for name, state in readings.items()}
    assert all(same(parameters, parts(local)[0]) for parameters, _ in found.values())
    assert same(found["received"][1], parts(trainer.recomputed(first, shards[0]))[1])
    assert same(found["own"][1], {name: local[name] for name in parts(first)[1]})
    asked = [parts(trainer.recomputed(local, shard))[1] for shard in shards]
    for name, value in found["asked"][1].items():
        expected = np.average([s[name] for s in asked], axis=0, weights=weights)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        if name.endswith("var"):
            means = [s[name.replace("var", "mean")] for s in asked]
            center = np.average(means, axis=0, weights=weights)
            between = np.average((means - center) ** 2, axis=0, weights=weights)
            np.testing.assert_allclose(found["pooled"][1][name], expected + between, rtol=1e-4)
        else:
            assert np.array_equal(found["pooled"][1][name], value)


def test_the_choice_changes_no_parameter(tmp_path: Path) -> None:
    lines = {}
    for choice in ("trained", "received", "both"):
        config = replace(CONFIG, statistics=choice)
        assert run(config, DATA, tmp_path / choice, STAMP)
        (found,) = read_runs(tmp_path / choice).values()
        lines[choice] = found.lines
    for one, received, both in zip(*lines.values(), strict=True):
        assert len({line["accuracy_recomputed"] for line in (one, received, both)}) == 1
        # All statistics share the quantizer's step, so those of two sets are rounded otherwise.
        assert one["accuracy"] == pytest.approx(both["accuracy"], abs=0.1)
        assert received["accuracy"] == pytest.approx(both["accuracy_received"], abs=0.1)
        assert both["up"] > one["up"]
    assert {
        "",
        *(f", statistics {n}" for n in ("recomputed", "received", "own", "asked", "pooled")),
    } == {name.removeprefix("ours 0.9, feedback both ways") for name in read(tmp_path / "both")}


def test_a_resumed_run_has_the_same_readings(tmp_path: Path) -> None:
    config = replace(CONFIG, statistics="both")

    def stop(line: dict) -> None:
        if line["round"] == 6:
            raise InterruptedError

    assert run(config, DATA, tmp_path / "whole", STAMP)
    with pytest.raises(InterruptedError):
        run(config, DATA, tmp_path / "torn", STAMP, on_round=stop)
    assert run(config, DATA, tmp_path / "torn", STAMP)
    assert read_runs(tmp_path / "torn") == read_runs(tmp_path / "whole")


def test_models_without_statistics_and_text(tmp_path: Path) -> None:
    config = replace(CONFIG, model="tiny_cnn", statistics="both", rounds=1)
    assert run(config, DATA, tmp_path, STAMP)
    (found,) = read_runs(tmp_path).values()
    assert [name for name in found.lines[0] if name.startswith("accuracy")] == ["accuracy"]
    with pytest.raises(ValueError, match="text: statistics must be trained"):
        make_clients(replace(config, data="python"), load_text("python"), "cpu", 1)
