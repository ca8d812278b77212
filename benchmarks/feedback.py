"""Error feedback in a training on digits: its directions, and the model that the server sends.

    python -m benchmarks.feedback [--seeds 0 1 2]

The training is that of ``resfed-codec demo``: 40 rounds, 10 clients. The rules of the server are
those of ``benchmarks/servers.py``. All but the first two keep an exact model, which still contains
what a downlink left out, so feedback down counts it twice. "default" is ``error_feedback=None``:
the session finds out, from shares of what was left out (docs/predictors.md).
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import warnings
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import resfed_codec as rfc
from benchmarks.common import write_results
from benchmarks.servers import RULES, Server
from resfed_codec.cli import demo
from resfed_codec.session.feedback_watch import ONE

CLIENTS = 10
FEEDBACK = {"no": False, "yes": True, "default": None}


def train(
    args: argparse.Namespace, seed: int, *, up: bool, down: bool | None, rule: str
) -> tuple[float, float, bool, list[float]]:
    """Mean accuracy of the last five rounds, kB per client in both directions, whether downlinks
    have feedback in the end, and the shares from the third on."""
    rng = np.random.default_rng(seed)
    data = demo._load_digits(rng)
    shards = demo._split(data.labels, CLIENTS, rng)
    model = demo._first_model(data.images.shape[1], rng)
    uplink = rfc.CodecConfig(sparsity=args.sparsity, error_feedback=up)
    downlink = rfc.CodecConfig(sparsity=args.sparsity, error_feedback=down)
    server = rfc.ServerSession(model, uplink, downlink)
    sessions = [rfc.ClientSession(model, uplink, downlink) for _ in shards]
    held = [model for _ in shards]
    optimizer = Server(rule, model)
    n_bytes, accuracies, shares = 0, [], []
    for number in range(1, args.rounds + 1):
        aggregator = server.aggregator()
        for client, shard in enumerate(shards):
            order = np.random.default_rng([seed, number, client]).permutation(shard)
            local = demo._train(held[client], data.images[order], data.labels[order])
            payload = sessions[client].send(local)
            n_bytes += len(payload)
            server.receive_into(client, payload, aggregator, weight=len(shard))
        server.update(optimizer.next(aggregator.result(), server.state))
        watch = server._state.watch
        if watch is not None and watch.n_shares > 2:
            shares.append(watch.recent[-1] / ONE)
        for client, session in enumerate(sessions):
            message = server.send(client)
            n_bytes += len(message)
            held[client] = session.receive(message)
        accuracies.append(demo._accuracy(held[0], data))
    kilobytes = n_bytes / CLIENTS / 1e3
    return statistics.mean(accuracies[-5:]), kilobytes, server.error_feedback, shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sparsity", type=float, default=0.99)
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    warnings.filterwarnings("ignore", "downlink: error_feedback=")
    with threadpool_limits(limits=1, user_api="blas"):
        for rule, (down, setting), up in tqdm(
            list(itertools.product(RULES, FEEDBACK.items(), (False, True)))
        ):
            found = [train(args, seed, up=up, down=setting, rule=rule) for seed in args.seeds]
            accuracies = [accuracy for accuracy, *_ in found]
            shares = [share for *_, of_one in found for share in of_one]
            rows.append(
                {
                    "server passes on": rule,
                    "feedback up": "yes" if up else "no",
                    "feedback down": down,
                    "accuracy": statistics.mean(accuracies),
                    "least": min(accuracies),
                    "greatest": max(accuracies),
                    "kB per client": statistics.mean(kilobytes for _, kilobytes, *_ in found),
                    "down in the end": f"{sum(ends for *_, ends, _ in found)} of {len(found)}",
                    "shares": f"{min(shares):.2f} to {max(shares):.2f}",
                }
            )
    note = (
        f"Sparsity {args.sparsity:g}, {args.rounds} rounds, seeds {args.seeds}. Accuracy: mean of"
        " the last five rounds; bytes: both directions, all rounds. Down in the end: with how many"
        " seeds downlinks have feedback after the last round. Shares: of what a downlink left out,"
        " in the next global model, from the third that was measured until the session stopped."
        " Rules of the server: benchmarks/servers.py."
    )
    print(write_results("feedback", "Error feedback, digits", rows, note))


if __name__ == "__main__":
    main()
