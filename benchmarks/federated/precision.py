"""Images a second of one processor core, float32 against bfloat16: python -m ...precision."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from benchmarks.common import write_results
from benchmarks.federated.__main__ import FOLDER
from benchmarks.federated.data import Data
from benchmarks.federated.models import build
from benchmarks.federated.train import PRECISIONS, Trainer

BATCH = 64
N_IMAGES = 10 * BATCH
REPEATS = 5


def main() -> None:
    """Train on noise of CIFAR-10's shape with each precision in turn, and report the best times.

    Measures processor time, not wall-clock time, to reduce the influence of other processes.
    """
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((N_IMAGES, 3, 32, 32)).astype(np.float32)
    labels = rng.integers(0, 10, N_IMAGES)
    data = Data(images, labels, images, labels, 10)
    trainers = {
        precision: Trainer(build("resfed_cnn", (3, 32, 32), 10, 0), data, precision=precision)
        for precision in PRECISIONS
    }
    best = dict.fromkeys(PRECISIONS, 0.0)
    for _ in range(1 + REPEATS):
        for precision, trainer in trainers.items():
            begin = time.thread_time()
            trainer.train(trainer.state(), np.arange(N_IMAGES), rng)
            speed = N_IMAGES / (time.thread_time() - begin)
            best[precision] = max(best[precision], speed)
    rows: list[dict[str, Any]] = [
        {
            "precision": precision,
            "images a second": round(speed),
            "of float32": speed / best["float32"],
        }
        for precision, speed in best.items()
    ]
    note = f"The paper's CNN, batches of {BATCH}, one thread, images a second of processor time."
    print(write_results("precision", "Training in bfloat16", rows, note, FOLDER))


if __name__ == "__main__":
    main()
