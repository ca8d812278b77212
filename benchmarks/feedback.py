"""Error feedback in a training on digits: its directions, and the model that the server sends.

    python -m benchmarks.feedback [--seeds 0 1 2]

The training is that of ``resfed-codec demo``: 40 rounds, 10 clients. The server sends either the
"mean" of the recovered local models, as FedAvg does, or its own "exact" model, to which it adds the
mean's step, as server optimizers do. An exact model still contains what a downlink left out, so
feedback down counts it twice.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import resfed_codec as rfc
from benchmarks.common import write_results
from resfed_codec.cli import demo

CLIENTS = 10


def train(
    args: argparse.Namespace, seed: int, *, up: bool, down: bool, exact: bool
) -> tuple[float, float]:
    """Mean accuracy of the last five rounds, and kB per client in both directions."""
    rng = np.random.default_rng(seed)
    data = demo._load_digits(rng)
    shards = demo._split(data.labels, CLIENTS, rng)
    model = demo._first_model(data.images.shape[1], rng)
    uplink = rfc.CodecConfig(sparsity=args.sparsity, error_feedback=up)
    downlink = rfc.CodecConfig(sparsity=args.sparsity, error_feedback=down)
    server = rfc.ServerSession(model, uplink, downlink)
    sessions = [rfc.ClientSession(model, uplink, downlink) for _ in shards]
    held = [model for _ in shards]
    n_bytes, accuracies = 0, []
    for number in range(1, args.rounds + 1):
        aggregator = server.aggregator()
        for client, shard in enumerate(shards):
            order = np.random.default_rng([seed, number, client]).permutation(shard)
            local = demo._train(held[client], data.images[order], data.labels[order])
            payload = sessions[client].send(local)
            n_bytes += len(payload)
            server.receive_into(client, payload, aggregator, weight=len(shard))
        mean = aggregator.result()
        model = demo._add(model, demo._add(mean, server.state, -1)) if exact else mean
        server.update(model)
        for client, session in enumerate(sessions):
            message = server.send(client)
            n_bytes += len(message)
            held[client] = session.receive(message)
        accuracies.append(demo._accuracy(held[0], data))
    return statistics.mean(accuracies[-5:]), n_bytes / CLIENTS / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sparsity", type=float, default=0.99)
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with threadpool_limits(limits=1, user_api="blas"):
        for exact, down, up in tqdm(list(itertools.product((False, True), repeat=3))):
            found = [train(args, seed, up=up, down=down, exact=exact) for seed in args.seeds]
            accuracies = [accuracy for accuracy, _ in found]
            rows.append(
                {
                    "server passes on": "exact model" if exact else "mean",
                    "feedback up": "yes" if up else "no",
                    "feedback down": "yes" if down else "no",
                    "accuracy": statistics.mean(accuracies),
                    "least": min(accuracies),
                    "greatest": max(accuracies),
                    "kB per client": statistics.mean(kilobytes for _, kilobytes in found),
                }
            )
    note = (
        f"Sparsity {args.sparsity:g}, {args.rounds} rounds, seeds {args.seeds}. Accuracy: mean of"
        " the last five rounds; bytes: both directions, all rounds."
    )
    print(write_results("feedback", "Error feedback, digits", rows, note))


if __name__ == "__main__":
    main()
