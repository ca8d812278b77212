"""Federated training in Keras 3 with the codec: four clients and a server, in one process.

    python examples/keras/train.py

Needs ``pip install resfed-codec keras scikit-learn`` and a backend of Keras that trains. The codec
takes ``model.weights`` as they are, and ``set_weights`` takes what it returns.
"""

from __future__ import annotations

import json
import logging

import keras
import numpy as np
from sklearn.datasets import load_digits

import resfed_codec as rfc

N_CLIENTS, N_ROUNDS = 4, 10


def make_model() -> keras.Model:
    """52,210 parameters, 800 of them statistics of BatchNorm."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(300, activation="relu"),
            layers.BatchNormalization(momentum=0.9),
            layers.Dense(100, activation="relu"),
            layers.BatchNormalization(momentum=0.9),
            layers.Dense(10),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # to standard error
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(1).permutation(len(labels))
    images, labels = (images[order] / 16).astype(np.float32), labels[order]
    n_test = len(labels) // 5

    model = make_model()  # one for all clients, which take turns here
    config = rfc.CodecConfig(dense=rfc.buffer_names(model))
    server = rfc.ServerSession(model.weights, config, config)
    clients = [rfc.ClientSession(model.weights, config, config) for _ in range(N_CLIENTS)]
    n_bytes, accuracies = 0, []
    for _ in range(N_ROUNDS):
        aggregator = server.aggregator()
        for i, client in enumerate(clients):
            downlink = server.send(i)
            model.set_weights(client.receive(downlink))
            mine = slice(n_test + i, None, N_CLIENTS)
            model.fit(images[mine], labels[mine], batch_size=16, verbose=0)
            uplink = client.send(model.weights)
            server.receive_into(i, uplink, aggregator)
            n_bytes += len(downlink) + len(uplink)
        mean = aggregator.result()
        server.update(mean)
        model.set_weights(mean)
        _, accuracy = model.evaluate(images[:n_test], labels[:n_test], verbose=0)
        accuracies.append(round(accuracy, 4))
    whole = 2 * N_ROUNDS * N_CLIENTS * sum(array.nbytes for array in model.get_weights())
    print(json.dumps({"accuracies": accuracies, "bytes": n_bytes, "plain_bytes": whole}))


if __name__ == "__main__":
    main()
