"""Images for training: CIFAR-10 in its common file formats, and scikit-learn's digits."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tempfile
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

HOW_TO_GET = """\
no CIFAR-10 in {path}. --data must name a folder that holds one of
  - cifar10_train.npz and cifar10_test.npz: keys jpeg (all files, one after another), offset, label;
  - cifar-10-batches-py, as torchvision.datasets.CIFAR10(folder, download=True) leaves it, or as
    unpacked from cifar-10-python.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html;
  - train/CLASS/*.png and test/CLASS/*.png (or .jpg), as for torchvision.datasets.ImageFolder.
Without --data the digits that ship with scikit-learn are used."""


@dataclass(frozen=True)
class Data:
    """Images are float32 ``(n, channels, height, width)``, normalised; labels int64 ``(n,)``."""

    images: NDArray[np.float32]
    labels: Labels
    test_images: NDArray[np.float32]
    test_labels: Labels
    n_classes: int

    def subset(self, n_images: int, n_test: int, seed: int) -> Data:
        """``n_images`` training images drawn by ``seed``; the same ``n_test`` ones for all seeds.

        0 means all.
        """
        train = np.random.default_rng([seed, 1]).permutation(len(self.labels))
        test = np.random.default_rng(1).permutation(len(self.test_labels))
        train, test = train[: n_images or None], test[: n_test or None]
        return replace(
            self,
            images=self.images[train],
            labels=self.labels[train],
            test_images=self.test_images[test],
            test_labels=self.test_labels[test],
        )


def load(name: str, folder: Path | None) -> Data:
    """Load "digits" or "cifar10".

    Raises:
        FileNotFoundError: ``folder`` does not hold CIFAR-10; the message says how to get it.
        ValueError: No data set has that name.
    """
    if name == "digits":
        return _digits()
    if name != "cifar10":
        raise ValueError(f"data {name!r}: must be digits or cifar10")
    if folder is None:
        raise FileNotFoundError(HOW_TO_GET.format(path="no folder: --data is missing"))
    if (folder / "cifar10_train.npz").exists():
        train, test = (_cached(folder / f"cifar10_{part}.npz") for part in ("train", "test"))
    elif (batches := folder / "cifar-10-batches-py").exists():
        train = _batches([batches / f"data_batch_{i}" for i in range(1, 6)])
        test = _batches([batches / "test_batch"])
    elif (folder / "train").is_dir() and (folder / "test").is_dir():
        train, test = (_image_folder(folder / part) for part in ("train", "test"))
    else:
        raise FileNotFoundError(HOW_TO_GET.format(path=folder))
    return _normalised(*train, *test)


def _normalised(images: Images, labels: Labels, test_images: Images, test_labels: Labels) -> Data:
    """Each channel with mean 0 and standard deviation 1 over the training images."""
    mean = images.mean(axis=(0, 2, 3), keepdims=True, dtype=np.float64).astype(np.float32)
    std = images.std(axis=(0, 2, 3), keepdims=True, dtype=np.float64).astype(np.float32)
    return Data(
        (images - mean) / std,
        labels,
        (test_images - mean) / std,
        test_labels,
        int(labels.max()) + 1,
    )


def _digits() -> Data:
    """1,797 images of 8 x 8; every fifth one of a fixed permutation is a test image."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = digits.images[order].astype(np.uint8)[:, None]
    labels = digits.target[order].astype(np.int64)
    test = np.arange(len(order)) % 5 == 0
    return _normalised(images[~test], labels[~test], images[test], labels[test])


def _decoded(files: list[bytes]) -> Images:
    """Decode image files to ``(n, 3, height, width)``."""
    from PIL import Image

    return np.stack(
        [
            np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).transpose(2, 0, 1)
            for file in files
        ]
    )


def _cached(path: Path) -> tuple[Images, Labels]:
    """Images and labels of one npz; decoded once and stored in the user's cache."""
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode())
    root = os.environ.get("XDG_CACHE_HOME") or tempfile.gettempdir()
    cache = Path(root) / "resfed_benchmarks" / f"{key.hexdigest()[:16]}.npz"
    if not cache.exists():
        with np.load(path) as file:
            jpeg, offset, label = file["jpeg"].tobytes(), file["offset"], file["label"]
        files = [jpeg[a:b] for a, b in pairwise(offset)]
        cache.parent.mkdir(parents=True, exist_ok=True)
        unfinished = cache.with_suffix(f".{os.getpid()}.npz")
        np.savez(unfinished, images=_decoded(files), labels=label.astype(np.int64))
        unfinished.replace(cache)
    with np.load(cache) as file:
        return file["images"], file["labels"]


def _batches(paths: list[Path]) -> tuple[Images, Labels]:
    """The pickled batches of the original distribution."""
    images, labels = [], []
    for path in paths:
        with path.open("rb") as file:
            batch: dict[bytes, Any] = pickle.load(file, encoding="bytes")
        images.append(np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32))
        labels.append(np.asarray(batch[b"labels"], np.int64))
    return np.concatenate(images), np.concatenate(labels)


def _image_folder(folder: Path) -> tuple[Images, Labels]:
    """One folder for each class, in alphabetical order."""
    files, labels = [], []
    for label, directory in enumerate(sorted(p for p in folder.iterdir() if p.is_dir())):
        for path in sorted(directory.iterdir()):
            files.append(path.read_bytes())
            labels.append(label)
    return _decoded(files), np.array(labels, np.int64)
