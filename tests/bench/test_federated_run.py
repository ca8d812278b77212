"""Runs of benchmarks/federated: result lines, resuming, the command line and the report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marks import slow_except

pytest.importorskip("torch")

import torch
from benchmarks.federated.__main__ import main
from benchmarks.federated.chart import OVER, draw
from benchmarks.federated.config import RunConfig, parse_method
from benchmarks.federated.curves import read
from benchmarks.federated.data import load
from benchmarks.federated.methods import Method, State, make
from benchmarks.federated.models import build
from benchmarks.federated.names import name_of
from benchmarks.federated.report import write
from benchmarks.federated.runner import CHECKPOINT_EVERY, CHECKPOINT_SECONDS, is_finished, run
from benchmarks.federated.runs import FILE, append, read_runs
from benchmarks.federated.suites import SUITES
from benchmarks.federated.train import Trainer

ROOT = Path(__file__).parents[2]
STAMP = dict.fromkeys(("machine", "versions", "command", "commit", "date"), "-")
SMALL = RunConfig(
    options={"sparsity": 0.9, "up": "res1", "down_feedback": True},
    clients=3,
    rounds=8,
    images=300,
    test_images=100,
    lr=0.05,
    batch=16,
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """The networks are small, so more threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rounds_of(folder: Path, config: RunConfig = SMALL) -> list[dict]:
    return read_runs(folder)[config.id].lines


def train(config: RunConfig, folder: Path, **options: Any) -> bool:
    return run(config, load("digits", None), folder, STAMP, **options)


class StoppedError(Exception):
    pass


def train_until(number: int, config: RunConfig, folder: Path) -> None:
    """Stop after this round as if the process had crashed."""

    def stop(line: dict) -> None:
        if line["round"] == number:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(config, folder, on_round=stop)


