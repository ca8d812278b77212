"""The same training in one process, without Flower: a plain loop over sessions.

    python examples/flower/one_process.py

It gives the same model as the app on Flower's engine, bit for bit, and shows how to use the codec
in your own training loop.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from typing import Any

from threadpoolctl import threadpool_limits

import resfed_codec as rfc
from digits import task

N_CLIENTS = 3


def run(
    n_rounds: int = 5,
    lost: Collection[tuple[int, int]] = (),
    initial_bits: int | None = None,
) -> dict[str, Any]:
    """Federated averaging.

    Args:
        n_rounds: Rounds.
        initial_bits: Mantissa bits to which the first model is rounded, if not None.
        lost: Pairs of a client and a round, from 1, in which it is killed before it replies. It
            restarts under another name, with only the first model.

    Returns:
        ``accuracies`` by round, and ``model``, a digest of the last one.
    """
    with threadpool_limits(1, "blas"):  # as in the app: sums depend on the number of threads
        return _run(n_rounds, lost, first_model(initial_bits))


def first_model(initial_bits: int | None) -> task.Model:
    model = task.first_model()
    rounded = rfc.encode_keyframe(model, mantissa_bits=initial_bits)
    return rfc.decode_keyframe(rounded, model)


def _run(n_rounds: int, lost: Collection[tuple[int, int]], first: task.Model) -> dict[str, Any]:
    model = dict(first)
    server = rfc.ServerSession(model)
    clients = {i: rfc.ClientSession(model) for i in range(N_CLIENTS)}
    names = dict.fromkeys(clients, 0)
    data = [task.load_data(i, N_CLIENTS) for i in clients]
    server.update(model)
    accuracies = []
    for number in range(1, n_rounds + 1):
        locals_ = []
        for i, client in clients.items():
            shared = client.receive(server.send(f"client {i}.{names[i]}"))
            images, labels, _, _ = data[i]
            if (i, number) in lost:
                clients[i], names[i] = rfc.ClientSession(first), names[i] + 1
                continue
            payload = client.send(task.train(shared, images, labels, 1000 * number + i))
            locals_.append((server.receive(f"client {i}.{names[i]}", payload), len(labels)))
        total = sum(n for _, n in locals_)
        for name in model:
            parts = [local[name] * (n / total) for local, n in locals_]
            model[name] = sum(parts[1:], parts[0])
        server.update(model)
        right = tested = 0.0
        for i, client in clients.items():
            shared = client.receive(server.send(f"client {i}.{names[i]}"))
            _, _, images, labels = data[i]
            right += len(labels) * task.accuracy(shared, images, labels)
            tested += len(labels)
        accuracies.append(right / tested)
    digest = hashlib.sha256(b"".join(array.tobytes() for array in model.values()))
    return {"accuracies": accuracies, "model": digest.hexdigest()[:16]}


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
