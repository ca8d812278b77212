"""The command ``resfed-codec bench`` and its synthetic model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import resfed_codec as rfc
from models import cnn_pair
from resfed_codec.cli import bench
from resfed_codec.cli.main import main

TASKS = ["copy", "encode", "decode, new arrays", "decode, in place"]


@pytest.mark.parametrize("like", ["transformer", "cnn"])
def test_synthetic_update_is_made_of_whole_rows(like: bench.Like) -> None:
    state, reference = bench.synthetic_update(1_000_000, like=like)
    size = {"transformer": 977 * 1024, "cnn": 868 * 1152}[like]
    assert sum(value.size for value in state.values()) == size
    assert list(state) == list(reference)
    assert {value.dtype for value in state.values()} == {np.dtype(np.float32)}
    again, _ = bench.synthetic_update(1_000_000, like=like)
    assert all(np.array_equal(state[name], again[name]) for name in state)
    other, _ = bench.synthetic_update(1_000_000, seed=1, like=like)
    assert not any(np.array_equal(state[name], other[name]) for name in state)


@pytest.mark.parametrize(("n_elems", "shapes"), [
    (1, [(1, 1)]),
    (500, [(1, 500)]),
    (1153, [(1, 1152)]),
    (4097 * 1152, [(4096, 1152), (1, 1152)]),
])  # fmt: skip
def test_synthetic_update_of_any_size(n_elems: int, shapes: list[tuple[int, int]]) -> None:
    state, reference = bench.synthetic_update(n_elems, like="cnn")
    assert [value.shape for value in state.values()] == shapes
    assert [value.shape for value in reference.values()] == shapes


def test_synthetic_update_of_an_unknown_kind() -> None:
    with pytest.raises(ValueError, match="like='mlp': must be one of transformer, cnn"):
        bench.synthetic_update(10, like="mlp")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("like", "sparsity", "directly", "same_sign", "bits"),
    [
        ("transformer", 0.95, 0.46, 0.5, 4.4),
        ("transformer", 0.99, 0.36, 0.5, 4.9),
        ("cnn", 0.95, 0.82, 0.995, 1.8),
        ("cnn", 0.99, 0.78, 0.995, 1.9),
    ],
)
def test_synthetic_update_clusters_as_its_docstring_says(
    like: bench.Like, sparsity: float, directly: float, same_sign: float, bits: float
) -> None:
    state, reference = bench.synthetic_update(1_000_000, like=like)
    payload = rfc.encode(state, reference, sparsity=sparsity)
    decoded = rfc.decode(payload, reference)
    sent = np.concatenate([(decoded[n] - reference[n]).ravel() for n in state])
    index = np.flatnonzero(sent)
    gaps, same = np.diff(index), np.diff(np.sign(sent[index])) == 0
    assert np.mean(gaps == 1) == pytest.approx(directly, abs=0.01)
    assert same[gaps <= 2].mean() == pytest.approx(same_sign, abs=0.01)
    assert 8 * len(payload) / index.size == pytest.approx(bits, abs=0.1)


def test_measure(rng: np.random.Generator) -> None:
    state, reference = cnn_pair(rng)
    before = {name: value.copy() for name, value in reference.items()}
    report = bench.measure(state, reference, sparsity=0.9, turns=3)
    assert [t.task for t in report.timings if t.task != "torch.sub"] == TASKS
    for t in report.timings:
        assert 0 < t.least_ms <= t.median_ms <= t.greatest_ms
        assert t.ns_per_parameter == pytest.approx(1e6 * t.median_ms / report.n_parameters)
    assert report.timings[0].times_copy == 1
    assert report.n_parameters == sum(value.size for value in state.values())
    assert report.payload_bytes == len(rfc.encode(state, reference, sparsity=0.9))
    assert all(np.array_equal(before[name], reference[name]) for name in before)
    text = str(report)
    assert all(t.task in text for t in report.timings)
    assert f"{report.payload_bytes:,} bytes" in text


def test_torch_sub_is_timed_only_for_float32(rng: np.random.Generator) -> None:
    pytest.importorskip("torch")
    floats = {"w": rng.standard_normal((20, 30)).astype(np.float32)}
    doubles = {"w": floats["w"].astype(np.float64)}
    for model, expected in ((floats, True), (doubles, False)):
        report = bench.measure(model, model, turns=1)
        assert ("torch.sub" in [t.task for t in report.timings]) == expected


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    line = "bench --elements 3000 --sparsity 0.9 --turns 2 --threads 1"
    assert main(line.split()) == 0
    out = capsys.readouterr().out
    assert out.startswith("3,072 parameters, 12,288 bytes; sparsity 0.9, 308 nonzeros\n")
    assert "1 thread, 2 turns" in out
    assert main([*line.split(), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["n_parameters"] == 3072
    assert report["turns"] == 2
    assert [t["task"] for t in report["timings"] if t["task"] != "torch.sub"] == TASKS


def test_command_on_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    state, reference = bench.synthetic_update(5000)
    new, old = tmp_path / "new.safetensors", tmp_path / "old.safetensors"
    numpy.save_file(state, new)
    numpy.save_file(reference, old)
    assert main(["bench", "--pair", f"{new}", f"{old}", "--turns", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["n_parameters"] == 5120
    assert report["payload_bytes"] == len(rfc.encode(state, reference, sparsity=0.99))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("bench --elements 0", "n_elems=0: must be at least 1"),
        ("bench --elements 10 --like cnn --turns 0", "turns=0: must be at least 1"),
        ("bench --elements 10 --sparsity 2", "sparsity=2.0: must lie in [0, 1]"),
    ],
)
def test_command_fails(line: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 1
    assert reason in capsys.readouterr().err