@pytest.mark.parametrize(
    ("method", "options", "at"),
    [
        ("codec", SMALL.options, 3),
        ("codec", {"up_feedback": True}, 7),
        ("qsgd", {"bits": 4}, 7),
        ("resfed", {}, CHECKPOINT_EVERY),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    method: str, options: dict, at: int, tmp_path: Path
) -> None:
    config = replace(SMALL, method=method, options=options)
    assert train(config, tmp_path / "whole")
    train_until(at, config, tmp_path / "torn")
    assert not is_finished(tmp_path / "torn", config)
    seen: list[dict] = []
    assert train(config, tmp_path / "torn", on_round=seen.append)
    whole, torn = ((tmp_path / name / FILE).read_bytes() for name in ("whole", "torn"))
    assert torn.endswith(whole)
    assert (torn == whole) == (at > CHECKPOINT_EVERY)  # otherwise it started again
    assert read_runs(tmp_path / "torn") == read_runs(tmp_path / "whole")
    assert seen == rounds_of(tmp_path / "whole", config)
    assert [path.name for path in (tmp_path / "torn").iterdir()] == [FILE]


def test_fields_of_lines(tmp_path: Path) -> None:
    config = replace(SMALL, method="uncompressed", options={})
    assert train(config, tmp_path)
    (found,) = read_runs(tmp_path).values()
    lines = found.lines
    assert found.config == config
    assert found.header["commit"] == "-"
    assert [line["round"] for line in lines] == list(range(1, 9))
    assert {(line["up"], line["down"]) for line in lines} == {(3 * 4 * 9178, 3 * 4 * 9178)}
    assert lines[0]["accuracy"] < 0.6 < lines[-1]["accuracy"] <= 1


@pytest.mark.parametrize("precision", slow_except(["float32"], ["float32", "bf16"]))
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("codec", {"sparsity": 0.9, "up_feedback": True, "down_feedback": True}),
        ("codec", {"sparsity": 0.9, "statistics": "budget"}),
        ("resfed", {"sparsity": 0.9}),
        ("stc", {"sparsity": 0.9}),
        ("uncompressed", {}),
    ],
)
def test_the_tested_model_is_that_of_the_clients(
    method: str, options: dict, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model of the clients' sessions, if the method has sessions; for both accuracies."""
    config = replace(SMALL, model="batchnorm_cnn", method=method, options=options, rounds=3)
    config = replace(config, precision=precision)
    made: list[Method] = []
    tested: list[State] = []
    accuracy = Trainer.accuracy

    def keep(*args: object) -> Method:
        made.append(make(*args))  # type: ignore[arg-type]
        return made[0]

    def spy(self: Trainer, state: State) -> float:
        tested.append(state)
        return accuracy(self, state)

    monkeypatch.setattr("benchmarks.federated.runner.make", keep)
    monkeypatch.setattr(Trainer, "accuracy", spy)
    rounds: list[tuple[State, dict]] = []

    def after(line: dict) -> None:
        held = made[0].held[0]
        if method == "codec":
            (channel,) = made[0]._channels
            state = channel._clients[0].state
            assert all(np.array_equal(state[name], held[name]) for name in held)
        rounds.append(({name: value.copy() for name, value in held.items()}, line))

    assert train(config, tmp_path, on_round=after)
    monkeypatch.undo()
    assert len(tested) == 2 * len(rounds) == 6
    data = load("digits", None).subset(config.images, config.test_images, 0)
    model = build("batchnorm_cnn", (1, 8, 8), 10, 0)
    trainer = Trainer(model, data, precision=precision)
    for i, (held, line) in enumerate(rounds):
        as_held, other = tested[2 * i : 2 * i + 2]
        assert set(held) == set(as_held) == set(other)
        assert all(np.array_equal(as_held[name], held[name]) for name in held)
        assert {name for name in held if not np.array_equal(other[name], held[name])} == {
            name for name in held if "running" in name
        }
        assert line["accuracy"] == trainer.accuracy(held)
        recomputed = trainer.recomputed(held, np.arange(config.images))
        assert line["accuracy_recomputed"] == trainer.accuracy(recomputed)


def test_lines_do_not_depend_on_threads_and_record_the_precision(tmp_path: Path) -> None:
    config = replace(SMALL, rounds=2, precision="bf16")
    for threads in (1, 3):
        assert train(config, tmp_path / f"{threads}", threads=threads)
    one, three = ((tmp_path / f"{threads}" / FILE).read_bytes() for threads in (1, 3))
    assert one == three
    assert read_runs(tmp_path / "1")[config.id].config.precision == "bf16"
    with pytest.raises(ValueError, match="of another configuration"):
        train(replace(config, precision="float32"), tmp_path / "1")


def test_a_file_without_a_newer_setting_has_its_default(tmp_path: Path) -> None:
    config = replace(SMALL, rounds=1)
    assert train(config, tmp_path)
    header, *lines = (tmp_path / FILE).read_text().splitlines(True)
    old = json.loads(header)
    del old["config"]["precision"]
    (tmp_path / FILE).write_text("".join([json.dumps(old) + "\n", *lines]))
    assert is_finished(tmp_path, config)
    with pytest.raises(ValueError, match="of another configuration"):
        is_finished(tmp_path, replace(config, precision="bf16"))


def test_a_slow_run_is_saved_before_its_fifth_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 100 * CHECKPOINT_SECONDS, CHECKPOINT_SECONDS - 1))
    monkeypatch.setattr("benchmarks.federated.runner.time.monotonic", lambda: next(clock))
    saved = []

    def stop(line: dict) -> None:
        saved.append((tmp_path / f"{SMALL.id}.checkpoint").exists())
        if line["round"] == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(SMALL, tmp_path, on_round=stop)
    assert saved == [False, False, True]


def test_a_deadline_stops_between_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("benchmarks.federated.runner.time.time", lambda: next(clock))
    assert not train(SMALL, tmp_path, deadline=3)  # checked at 0 and before every round
    assert len(rounds_of(tmp_path)) == 2
    assert not train(SMALL, tmp_path / "late", deadline=3)
    assert not (tmp_path / "late").exists()
    assert train(SMALL, tmp_path)


