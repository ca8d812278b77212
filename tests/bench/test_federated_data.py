"""Data, splits and networks of benchmarks/federated."""

from __future__ import annotations

import io
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("PIL")

import torch
from benchmarks.federated.data import load
from benchmarks.federated.models import build
from benchmarks.federated.splits import split
from benchmarks.federated.train import Trainer
from PIL import Image

LABELS = np.repeat(np.arange(10), 60)


@pytest.fixture
def pixels(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (12, 3, 32, 32)).astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "png")
    return file.getvalue()


def write_npz(folder: Path, pixels: np.ndarray) -> None:
    files = [png(image) for image in pixels]
    content = {
        "jpeg": np.frombuffer(b"".join(files), np.uint8),
        "offset": np.cumsum([0, *map(len, files)]),
        "label": np.arange(12, dtype=np.uint8) % 4,
    }
    for part in ("train", "test"):
        np.savez(folder / f"cifar10_{part}.npz", **content)


def write_batches(folder: Path, pixels: np.ndarray) -> None:
    batches = folder / "cifar-10-batches-py"
    batches.mkdir()
    labels = (np.arange(12) % 4).tolist()
    cuts = [0, 2, 4, 6, 8, 12]
    for i, (a, b) in enumerate(pairwise(cuts), start=1):
        batch = {b"data": pixels[a:b].reshape(b - a, -1), b"labels": labels[a:b]}
        (batches / f"data_batch_{i}").write_bytes(pickle.dumps(batch))
    whole = {b"data": pixels.reshape(12, -1), b"labels": labels}
    (batches / "test_batch").write_bytes(pickle.dumps(whole))


def write_folder(folder: Path, pixels: np.ndarray) -> None:
    for part in ("train", "test"):
        for i, image in enumerate(pixels):
            directory = folder / part / f"class{i % 4}"
            directory.mkdir(parents=True, exist_ok=True)
            (directory / f"{i:02}.png").write_bytes(png(image))


@pytest.mark.parametrize("write", [write_npz, write_batches, write_folder])
def test_three_forms_of_the_same_images(
    write, pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write(tmp_path, pixels)
    for _ in range(2):  # the second load reads the cache
        data = load("cifar10", tmp_path)
        order = np.argsort(np.arange(12) % 4, kind="stable")
        mine = np.argsort(data.labels, kind="stable")
        assert data.labels[mine].tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
        wanted = pixels[order].astype(np.float64)
        wanted = (wanted - pixels.mean((0, 2, 3), keepdims=True)) / pixels.std(
            (0, 2, 3), keepdims=True
        )
        np.testing.assert_allclose(data.images[mine], wanted, atol=1e-5)
        np.testing.assert_array_equal(data.images, data.test_images)


def test_missing_data_raises_with_instructions(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cifar-10-python\.tar\.gz"):
        load("cifar10", tmp_path)
    with pytest.raises(FileNotFoundError, match="--data is missing"):
        load("cifar10", None)
    with pytest.raises(ValueError, match="must be digits or cifar10"):
        load("mnist", None)


def test_subsets_differ_by_seed_but_not_the_test() -> None:
    data = load("digits", None)
    a, again, b = data.subset(200, 50, 0), data.subset(200, 50, 0), data.subset(200, 50, 1)
    assert np.array_equal(a.images, again.images)
    assert not np.array_equal(a.images, b.images)
    assert np.array_equal(a.test_images, b.test_images)
    assert (len(a.labels), len(a.test_labels)) == (200, 50)
    assert len(data.subset(0, 0, 0).labels) == len(data.labels)


@pytest.mark.parametrize("spec", ["classes:4", "classes:10", "dirichlet:0.3", "iid"])
def test_splits_use_every_image_once(spec: str) -> None:
    shards = split(spec, LABELS, 10, seed=3)
    assert sorted(np.concatenate(shards).tolist()) == list(range(len(LABELS)))
    assert all(
        np.array_equal(x, y) for x, y in zip(shards, split(spec, LABELS, 10, seed=3), strict=True)
    )
    other = split(spec, LABELS, 10, seed=4)
    assert any(not np.array_equal(x, y) for x, y in zip(shards, other, strict=True))


def test_classes_per_client() -> None:
    for shard in split("classes:4", LABELS, 10, 0):
        assert len(np.unique(LABELS[shard])) == 4
        assert len(shard) == 60


def test_alpha_of_dirichlet_sets_the_skew_of_clients() -> None:
    def spread(alpha: float) -> float:
        shards = split(f"dirichlet:{alpha}", LABELS, 10, 0)
        return float(np.std([np.bincount(LABELS[s], minlength=10) for s in shards]))

    assert spread(0.1) > 2 * spread(1) > 4 * spread(100)


@pytest.mark.parametrize("spec", ["classes", "classes:0", "classes:11", "dirichlet:0", "half"])
def test_invalid_splits(spec: str) -> None:
    with pytest.raises(ValueError, match=r"split|classes:|alpha"):
        split(spec, LABELS, 10, 0)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("resfed_cnn", (3, 32, 32), 1_020_160),
        ("lenet5", (3, 32, 32), 62_006),
        ("groupnorm_cnn", (3, 32, 32), 157_106),
        ("batchnorm_cnn", (3, 32, 32), 157_106),
        ("tiny_cnn", (1, 8, 8), 9_178),
    ],
)
def test_networks(name: str, shape: tuple[int, int, int], expected: int) -> None:
    model = build(name, shape, 10, seed=0)
    assert sum(p.numel() for p in model.parameters()) == expected
    assert model(torch.zeros(2, *shape)).shape == (2, 10)
    same, other = (build(name, shape, 10, seed).state_dict() for seed in (0, 1))
    first = model.state_dict()
    assert all(torch.equal(first[k], same[k]) for k in same if "running" not in k)
    assert any(not torch.equal(first[k], other[k]) for k in other)
    assert not any("num_batches_tracked" in key for key in first)


