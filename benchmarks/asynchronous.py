"""Asynchronous training on digits: clients that answer late, with the codec and without.

    python -m benchmarks.asynchronous [--seeds 0 1 2]

The clients and their training are those of ``resfed-codec demo``. A client receives the newest
model, trains, and answers ``late`` versions later; meanwhile it receives nothing. Clients take
turns, so with ``late`` 3 a quarter of them answers for each version. The server adds what they
changed to an exact model, each weighted by its share of all data, as FedBuff does (Nguyen et al.,
arXiv:2106.06639). All settings of the sessions are the defaults but ``history``.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import resfed_codec as rfc
from benchmarks.common import write_results
from resfed_codec.cli import demo

CLIENTS = 10
LATE = (0, 1, 3, 7)

Model = dict[str, Any]


def train(seed: int, trainings: int, late: int, *, codec: bool) -> tuple[float, float]:
    """Mean accuracy of the last five trainings of all clients; kB per client and direction pair."""
    rng = np.random.default_rng(seed)
    data = demo._load_digits(rng)
    shards = demo._split(data.labels, CLIENTS, rng)
    model = demo._first_model(data.images.shape[1], rng)
    server = rfc.ServerSession(model, history=late + 1)
    sessions = [rfc.ClientSession(model) for _ in shards]
    held: list[Model] = [model for _ in shards]
    n_all = sum(len(shard) for shard in shards)
    n_bytes, accuracies = 0, []
    for number in range(trainings * (late + 1)):
        new = {name: value.astype(np.float64) for name, value in model.items()}
        answering = [i for i in range(CLIENTS) if (i + number) % (late + 1) == 0]
        for i in answering:
            order = np.random.default_rng([seed, number, i]).permutation(shards[i])
            local = demo._train(held[i], data.images[order], data.labels[order])
            if codec:
                payload = sessions[i].send(local)
                n_bytes += len(payload)
                local = server.receive(i, payload)
            for name in new:
                new[name] += len(shards[i]) / n_all * (local[name] - held[i][name])
        model = {name: value.astype(np.float32) for name, value in new.items()}
        if codec:
            server.update(model)
        for i in answering:
            held[i] = model
            if codec:
                message = server.send(i)
                n_bytes += len(message)
                held[i] = sessions[i].receive(message)
        accuracies.append(demo._accuracy(server.state if codec else model, data))
    if not codec:
        n_bytes = 2 * CLIENTS * trainings * sum(value.nbytes for value in model.values())
    return statistics.mean(accuracies[-5 * (late + 1) :]), n_bytes / CLIENTS / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--trainings", type=int, default=40)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with threadpool_limits(limits=1, user_api="blas"), warnings.catch_warnings():
        warnings.simplefilter("error")
        for late in tqdm(LATE):
            for codec in (False, True):
                found = [train(seed, args.trainings, late, codec=codec) for seed in args.seeds]
                accuracies = [accuracy for accuracy, _ in found]
                rows.append(
                    {
                        "versions late": late,
                        "codec": "yes" if codec else "no",
                        "accuracy": statistics.mean(accuracies),
                        "least": min(accuracies),
                        "greatest": max(accuracies),
                        "kB per client": statistics.mean(kilobytes for _, kilobytes in found),
                    }
                )
    note = (
        f"{CLIENTS} clients, {args.trainings} trainings of each, seeds {args.seeds}. Accuracy: mean"
        " over the last five trainings; bytes: both directions, all trainings."
    )
    print(write_results("asynchronous", "Asynchronous training, digits", rows, note))


if __name__ == "__main__":
    main()
