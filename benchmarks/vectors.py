"""Options for sharing the budget between vectors (biases, norms, statistics) and matrices.

    python -m benchmarks.vectors --snapshots fedavg_cnn.npz --images cifar10_test.npz

For each option, encodes four client updates of real snapshots of the paper's CNN, which has
BatchNorm (up; means of the four), and a chain of four broadcasts in closed loop (down: each is
encoded against the previous recovered model). Compares payload bytes, the relative squared error of
matrices and vectors, and agreement: the share of test images on which the recovered network in
evaluation mode (with its running statistics) predicts the same class as the original.

Images: ``jpeg`` (all files, one after another), ``offset`` (n + 1), 32x32 RGB.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from tqdm import tqdm

import resfed_codec as rfc
from benchmarks.common import (
    Model,
    is_matrix,
    load_snapshots,
    relative_squared_error,
    write_results,
)
from benchmarks.federated.methods.codec import vector_share
from resfed_codec.codec import update as codec

N_IMAGES = 1000
SHARES = (1, 3, 10, 30, 100)


def load_images(path: Path) -> torch.Tensor:
    """(N_IMAGES, 3, 32, 32), normalized per channel."""
    with np.load(path) as data:
        jpeg, offset = data["jpeg"], data["offset"]
    chosen = np.random.default_rng(0).permutation(len(offset) - 1)[:N_IMAGES]
    images = [
        np.asarray(Image.open(io.BytesIO(jpeg[offset[i] : offset[i + 1]].tobytes())))
        for i in chosen
    ]
    x = np.stack(images).transpose(0, 3, 1, 2).astype(np.float32) / 255
    mean = np.array([0.4914, 0.4822, 0.4465], np.float32)[:, None, None]
    std = np.array([0.2470, 0.2435, 0.2616], np.float32)[:, None, None]
    return torch.from_numpy((x - mean) / std)


def predict(model: Model, x: torch.Tensor) -> torch.Tensor:
    """Class of each image, in evaluation mode.

    Convolution, BatchNorm, ReLU; pooling after convolutions 1, 3 and 4. The snapshots do not
    include the architecture. With this one, activations have the mean and variance of the running
    statistics, except at the first BatchNorm.
    """
    p = {name: torch.from_numpy(value) for name, value in model.items()}
    for i in range(5):
        x = functional.conv2d(x, p[f"conv{i}.weight"], p.get(f"conv{i}.bias"), padding=1)
        if i > 0:
            running = p[f"norm{i}.running_mean"], p[f"norm{i}.running_var"].clamp(min=0)
            x = functional.batch_norm(x, *running, p[f"norm{i}.weight"], p[f"norm{i}.bias"])
        x = functional.relu(x)
        if i in (1, 3, 4):
            x = functional.max_pool2d(x, 2)
    return (x.flatten(1) @ p["fc.weight"].T).argmax(1)


def send(way: str, state: Model, reference: Model, sparsity: float) -> tuple[int, Model]:
    """Bytes of the payload, and the recovered model."""
    if way == "one top-k":  # unscaled vectors among the matrices: the codec treats them as matrices
        state = {n: np.atleast_2d(v) if v.dtype.kind == "f" else v for n, v in state.items()}
        flat = {n: np.atleast_2d(v) if v.dtype.kind == "f" else v for n, v in reference.items()}
        payload = rfc.encode(state, flat, sparsity=sparsity, dense=())
        recovered = rfc.decode(payload, flat)
        return len(payload), {n: v.reshape(reference[n].shape) for n, v in recovered.items()}
    options: dict[str, Any] = {"sparsity": sparsity, "dense": ()}
    if way == "vectors lossless":
        options["exclude"] = ("*.bias", "norm*")
    elif way == "statistics lossless":
        options["exclude"] = ("*.running_*",)
    share = int(way.removeprefix("share ")) if way.startswith("share ") else codec.VECTOR_SHARE
    with vector_share(share):
        payload = rfc.encode(state, reference, **options)
        return len(payload), rfc.decode(payload, reference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--snapshots", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--sparsities", type=float, nargs="*", default=[0.95, 0.99, 0.9975])
    args = parser.parse_args()
    snapshots, images = load_snapshots(args.snapshots), load_images(args.images)
    ways = [*(f"share {s}" for s in SHARES), "one top-k", "statistics lossless", "vectors lossless"]
    floats = [n for n, v in snapshots["g4"].items() if v.dtype.kind == "f"]
    matrices = [n for n in floats if is_matrix(snapshots["g4"][n])]
    vectors = [n for n in floats if n not in matrices]
    rounds = range(5, 9)
    truth = {n: predict(snapshots[n], images) for n in ("g8", *(f"l0_{t}" for t in rounds))}

    def agreement(model: Model, name: str) -> float:
        return 100 * float((predict(model, images) == truth[name]).float().mean())

    rows: list[dict[str, Any]] = []
    for sparsity in args.sparsities:
        for way in tqdm(ways, desc=f"sparsity {sparsity}"):
            ups = []
            down, down_bytes = snapshots["g4"], 0
            for t in rounds:
                state, reference = snapshots[f"l0_{t}"], snapshots[f"g{t - 1}"]
                n_bytes, up = send(way, state, reference, sparsity)
                errors = [
                    relative_squared_error(state, reference, up, names)
                    for names in (matrices, vectors)
                ]
                ups.append([n_bytes, *errors, agreement(up, f"l0_{t}")])
                n_bytes, down = send(way, snapshots[f"g{t}"], down, sparsity)
                down_bytes += n_bytes
            up_bytes, up_matrices, up_vectors, up_agreement = np.mean(ups, axis=0).tolist()
            rows.append({
                "sparsity": sparsity,
                "vectors": way,
                "up bytes": round(up_bytes),
                "up error, matrices": up_matrices,
                "up error, vectors": up_vectors,
                "up agreement %": up_agreement,
                "down bytes, 4 rounds": down_bytes,
                "down agreement %": agreement(down, "g8"),
            })  # fmt: skip
    nothing_up = np.mean([agreement(snapshots[f"g{t - 1}"], f"l0_{t}") for t in rounds])
    nothing_down = agreement(snapshots["g4"], "g8")
    note = (
        f"With nothing sent at all the agreement is {nothing_up:.1f} % up and {nothing_down:.1f} %"
        f" down. {N_IMAGES} CIFAR-10 test images, from JPEG files."
    )
    print(write_results("vectors", "How vectors share the budget", rows, note))


if __name__ == "__main__":
    main()