def test_partial_files_after_a_crash(tmp_path: Path) -> None:
    """An incomplete line, or a checkpoint whose lines were deleted by hand."""
    path = tmp_path / FILE
    assert train(SMALL, tmp_path)
    whole, lines = path.read_bytes(), rounds_of(tmp_path)
    path.write_bytes(whole[:-10])
    assert not is_finished(tmp_path, SMALL)
    assert train(SMALL, tmp_path)
    assert path.read_bytes() == whole[:-10] + b"\n" + whole
    assert rounds_of(tmp_path) == lines

    path.unlink()
    (tmp_path / f"{SMALL.id}.checkpoint").write_bytes(b"of something else")
    assert train(SMALL, tmp_path)
    assert path.read_bytes() == whole


def test_a_line_lost_before_the_checkpoint_is_written_again(tmp_path: Path) -> None:
    train_until(CHECKPOINT_EVERY + 1, SMALL, tmp_path)
    kept = (tmp_path / FILE).read_text().splitlines(True)
    (tmp_path / FILE).write_text("".join(kept[:3]) + kept[3][:9])
    assert train(SMALL, tmp_path)
    again = rounds_of(tmp_path)
    assert train(SMALL, tmp_path / "whole")
    assert again == rounds_of(tmp_path / "whole")


def test_another_configuration_is_not_overwritten(tmp_path: Path) -> None:
    short = replace(SMALL, rounds=1)
    assert train(short, tmp_path)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(ValueError, match="of another configuration"):
        train(replace(short, lr=0.1), tmp_path)
    assert (tmp_path / FILE).read_bytes() == before