def test_training_is_the_same_each_time_and_learns() -> None:
    data = load("digits", None).subset(300, 100, 0)
    torch.set_num_threads(1)
    trainer = Trainer(build("tiny_cnn", (1, 8, 8), 10, 0), data, lr=0.05, batch=16, epochs=3)
    first = trainer.state()
    shard = np.arange(300)
    trained = [trainer.train(first, shard, np.random.default_rng(0)) for _ in range(2)]
    other = trainer.train(first, shard, np.random.default_rng(1))
    assert all(np.array_equal(trained[0][k], trained[1][k]) for k in first)
    assert any(not np.array_equal(trained[0][k], other[k]) for k in first)
    assert trainer.accuracy(first) < 0.3 < 0.7 < trainer.accuracy(trained[0])


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_training_does_not_depend_on_the_number_of_threads(precision: str) -> None:
    data = load("digits", None).subset(600, 300, 0)
    torch.set_num_threads(1)
    shards = np.array_split(np.arange(600), 5)
    results = []
    for threads in (1, 3):
        model = build("batchnorm_cnn", (1, 8, 8), 10, 0)
        trainer = Trainer(model, data, batch=32, precision=precision, threads=threads)
        rngs = [np.random.default_rng(i) for i in range(5)]
        trained = list(trainer.train_all([trainer.state()] * 5, shards, rngs))
        results.append((trained, [trainer.accuracy(state) for state in trained]))
    (one, right), (several, also_right) = results
    assert right == also_right
    for i, rng in enumerate(map(np.random.default_rng, range(5))):
        alone = trainer.train(trainer.state(), shards[i], rng)
        for states in (one, several):
            assert all(np.array_equal(states[i][name], alone[name]) for name in alone)


def test_bf16_computes_in_bfloat16_and_keeps_float32_parameters() -> None:
    data = load("digits", None).subset(300, 100, 0)
    torch.set_num_threads(1)
    trained, accuracies = {}, {}
    for precision in ("float32", "bf16"):
        model = build("batchnorm_cnn", (1, 8, 8), 10, 0)
        trainer = Trainer(model, data, lr=0.05, batch=16, epochs=3, precision=precision)
        state = trainer.train(trainer.state(), np.arange(300), np.random.default_rng(0))
        trained[precision], accuracies[precision] = state, trainer.accuracy(state)
    exact, rough = trained["float32"], trained["bf16"]
    for name, value in exact.items():
        assert rough[name].dtype == np.float32
        assert rough[name].flags.c_contiguous
        assert rough[name].shape == value.shape
        assert not np.array_equal(rough[name], value)
        # Parameters and statistics are not rounded to bfloat16.
        assert (rough[name].view(np.uint32) & 0xFFFF).any()
    assert accuracies["float32"] > 0.7
    assert abs(accuracies["bf16"] - accuracies["float32"]) < 0.1
    with pytest.raises(ValueError, match="precision 'fp8': must be one of float32, bf16"):
        Trainer(build("tiny_cnn", (1, 8, 8), 10, 0), data, precision="fp8")


def test_recomputed_statistics_are_those_of_the_images() -> None:
    data = load("digits", None).subset(400, 100, 0)
    torch.set_num_threads(1)
    model = build("batchnorm_cnn", (1, 8, 8), 10, 0)
    trainer = Trainer(model, data, lr=0.05, batch=16, epochs=3)
    state = trainer.train(trainer.state(), np.arange(400), np.random.default_rng(0))
    spoilt = {name: v * (100 if "running" in name else 1) for name, v in state.items()}
    mended = trainer.recomputed(spoilt, np.arange(trainer.n_images))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(torch.from_numpy(state[name]))
        first = model.conv0(torch.from_numpy(data.images)).numpy()  # one batch: 400 images
    np.testing.assert_allclose(mended["norm0.running_mean"], first.mean((0, 2, 3)), atol=1e-5)
    variance = first.var((0, 2, 3), ddof=1)
    np.testing.assert_allclose(mended["norm0.running_var"], variance, rtol=1e-4)
    assert all(np.array_equal(mended[name], state[name]) for name in state if "running" not in name)
    assert trainer.accuracy(spoilt) < 0.5 < trainer.accuracy(mended)
    again = trainer.train(trainer.state(), np.arange(400), np.random.default_rng(0))
    assert all(np.array_equal(again[name], state[name]) for name in state)  # same momentum
