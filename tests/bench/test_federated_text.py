"""Language models of benchmarks/federated: text, networks, clients and the report of losses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from marks import slow_except

pytest.importorskip("torch")

import torch
from benchmarks.federated import language
from benchmarks.federated.clients import make_clients
from benchmarks.federated.config import RunConfig, parse_method
from benchmarks.federated.curves import read
from benchmarks.federated.data import load
from benchmarks.federated.gpt import add_adapters, build_gpt
from benchmarks.federated.language import base_model, rate_at
from benchmarks.federated.report import write
from benchmarks.federated.runner import run
from benchmarks.federated.runs import FILE, append, read_runs
from benchmarks.federated.suites import SUITES
from benchmarks.federated.text import Text, load_text

STAMP = dict.fromkeys(("machine", "versions", "command", "commit", "date"), "-")
SMALL = replace(
    SUITES["diloco"][0],
    method="diloco",
    model="gpt_tiny",
    clients=3,
    rounds=6,
    images=60_000,
    test_images=4_000,
    steps=5,
    lr=1e-2,
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def python() -> Text:
    return load_text("python")


def test_text_is_python_and_the_same_each_time(python: Text) -> None:
    again = load_text("python")
    assert again.digest == python.digest
    assert python.train.dtype == np.uint8
    share = len(python.test) / (len(python.train) + len(python.test))
    assert 0.04 < share < 0.1
    assert python.train.tobytes().count(b"\nimport ") > 100
    topics = load_text("topics")
    assert topics.digest != python.digest
    assert b"expression" in topics.train.tobytes()
    part = python.subset(100, 50)
    assert np.array_equal(part.train, python.train[:100])
    assert len(part.test) == 50
    assert part.digest != python.digest


def test_gpt_is_causal() -> None:
    model = build_gpt("gpt_tiny", 0)
    tokens = torch.randint(0, 256, (2, 20), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 12] = 255 - changed[:, 12]
    with torch.no_grad():
        a, b = model(tokens), model(changed)
    assert a.shape == (2, 20, 256)
    assert torch.allclose(a[:, :12], b[:, :12], atol=1e-5)
    assert not torch.allclose(a[:, 12:], b[:, 12:], atol=1e-3)
    with pytest.raises(ValueError, match="model 'huge': must be one of gpt"):
        build_gpt("huge", 0)


def test_the_large_gpt_has_5_to_20_million_parameters() -> None:
    assert 5e6 < sum(p.numel() for p in build_gpt("gpt", 0).parameters()) < 20e6


def test_adapters_start_at_zero_and_only_they_are_trained() -> None:
    model = build_gpt("gpt_tiny", 0)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        before = model(tokens)
        add_adapters(model, 1)
        assert torch.equal(model(tokens), before)
    trained = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    assert trained["blocks.0.qkv.a"] == (16, 32)
    assert trained["blocks.1.down.b"] == (32, 16)
    assert len(trained) == 2 * 2 * 4


def test_learning_rate_rises_and_falls() -> None:
    rates = [rate_at(i, 200) for i in range(200)]
    top = int(np.argmax(rates))
    assert max(rates) == 1
    assert 8 <= top <= 12
    assert rates[0] == pytest.approx(0.1)
    assert np.all(np.diff(rates[: top + 1]) >= 0)
    assert np.all(np.diff(rates[top + 1 :]) < 0)
    assert 0.1 <= rates[-1] < 0.11


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_kept"])
def test_clients_do_not_depend_on_threads(python: Text, optimizer: str) -> None:
    config = replace(SMALL, optimizer=optimizer)
    results = []
    for threads in (1, 3):
        clients = make_clients(config, python, "cpu", threads)
        held = [clients.state()] * 3
        for number in (1, 2):
            held = list(clients.train(number, held))
        results.append((held, clients.test(held[0])))
    (one, loss), (three, also) = results
    assert loss == also
    for a, b in zip(one, three, strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not all(np.array_equal(one[0][name], one[1][name]) for name in one[0])


def test_kept_optimizer_state_equals_one_long_training(python: Text) -> None:
    """Two rounds of a single client equal the same number of uninterrupted AdamW steps."""
    config = replace(SMALL, clients=1, rounds=2, precision="float32")
    clients = make_clients(config, python, "cpu", 1)
    state = clients.state()
    for number in (1, 2):
        (state,) = clients.train(number, [state])

    model = build_gpt("gpt_tiny", config.seed)
    text = python.subset(config.images, 0).train
    batches, rates = [], []
    for number in (1, 2):
        rng = np.random.default_rng([config.seed, number, 0])
        for i in range(config.steps):
            batches.append(language.draw(text, config.batch, 32, rng))
            rates.append(config.lr * rate_at((number - 1) * config.steps + i, 10))
    language._adamw(model, iter(batches), rates, bf16=False)
    for name, value in model.state_dict().items():
        np.testing.assert_allclose(state[name], value.numpy(), atol=1e-6)

    forgetful = make_clients(replace(config, optimizer="adamw"), python, "cpu", 1)
    other = forgetful.state()
    for number in (1, 2):
        (other,) = forgetful.train(number, [other])
    assert not np.allclose(other["token.weight"], state["token.weight"], atol=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"optimizer": "sgd"}, "the optimizer must be one of"),
        ({"steps": 0}, "steps above 0"),
        ({"split": "iid"}, "split 'iid': must be parts"),
        ({"precision": "fp8"}, "precision 'fp8'"),
        ({"model": "tiny_cnn"}, "model 'tiny_cnn': must be one of gpt"),
    ],
)
def test_invalid_configurations(python: Text, words: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_clients(replace(SMALL, **words), python, "cpu", 1)


def test_images_support_neither_adamw_nor_steps() -> None:
    data = load("digits", None)
    for words in ({"steps": 3}, {"optimizer": "adamw"}):
        with pytest.raises(ValueError, match="images: the optimizer must be sgd"):
            make_clients(RunConfig(**words), data, "cpu", 1)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize(
    "method",
    slow_except(["codec_diloco"], ["diloco", "sparseloco", "codec_gathered", "codec_diloco"]),
)
def test_a_run_learns_and_resumes(method: str, python: Text, tmp_path: Path) -> None:
    """Including the optimizer state that workers keep."""
    config = replace(SMALL, method=method)
    assert run(config, python, tmp_path / "whole", STAMP)

    def stop(line: dict) -> None:
        if line["round"] == 6:
            raise StoppedError

    with pytest.raises(StoppedError):
        run(config, python, tmp_path / "torn", STAMP, on_round=stop)
    assert (tmp_path / "torn" / f"{config.id}.checkpoint").exists()
    assert run(config, python, tmp_path / "torn", STAMP)
    torn, whole = ((tmp_path / name / FILE).read_bytes() for name in ("torn", "whole"))
    assert torn == whole
    (found,) = read_runs(tmp_path / "whole").values()
    lines = found.lines
    assert found.header["text"] == python.subset(60_000, 4_000).digest
    losses = [line["loss"] for line in lines]
    assert min(losses) < np.log(256) - 0.5
    model = 4 * 3 * sum(p.numel() for p in build_gpt("gpt_tiny", 0).parameters())
    assert (lines[0]["up"] == model) == (method == "diloco")
    assert all(line["up"] < model / 50 for line in lines) or method == "diloco"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        base_model("gpt_tiny", "bf16")
        yield folder


@pytest.mark.slow
def test_the_base_is_trained_once_in_each_precision(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cached,) = base.glob("resfed_benchmarks/*.npz")
    before = cached.stat().st_mtime_ns

    def never(*args: object, **options: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(language, "_adamw", never)
    first, second = (base_model("gpt_tiny", "bf16") for _ in range(2))
    assert cached.stat().st_mtime_ns == before
    untrained = build_gpt("gpt_tiny", 0).state_dict()
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
        assert not torch.equal(value, untrained[name]) or "norm" in name
    with pytest.raises(AssertionError, match="trained again"):
        base_model("gpt_tiny", "float32")


@pytest.mark.parametrize("spec", slow_except(["flasc"], SUITES["lora"][1]))
def test_only_adapters_are_sent(spec: str, base: Path, tmp_path: Path) -> None:
    method, options = parse_method(spec)
    config = replace(SUITES["lora"][0], method=method, options=options, model="gpt_tiny_lora")
    config = replace(config, clients=3, rounds=3, images=40_000, test_images=4_000, lr=1e-2)
    assert run(config, load_text("topics"), tmp_path, STAMP)
    (found,) = read_runs(tmp_path).values()
    lines = found.lines
    assert len(found.header["base"]) == 16
    n = 2 * 16 * (32 + 96 + 32 + 32 + 32 + 128 + 128 + 32)
    assert all(0 < line[way] <= 3 * 4 * n for line in lines for way in ("up", "down"))
    assert (lines[0]["up"] == 3 * 4 * n) == (method == "uncompressed")
    assert all(0 < line["loss"] < 6 for line in lines)
    if method == "uncompressed":
        clients = make_clients(config, load_text("topics"), "cpu", 1)
        assert lines[-1]["loss"] < clients.test(clients.state())["loss"]


def write_run(folder: Path, method: str, rows: list[dict]) -> None:
    config = replace(SMALL, method=method, rounds=len(rows), clients=2)
    lines = [{"round": i, **row} for i, row in enumerate(rows, 1)]
    for line in [{**STAMP, "config": config.as_dict()}, *lines]:
        append(folder, config.id, line)


def test_report_of_losses(tmp_path: Path) -> None:
    folder = tmp_path / "trial"
    folder.mkdir()
    size = {"up": 2_000_000, "down": 14_000_000}
    write_run(folder, "diloco", [{"loss": loss, **size} for loss in (5, 3, 2)])
    packed = {"up_packed": 3_000_000}
    write_run(folder, "sparseloco", [{"loss": loss, **size, **packed} for loss in (5, 4, 2.5)])
    groups = read(folder)
    assert list(groups) == ["DiLoCo", "SparseLoCo", "SparseLoCo, as packed"]
    assert groups["SparseLoCo, as packed"][0].until(4) == {
        "rounds": 2,
        "up": 3,
        "down": 21,
        "total": 24,
    }
    text = write(folder, [3])
    assert "# Loss against bytes: trial" in text
    assert "| DiLoCo | 1 of 1 | 2 | 2 | 14 | 16 | 128 |" in text
    assert "| SparseLoCo, as packed | 1 of 1 | 3 | 4.5 | 31.5 | 36 | 288 |" in text
    assert "| DiLoCo | 1 | 3.3333 | 3 | 21 | 24 | - |" in text


def test_report_shows_both_losses(tmp_path: Path) -> None:
    folder = tmp_path / "trial"
    folder.mkdir()
    both = {"accuracy": 0.1, "accuracy_recomputed": 0.5, "up": 2_000_000, "down": 2_000_000}
    write_run(folder, "stc", [both, {**both, "accuracy": 0.3}])
    text = write(folder, [0.3])
    assert "| STC | 1 of 1 | 2 | 2 | 2 | 4 | 32 |" in text
    assert "| STC, statistics recomputed | 1 of 1 | 1 | 1 | 1 | 2 | 16 |" in text
    assert "| STC, statistics recomputed | 1 | 50.0 |" in text
