"""The codec in a DistributedDataParallel communication hook: two processes over gloo.

In every step each worker encodes its gradient plus error feedback against zeros. Workers gather
and average the payloads. Compares bytes, time and accuracy with DDP's all-reduce.
"""

# No `from __future__ import annotations`: DDP reads the hook's annotations.
import argparse
import os
import socket
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import Tensor, multiprocessing, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

import resfed_codec as rfc
from benchmarks.common import write_results

N_WORKERS = 2


class Worker:
    """Error feedback and byte counts of one worker."""

    def __init__(self, sparsity: float) -> None:
        self.sparsity = sparsity
        self.memory: dict[tuple[int, int], Tensor] = {}
        self.n_bytes = 0


def hook(worker: Worker, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    gradient = bucket.buffer()
    key = bucket.index(), gradient.numel()
    target = gradient + worker.memory.get(key, 0)
    zeros = [torch.zeros_like(target)]
    payload = rfc.encode([target], zeros, sparsity=worker.sparsity)
    worker.memory[key] = target - rfc.decode(payload, zeros)[0]
    worker.n_bytes += len(payload)
    payloads = [b""] * N_WORKERS
    dist.all_gather_object(payloads, payload)
    aggregator = rfc.Aggregator(zeros)
    for received in payloads:
        aggregator.add(received)
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(aggregator.result()[0])
    return future


def work(worker: int, port: int, sparsity: float | None, n_epochs: int, answers: Any) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    rfc.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=worker, world_size=N_WORKERS)
    torch.manual_seed(0)
    layers = nn.Linear(64, 1000), nn.ReLU(), nn.Linear(1000, 930), nn.ReLU(), nn.Linear(930, 10)
    model = DistributedDataParallel(nn.Sequential(*layers))
    state = Worker(sparsity or 0.0)
    if sparsity is not None:
        model.register_comm_hook(state, hook)
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    images, labels = (images[order] / 16).float(), labels[order]
    n_test = len(labels) // 5
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    times = []
    for epoch in range(n_epochs):
        epoch_order = torch.randperm(
            len(labels) - n_test, generator=torch.Generator().manual_seed(epoch)
        )
        for batch in torch.split(n_test + epoch_order, 32)[:-1]:
            mine = batch[worker::N_WORKERS]
            start = time.perf_counter()
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[mine]), labels[mine])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            times.append(time.perf_counter() - start)
    if worker == 0:
        right = (model(images[:n_test]).argmax(1) == labels[:n_test]).float().mean().item()
        gradient = sum(p.numel() * p.element_size() for p in model.parameters())
        n_bytes = state.n_bytes / len(times) if sparsity is not None else float(gradient)
        answers.put((n_bytes, statistics.median(times) * 1e3, right, len(times)))
    dist.destroy_process_group()


def measure(sparsity: float | None, n_epochs: int) -> dict[str, Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    answers = multiprocessing.get_context("spawn").SimpleQueue()
    spawn(work, (port, sparsity, n_epochs, answers), N_WORKERS)  # type: ignore[no-untyped-call]
    n_bytes, milliseconds, accuracy, n_steps = answers.get()
    return {
        "gradients by": "all-reduce" if sparsity is None else f"codec, sparsity {sparsity:g}",
        "bytes a step, each way": round(n_bytes),
        "median ms a step": milliseconds,
        "accuracy": accuracy,
        "steps": n_steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    rows = [measure(sparsity, args.epochs) for sparsity in (None, 0.9, 0.99, 0.999)]
    dense = rows[0]
    for row in rows:
        extra = (row["median ms a step"] - dense["median ms a step"]) / 1e3
        saved = dense["bytes a step, each way"] - row["bytes a step, each way"]
        row["pays below, Mbit/s"] = "-" if row is dense else f"{8e-6 * saved / extra:.0f}"
    note = (
        "A network of 1,005,240 parameters on handwritten digits, batch 16 a worker, two processes"
        " on one machine. The last column is the bandwidth at which the bytes saved take as long as"
        " the time lost over loopback; latency is left out."
    )
    print(write_results("integrations_ddp", "DDP communication hook", rows, note))


if __name__ == "__main__":
    main()
