"""Runs of benchmarks/federated: lines, resuming, the command line and the report."""

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

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from benchmarks.federated.__main__ import main
from benchmarks.federated.config import RunConfig, parse_method
from benchmarks.federated.data import load
from benchmarks.federated.methods import Method, State, make
from benchmarks.federated.models import build
from benchmarks.federated.report import read, write
from benchmarks.federated.runner import CHECKPOINT_EVERY, CHECKPOINT_SECONDS, is_finished, run
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
    """The networks are small: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class StoppedError(Exception):
    pass


@pytest.mark.parametrize(
    ("method", "options", "at"),
    [
        ("codec", SMALL.options, 3),
        ("codec", {"up_feedback": True}, 7),
        ("qsgd", {"bits": 4}, 7),
        ("resfed", {}, CHECKPOINT_EVERY),
    ],
)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    method: str, options: dict, at: int, tmp_path: Path
) -> None:
    config = replace(SMALL, method=method, options=options)
    data = load("digits", None)
    assert run(config, data, tmp_path / "whole.jsonl", STAMP)

    def stop(line: dict) -> None:
        if line["round"] == at:
            raise StoppedError

    with pytest.raises(StoppedError):
        run(config, data, tmp_path / "torn.jsonl", STAMP, on_round=stop)
    assert not is_finished(tmp_path / "torn.jsonl", config)
    seen: list[dict] = []
    assert run(config, data, tmp_path / "torn.jsonl", STAMP, on_round=seen.append)
    whole, torn = ((tmp_path / f"{name}.jsonl").read_bytes() for name in ("whole", "torn"))
    assert torn == whole
    assert seen == lines_of(tmp_path / "whole.jsonl")[1:]
    assert not list(tmp_path.glob("*.checkpoint"))


def test_lines_say_what_happened(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    config = replace(SMALL, method="uncompressed", options={})
    assert run(config, load("digits", None), path, STAMP)
    header, *lines = lines_of(path)
    assert RunConfig(**header["config"]) == config
    assert header["commit"] == "-"
    assert [line["round"] for line in lines] == list(range(1, 9))
    assert {(line["up"], line["down"]) for line in lines} == {(3 * 4 * 9178, 3 * 4 * 9178)}
    assert lines[0]["accuracy"] < 0.6 < lines[-1]["accuracy"] <= 1


@pytest.mark.parametrize("precision", ["float32", "bf16"])
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
def test_the_model_tested_is_the_one_that_clients_hold(
    method: str, options: dict, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the sessions of the clients have it, where there are sessions; with both readings."""
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

    assert run(config, load("digits", None), tmp_path / "run.jsonl", STAMP, on_round=after)
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
        assert line["accuracy_recomputed"] == trainer.accuracy(trainer.recomputed(held))


def test_lines_do_not_depend_on_threads_and_say_the_precision(tmp_path: Path) -> None:
    config = replace(SMALL, rounds=2, precision="bf16")
    data = load("digits", None)
    for threads in (1, 3):
        assert run(config, data, tmp_path / f"{threads}.jsonl", STAMP, threads=threads)
    one, three = ((tmp_path / f"{threads}.jsonl").read_bytes() for threads in (1, 3))
    assert one == three
    assert lines_of(tmp_path / "1.jsonl")[0]["config"]["precision"] == "bf16"
    with pytest.raises(ValueError, match="of another configuration"):
        run(replace(config, precision="float32"), data, tmp_path / "1.jsonl", STAMP)