def test_several_processes_append_whole_lines(tmp_path: Path) -> None:
    """Each process writes its own run; no line is lost or mixed with another."""
    n_processes, n_lines = 4, 300
    program = f"""
import sys
from pathlib import Path
from benchmarks.federated.config import RunConfig
from benchmarks.federated.runs import append
config = RunConfig(method="stc", seed=int(sys.argv[1]), rounds={n_lines})
folder = Path({str(tmp_path)!r})
append(folder, config.id, {{"config": config.as_dict()}})
for i in range({n_lines}):
    append(folder, config.id, {{"round": i + 1, "note": "x" * i}})
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", program, f"{seed}"], cwd=ROOT)
        for seed in range(n_processes)
    ]
    assert [process.wait() for process in processes] == [0] * n_processes
    runs = read_runs(tmp_path)
    assert len(runs) == n_processes
    for found in runs.values():
        assert found.lines == [{"round": i + 1, "note": "x" * i} for i in range(n_lines)]


@pytest.mark.slow
@pytest.mark.parametrize("kill_all", [True, False])
def test_a_killed_command_resumes(kill_all: bool, tmp_path: Path) -> None:
    """SIGKILL during a training, to all processes or to the first, which ends the others."""
    words = ["--method", "codec:sparsity=0.9,up_feedback=True", "--clients", "3", "--rounds", "20"]
    words += ["--images", "300", "--test-images", "50", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks.federated", "run", *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    config = replace(SMALL, options={"sparsity": 0.9, "up_feedback": True}, rounds=20)
    config = replace(config, lr=RunConfig().lr, batch=RunConfig().batch, test_images=50)

    def n_rounds() -> int:
        found = read_runs(tmp_path).get(config.id)
        return len(found.lines) if found else 0

    process = subprocess.Popen(
        command, cwd=ROOT, env=env, start_new_session=True, stderr=subprocess.DEVNULL
    )
    while n_rounds() <= CHECKPOINT_EVERY + 1:
        assert process.poll() is None
        time.sleep(0.01)
    (os.killpg if kill_all else os.kill)(process.pid, signal.SIGKILL)
    process.wait()
    n_before = n_rounds()
    time.sleep(2)
    assert n_rounds() <= n_before + 1 < 20

    subprocess.run(command, cwd=ROOT, env=env, check=True, stderr=subprocess.DEVNULL)
    (found,) = read_runs(tmp_path).values()
    assert found.is_finished
    assert train(found.config, tmp_path / "whole")
    assert found.lines == rounds_of(tmp_path / "whole", found.config)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "cpu"], "no CIFAR-10 in"),
        (["--method", "eden", "--method", "codec:colour=1"], "method 'codec': .*'colour'"),
        (["--method", "zip"], "method 'zip': must be one of"),
        pytest.param(
            ["--device", "cuda"],
            "--device cuda: PyTorch finds no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_invalid_options_give_a_message_and_train_nothing(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["federated", "run", *words, "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        main()
    assert not list(tmp_path.iterdir())


def test_method_from_option_string() -> None:
    spec = "codec:sparsity=0.95,up=res1,up_feedback=True,exclude=*mean+*var"
    options = {
        "sparsity": 0.95,
        "up": "res1",
        "up_feedback": True,
        "exclude": ("*mean", "*var"),
    }
    assert parse_method(spec) == ("codec", options)
    assert parse_method("eden") == ("eden", {})
    with pytest.raises(ValueError, match="is not KEY=VALUE"):
        parse_method("codec:fast")


@pytest.mark.parametrize("name", SUITES)
def test_suites_name_methods_that_exist(name: str) -> None:
    base, methods, seeds = SUITES[name]
    assert len(seeds) == len(set(seeds)) > 0
    configs = []
    for spec in methods:
        method, options = parse_method(spec)
        initial = {name: np.zeros((8, 8), np.float32) for name in ("fc", "norm.running_var")}
        make(method, options, initial, base.clients, 0)
        configs.append(replace(base, method=method, options=options))
    assert len({config.id for config in configs}) == len(methods)
    assert len({config.name for config in configs}) == len(methods)


def write_run(folder: Path, config: RunConfig, accuracy: list[float], up: int) -> None:
    command = f"run --suite cpu --seeds 0 1 --method {config.method} --jobs 2"
    header = {**STAMP, "command": command, "config": config.as_dict()}
    lines = [
        {"round": i, "accuracy": a, "up": up, "down": 2 * up} for i, a in enumerate(accuracy, 1)
    ]
    for line in [header, *lines]:
        append(folder, config.id, line)


def test_report_reads_megabytes_to_an_accuracy(tmp_path: Path) -> None:
    folder = tmp_path / "trial"
    folder.mkdir()
    config = RunConfig(method="topk", rounds=4, clients=2)
    write_run(folder, config, [0.1, 0.4, 0.3, 0.6], up=3_000_000)
    write_run(folder, replace(config, seed=1), [0.2, 0.3, 0.5, 0.5], up=3_000_000)
    write_run(folder, replace(config, method="stc"), [0.1, 0.1, 0.2, 0.2], up=1_000_000)
    write_run(folder, replace(config, method="eden", rounds=9), [0.1, 0.1], up=1)  # incomplete

    groups = read(folder)
    assert list(groups) == ["top-k", "STC"]
    assert list(read(folder, ["S*"])) == ["STC"]
    first = groups["top-k"][0]
    assert first.until(0.4) == {"rounds": 2, "up": 3, "down": 6, "total": 9}
    assert first.until(0.7) is None
    text = write(folder, [0.4, 0.55])
    assert "| top-k | 2 of 2 | 2.5 ± 0.71 | 3.75 ± 1.1 | 7.5 ± 2.1 | 11.2 ± 3.2 | 90 |" in text
    assert "| top-k | 1 of 2 | 4 | 6 | 12 | 18 | 144 |" in text
    assert "Never: STC." in text
    assert "- command: `run --suite cpu --jobs 2`\n" in text
    assert "EDEN" not in text
    assert (tmp_path / "trial.md").read_text() == text


def test_report_of_unfinished_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "trial"
    folder.mkdir()
    config = RunConfig(method="topk", rounds=4, clients=2)
    write_run(folder, config, [0.1, 0.4, 0.3], up=3_000_000)
    write_run(folder, replace(config, method="stc"), [], up=1)
    monkeypatch.setattr(sys, "argv", ["federated", "report", str(folder)])
    with pytest.raises(SystemExit, match="no finished training"):
        main()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--unfinished", "--targets", "0.4", "0.5"])
    main()
    text = capsys.readouterr().out
    assert "| top-k (3 of 4 rounds) | 1 | 26.7 | 4.5 | 9 | 13.5 | - |" in text
    assert "| top-k (3 of 4 rounds) | 1 of 1 | 2 | 3 | 6 | 9 | 72 |" in text
    assert "Not so far: top-k (3 of 4 rounds)." in text
    assert "Never" not in text
    assert "STC" not in text


def test_report_shows_errors_where_runs_have_them(tmp_path: Path) -> None:
    folder = tmp_path / "trial"
    config = replace(
        SMALL, method="codec_select", options={"sparsity": 0.9, "feedback": True}, rounds=2
    )
    assert train(config, folder)
    lines = rounds_of(folder, config)
    up, down = (np.mean([line[f"error_{name}"] for line in lines]) for name in ("up", "down"))
    write_run(folder, replace(config, method="stc", options={}), [0.1, 0.1], up=1)
    text = write(folder, [0.05])
    assert "| error up | error down | commit |" in text
    assert f"| {up:.3g} | {down:.3g} |" in text
    assert "| STC | 1 | 10.0 | 6.67e-07 | 1.33e-06 | 2e-06 |  |  | - |" in text


def test_report_does_not_mix_trainings(tmp_path: Path) -> None:
    config = RunConfig(method="topk", rounds=1, clients=2)
    write_run(tmp_path, config, [0.1], up=1)
    assert len(read(tmp_path)) == 1
    write_run(tmp_path, replace(config, method="stc", lr=0.5), [0.1], up=1)
    with pytest.raises(ValueError, match="different trainings"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match="no finished training"):
        read(tmp_path / "none")


@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("suffix", slow_except(["svg"], ["svg", "png"]))
def test_chart_is_the_same_each_time(over: str, suffix: str, tmp_path: Path) -> None:
    config = RunConfig(method="topk", rounds=3, clients=2)
    write_run(tmp_path, config, [0.1, 0.4, 0.3], up=3_000_000)
    write_run(tmp_path, replace(config, seed=1), [0.2, 0.3, 0.5], up=3_000_000)
    write_run(tmp_path, replace(config, method="codec"), [0.1, 0.4, 0.3], up=1_000)
    paths = [tmp_path / f"{i}.{suffix}" for i in range(2)]
    for path in paths:
        draw(tmp_path, path, over=over, title="title")
    one, two = (path.read_bytes() for path in paths)
    assert one == two
    assert len(one) > 1000


def test_display_names() -> None:
    assert [name_of(*parse_method(spec)) for spec in (
        "codec:sparsity=0.99,up_feedback=True,down_feedback=True",
        "codec:sparsity=0.95,up=res1,down_feedback=True",
        "codec:max_bytes=1600,keyframe=True,exclude=*mean+*var",
        "codec_select:sparsity=0.99,rule=rate,feedback=True",
        "resfed:sparsity=0.99",
        "qsgd:bits=4",
        "uncompressed",
    )] == [
        "ours 0.99, feedback both ways",
        "ours 0.95, feedback down, predictor up res1",
        "ours, no feedback, lossless *mean *var, keyframe, max_bytes 1600",
        "ours (selection) 0.99, feedback both ways, rule rate",
        "ResFed paper's scheme 0.99",
        "QSGD, bits 4",
        "uncompressed",
    ]  # fmt: skip
