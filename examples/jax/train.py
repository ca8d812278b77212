"""Federated training in JAX with the codec: four clients and a server, in one process.

    python examples/jax/train.py

Needs ``pip install resfed-codec jax scikit-learn``. The model is a pytree of JAX arrays, which the
sessions take and return as it is. ``send`` returns the bytes that a channel would carry.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import resfed_codec as rfc

N_CLIENTS, N_ROUNDS = 4, 10
SIZES = (64, 300, 100, 10)
BATCH, RATE, MOMENTUM = 16, 0.05, 0.9


def first_model() -> list[dict[str, jax.Array]]:
    """50,610 parameters."""
    keys = jax.random.split(jax.random.key(0), len(SIZES) - 1)
    return [
        {
            "kernel": jax.random.normal(key, (n_in, n_out)) * jnp.sqrt(2 / n_in),
            "bias": jnp.zeros(n_out),
        }
        for key, n_in, n_out in zip(keys, SIZES[:-1], SIZES[1:], strict=True)
    ]


def scores(model: Any, images: jax.Array) -> jax.Array:
    x = images
    for layer in model[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ model[-1]["kernel"] + model[-1]["bias"]


def loss(model: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    logs = jax.nn.log_softmax(scores(model, images))
    return -jnp.mean(jnp.take_along_axis(logs, labels[:, None], axis=1))


@jax.jit
def train(model: Any, images: jax.Array, labels: jax.Array, key: jax.Array) -> Any:
    """The model after an epoch of SGD with momentum."""
    n_batches = len(labels) // BATCH
    order = jax.random.permutation(key, len(labels))[: n_batches * BATCH]

    def step(carry: Any, batch: jax.Array) -> Any:
        model, momenta = carry
        gradients = jax.grad(loss)(model, images[batch], labels[batch])
        momenta = jax.tree.map(lambda m, g: MOMENTUM * m + g, momenta, gradients)
        return (jax.tree.map(lambda p, m: p - RATE * m, model, momenta), momenta), None

    momenta = jax.tree.map(jnp.zeros_like, model)
    (model, _), _ = jax.lax.scan(step, (model, momenta), order.reshape(n_batches, BATCH))
    return model


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # to standard error
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(1).permutation(len(labels))
    images, labels = jnp.asarray(images[order] / 16, jnp.float32), jnp.asarray(labels[order])
    n_test = len(labels) // 5

    model = first_model()
    server = rfc.ServerSession(model)
    clients = [rfc.ClientSession(model) for _ in range(N_CLIENTS)]
    n_bytes, accuracies = 0, []
    for number in range(N_ROUNDS):
        aggregator = server.aggregator()
        for i, client in enumerate(clients):
            downlink = server.send(i)
            held = client.receive(downlink)
            mine = slice(n_test + i, None, N_CLIENTS)
            key = jax.random.key(1000 * number + i)
            local = train(held, images[mine], labels[mine], key)
            uplink = client.send(local)
            server.receive_into(i, uplink, aggregator)
            n_bytes += len(downlink) + len(uplink)
        model = aggregator.result()
        server.update(model)
        right = scores(model, images[:n_test]).argmax(axis=1) == labels[:n_test]
        accuracies.append(round(float(right.mean()), 4))
    whole = 2 * N_ROUNDS * N_CLIENTS * sum(array.nbytes for array in jax.tree.leaves(model))
    print(json.dumps({"accuracies": accuracies, "bytes": n_bytes, "plain_bytes": whole}))


if __name__ == "__main__":
    main()