def test_a_file_from_before_a_setting_has_its_default(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    config = replace(SMALL, rounds=1)
    assert run(config, load("digits", None), path, STAMP)
    header, *lines = lines_of(path)
    del header["config"]["precision"]
    path.write_text("".join(json.dumps(line) + "\n" for line in [header, *lines]))
    assert is_finished(path, config)
    with pytest.raises(ValueError, match="of another configuration"):
        is_finished(path, replace(config, precision="bf16"))


def test_a_slow_run_is_saved_before_its_fifth_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = tmp_path / "run.jsonl", load("digits", None)
    clock = iter(range(0, 100 * CHECKPOINT_SECONDS, CHECKPOINT_SECONDS - 1))
    monkeypatch.setattr("benchmarks.federated.runner.time.monotonic", lambda: next(clock))
    saved = []

    def stop(line: dict) -> None:
        saved.append(path.with_suffix(".checkpoint").exists())
        if line["round"] == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        run(SMALL, data, path, STAMP, on_round=stop)
    assert saved == [False, False, True]


def test_a_deadline_stops_between_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, data = tmp_path / "run.jsonl", load("digits", None)
    clock = iter(range(100))
    monkeypatch.setattr("benchmarks.federated.runner.time.time", lambda: next(clock))
    assert not run(SMALL, data, path, STAMP, deadline=3)  # asked at 0 and before every round
    assert len(lines_of(path)) == 1 + 2
    assert not run(SMALL, data, tmp_path / "late.jsonl", STAMP, deadline=3)
    assert not (tmp_path / "late.jsonl").exists()
    assert run(SMALL, data, path, STAMP)


def test_what_a_sudden_end_can_leave_behind(tmp_path: Path) -> None:
    """A line that is not whole, or a checkpoint whose lines were taken away by hand."""
    path, data = tmp_path / "run.jsonl", load("digits", None)
    assert run(SMALL, data, path, STAMP)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert not is_finished(path, SMALL)
    assert run(SMALL, data, path, STAMP)
    assert path.read_bytes() == whole

    path.unlink()
    path.with_suffix(".checkpoint").write_bytes(b"of something else")
    assert run(SMALL, data, path, STAMP)
    assert path.read_bytes() == whole


def test_another_configuration_is_not_overwritten(tmp_path: Path) -> None:
    path, data = tmp_path / "run.jsonl", load("digits", None)
    short = replace(SMALL, rounds=1)
    assert run(short, data, path, STAMP)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="of another configuration"):
        run(replace(short, lr=0.1), data, path, STAMP)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kill_all", [True, False])
