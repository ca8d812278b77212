"""Local training on two workers that exchange payloads with torch.distributed.

    python examples/torch_distributed/train.py

Needs ``pip install 'resfed-codec[torch]' scikit-learn``. Every worker trains from the common model,
encodes the result against it, and averages the payloads of all workers. The aggregator adds
exactly, so all workers get the same model, bit for bit, in any order of payloads. There is no
server.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from typing import Any

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import Tensor, nn

import resfed_codec as rfc

N_WORKERS, N_ROUNDS = 2, 5
log = logging.getLogger(__name__)


def make_model() -> nn.Sequential:
    """1,005,240 parameters; the same on every worker."""
    torch.manual_seed(0)
    layers = nn.Linear(64, 1000), nn.ReLU(), nn.Linear(1000, 930), nn.ReLU(), nn.Linear(930, 10)
    return nn.Sequential(*layers)


def load_data(worker: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A worker's images ``(n, 64)`` and labels ``(n,)``, and the common test images and labels."""
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    images, labels = (images[order] / 16).float(), labels[order]
    n_test = len(labels) // 5
    mine = slice(n_test + worker, None, N_WORKERS)
    return images[mine], labels[mine], images[:n_test], labels[:n_test]


def train(model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> None:
    """One epoch of SGD with momentum."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    for batch in order.split(16):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()


def work(worker: int, meeting: str, n_rounds: int) -> None:
    """The process of one worker; the first one prints the results as JSON."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # to standard error
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    where = f"file://{meeting}"
    dist.init_process_group("gloo", init_method=where, rank=worker, world_size=N_WORKERS)
    model = make_model()
    images, labels, test_images, test_labels = load_data(worker)
    shared = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = rfc.CodecConfig(sparsity=0.99, dense=rfc.buffer_names(model))
    n_bytes, accuracies = 0, []
    for number in range(1, n_rounds + 1):
        train(model, images, labels, 1000 * number + worker)

        payload = rfc.encode(model.state_dict(), shared, config)
        payloads = [b""] * N_WORKERS
        dist.all_gather_object(payloads, payload)
        aggregator = rfc.Aggregator(shared)
        for received in payloads:
            aggregator.add(received)
        shared = aggregator.result()
        model.load_state_dict(shared)

        n_bytes += len(payload)
        if worker == 0:
            sent = sum(map(len, payloads))
            models = N_WORKERS * sum(tensor.nbytes for tensor in shared.values())
            log.info("round %d: %d B, %.0fx less than models", number, sent, models / sent)
        right = (model(test_images).argmax(1) == test_labels).float().mean()
        accuracies.append(round(right.item(), 4))
    results: list[Any] = [None] * N_WORKERS
    dist.all_gather_object(results, (n_bytes, digest(shared)))
    if worker == 0:
        whole = n_rounds * sum(tensor.nbytes for tensor in shared.values())
        sent, models = zip(*results, strict=True)
        report = {"accuracies": accuracies, "models": models, "bytes": sent, "plain_bytes": whole}
        print(json.dumps(report))
    dist.barrier()  # waits for the workers that still need it
    dist.destroy_process_group()


def digest(state: dict[str, Tensor]) -> str:
    data = b"".join(tensor.numpy().tobytes() for tensor in state.values())
    return hashlib.sha256(data).hexdigest()[:16]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (f"{folder}/meeting", N_ROUNDS), N_WORKERS)


if __name__ == "__main__":
    main()
