"""The codec in Flower's simulation engine, and the example as ``flwr run`` starts it."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install 'resfed-codec[flower]'")
pytest.importorskip("ray", reason="needs Ray: pip install 'flwr[simulation]'")
pytest.importorskip("psutil", reason="needs psutil, as Ray does")

import psutil

import resfed_codec
from local_app import first_model, same
from resfed_codec.integrations._flower_records import model_of, shared_arrays_of
from simulated_app import N_NODES, N_ROUNDS

pytestmark = pytest.mark.integration

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "flower"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """Flower's home; at the end, what was started with it is killed."""
    yield tmp_path
    for process in psutil.process_iter():
        try:
            if process.environ().get("FLWR_HOME") == str(tmp_path):
                process.kill()
        except psutil.Error:
            continue


def output_of(home: Path, *command: str) -> Any:
    """The JSON object that a program prints."""
    package = str(Path(resfed_codec.__file__).parents[1])
    paths = os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    settings = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    env = {**os.environ, **settings, "FLWR_HOME": str(home), "PYTHONPATH": paths, "PATH": programs}
    log = home / "output.log"
    with log.open("wb") as file:
        subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=env, timeout=400)
    lines = [line for line in log.read_text().splitlines() if line.startswith("{")]
    assert lines, log.read_text()[-3000:]
    return json.loads(lines[-1])


def test_sampled_nodes_that_fail_at_times(home: Path) -> None:
    found = output_of(home, sys.executable, str(HERE / "simulated_app.py"))
    assert len(found["norms"]) == N_ROUNDS
    assert found["norms"][-1] == pytest.approx(found["norm"], rel=1e-5)
    stats = found["stats"]
    assert stats["plain_messages"] == 0
    assert stats["messages_down"] >= N_ROUNDS * (5 + 3)
    assert 0 < stats["messages_up"] < N_ROUNDS * 5, "some have failed"
    assert stats["keyframes_down"] >= N_NODES - 2
    n_first = stats["keyframes_down"] * sum(array.nbytes for array in first_model().values())
    assert stats["bytes_down"] + stats["bytes_up"] < 1.5 * n_first < stats["uncompressed_bytes"]


def test_the_example_runs_as_it_is(home: Path) -> None:
    """In the simulation engine, Flower's default. Nothing needs to be installed for the run."""
    found = output_of(home, "flwr", "run", str(EXAMPLE), "--stream", "--run-config", "num-rounds=2")
    assert len(found["accuracies"]) == 2
    assert found["accuracies"][-1] > 0.8


def test_a_process_keeps_equal_models_once() -> None:
    """As the engine's process does, which unpickles the contexts of all nodes."""
    own = np.ones(3, np.float32)
    states = [shared_arrays_of({**first_model(), "own": i * own}) for i in range(2)]
    first, second = (pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(s)))) for s in states)
    for name in first_model():
        assert first[name] is second[name]
    for i, state in enumerate((first, second)):
        assert same(model_of(state), {**first_model(), "own": i * own})
    assert first["own"] is not second["own"]