def test_a_killed_command_goes_on(kill_all: bool, tmp_path: Path) -> None:
    """SIGKILL in the midst of a training, to all processes or to the first, which ends the rest."""
    words = ["--method", "codec:sparsity=0.9,up_feedback=True", "--clients", "3", "--rounds", "20"]
    words += ["--images", "300", "--test-images", "50", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks.federated", "run", *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    path = tmp_path / "codec_sparsity=0.9_up_feedback=True_seed=0.jsonl"

    process = subprocess.Popen(
        command, cwd=ROOT, env=env, start_new_session=True, stderr=subprocess.DEVNULL
    )
    while not (path.exists() and len(path.read_text().splitlines()) > CHECKPOINT_EVERY + 2):
        assert process.poll() is None
        time.sleep(0.01)
    (os.killpg if kill_all else os.kill)(process.pid, signal.SIGKILL)
    process.wait()
    n_lines = len(lines_of(path))
    time.sleep(2)
    assert len(lines_of(path)) <= n_lines + 1 < 21

    subprocess.run(command, cwd=ROOT, env=env, check=True, stderr=subprocess.DEVNULL)
    header, *lines = lines_of(path)
    config = RunConfig(**header["config"])
    assert config.rounds == len(lines) == 20
    assert run(config, load("digits", None), tmp_path / "whole.jsonl", STAMP)
    assert lines == lines_of(tmp_path / "whole.jsonl")[1:]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "cpu"], "no CIFAR-10 in"),
        (["--method", "eden", "--method", "codec:colour=1"], "codec colour=1: .*'colour'"),
        (["--method", "zip"], "method 'zip': must be one of"),
        pytest.param(
            ["--device", "cuda"],
            "--device cuda: PyTorch finds no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_wrong_words_give_a_message_and_train_nothing(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["federated", "run", *words, "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        main()
    assert not list(tmp_path.iterdir())


def test_method_from_words() -> None:
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
    labels = set()
    for spec in methods:
        method, options = parse_method(spec)
        initial = {name: np.zeros((8, 8), np.float32) for name in ("fc", "norm.running_var")}
        make(method, options, initial, base.clients, 0)
        labels.add(replace(base, method=method, options=options).file_name)
    assert len(labels) == len(methods)


def write_run(folder: Path, config: RunConfig, accuracy: list[float], up: int) -> None:
    command = f"run --suite cpu --seeds 0 1 --method {config.method} --jobs 2"
    header = {**STAMP, "command": command, "config": config.as_dict()}
    lines = [
        {"round": i, "accuracy": a, "up": up, "down": 2 * up} for i, a in enumerate(accuracy, 1)
    ]
    text = "".join(json.dumps(line) + "\n" for line in [header, *lines])
    (folder / config.file_name).write_text(text)


def test_report_reads_megabytes_to_an_accuracy(tmp_path: Path) -> None:
    folder = tmp_path / "trial"
    folder.mkdir()
    config = RunConfig(method="topk", rounds=4, clients=2)
    write_run(folder, config, [0.1, 0.4, 0.3, 0.6], up=3_000_000)
    write_run(folder, replace(config, seed=1), [0.2, 0.3, 0.5, 0.5], up=3_000_000)
    write_run(folder, replace(config, method="stc"), [0.1, 0.1, 0.2, 0.2], up=1_000_000)
    write_run(folder, replace(config, method="eden", rounds=9), [0.1, 0.1], up=1)  # not finished

    groups = read(folder)
    assert list(groups) == ["topk", "stc"]
    assert list(read(folder, ["s*"])) == ["stc"]
    first = groups["topk"][0]
    assert first.until(0.4) == {"rounds": 2, "up": 3, "down": 6, "total": 9}
    assert first.until(0.7) is None
    text = write(folder, [0.4, 0.55], "trial")
    assert "| topk | 2 of 2 | 2.5 ± 0.71 | 3.75 ± 1.1 | 7.5 ± 2.1 | 11.2 ± 3.2 | 90 |" in text
    assert "| topk | 1 of 2 | 4 | 6 | 12 | 18 | 144 |" in text
    assert "Never: stc." in text
    assert "- command: `run --suite cpu --jobs 2`\n" in text
    assert "eden" not in text
    assert (tmp_path / "trial.md").read_text() == text + "\n"
    for kind in ("round", "up", "down", "total"):
        assert (tmp_path / f"trial_{kind}.png").stat().st_size > 1000


def test_report_of_trainings_that_ran_out_of_time(
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
    assert "| topk (3 of 4 rounds) | 1 | 26.7 | 4.5 | 9 | 13.5 | - |" in text
    assert "| topk (3 of 4 rounds) | 1 of 1 | 2 | 3 | 6 | 9 | 72 |" in text
    assert "Not so far: topk (3 of 4 rounds)." in text
    assert "Never" not in text
    assert "stc" not in text


def test_report_shows_errors_where_runs_have_them(tmp_path: Path) -> None:
    folder = tmp_path / "trial"
    config = replace(
        SMALL, method="codec_select", options={"sparsity": 0.9, "feedback": True}, rounds=2
    )
    assert run(config, load("digits", None), folder / config.file_name, STAMP)
    lines = lines_of(folder / config.file_name)[1:]
    up, down = (np.mean([line[f"error_{name}"] for line in lines]) for name in ("up", "down"))
    write_run(folder, replace(config, method="stc", options={}), [0.1, 0.1], up=1)
    text = write(folder, [0.05], "trial")
    assert "| error up | error down | commit |" in text
    assert f"| {up:.3g} | {down:.3g} |" in text
    assert "| stc | 1 | 10.0 | 6.67e-07 | 1.33e-06 | 2e-06 |  |  | - |" in text


def test_report_does_not_mix_trainings(tmp_path: Path) -> None:
    config = RunConfig(method="topk", rounds=1, clients=2)
    write_run(tmp_path, config, [0.1], up=1)
    assert len(read(tmp_path)) == 1
    write_run(tmp_path, replace(config, method="stc", lr=0.5), [0.1], up=1)
    with pytest.raises(ValueError, match="different trainings"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match="no finished training"):
        read(tmp_path / "none")
