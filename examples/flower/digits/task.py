"""The training: a network of 1,005,240 parameters on handwritten digits, in NumPy.

Flower starts a client process for every message; NumPy keeps that short. With PyTorch, only
``ArrayRecord(model.state_dict())`` changes in the two app files. All random numbers are seeded, so
two runs give the same model, bit for bit.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

Model = dict[str, NDArray[np.float32]]
SIZES = (64, 1000, 930, 10)
BATCH, RATE, MOMENTUM = 16, np.float32(0.05), np.float32(0.9)


def first_model() -> Model:
    """The first model, float32, the same on every machine."""
    rng = np.random.default_rng(0)
    model = {}
    for i, (n_in, n_out) in enumerate(pairwise(SIZES)):
        model[f"layer{i}.weight"] = (rng.standard_normal((n_in, n_out)) * np.sqrt(2 / n_in)).astype(
            np.float32
        )
        model[f"layer{i}.bias"] = np.zeros(n_out, np.float32)
    return model


def load_data(
    partition: int, num_partitions: int
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """A client's images ``(n, 64)`` and labels ``(n,)`` for training, and those for testing."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(1).permutation(len(labels))[partition::num_partitions]
    images, labels = (images[order] / 16).astype(np.float32), labels[order]
    n_test = len(labels) // 5
    return images[n_test:], labels[n_test:], images[:n_test], labels[:n_test]


def train(model: Model, images: NDArray[np.float32], labels: NDArray[np.int64], seed: int) -> Model:
    """A new model, after one epoch of SGD with momentum from ``model``."""
    weights = [model[f"layer{i}.weight"].copy() for i in range(3)]
    biases = [model[f"layer{i}.bias"].copy() for i in range(3)]
    parameters = weights + biases
    momenta = [np.zeros_like(p) for p in parameters]
    order = np.random.default_rng(seed).permutation(len(labels))
    for start in range(0, len(order) - BATCH + 1, BATCH):
        batch = order[start : start + BATCH]
        inputs, probabilities = _forward(images[batch], weights, biases)
        error = probabilities
        error[np.arange(BATCH), labels[batch]] -= 1
        error /= np.float32(BATCH)
        weight_gradients, bias_gradients = [], []
        for i in (2, 1, 0):
            weight_gradients.insert(0, inputs[i].T @ error)
            bias_gradients.insert(0, error.sum(axis=0))
            error = (error @ weights[i].T) * (inputs[i] > 0)
        gradients = weight_gradients + bias_gradients
        for parameter, momentum, gradient in zip(parameters, momenta, gradients, strict=True):
            momentum *= MOMENTUM
            momentum += gradient
            parameter -= RATE * momentum
    return {
        name: array
        for i in range(3)
        for name, array in ((f"layer{i}.weight", weights[i]), (f"layer{i}.bias", biases[i]))
    }


def accuracy(model: Model, images: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The share of images that the model classifies correctly, from 0 to 1."""
    weights = [model[f"layer{i}.weight"] for i in range(3)]
    biases = [model[f"layer{i}.bias"] for i in range(3)]
    _, probabilities = _forward(images, weights, biases)
    return float(np.mean(probabilities.argmax(axis=1) == labels))


def _forward(
    images: NDArray[np.float32],
    weights: list[NDArray[np.float32]],
    biases: list[NDArray[np.float32]],
) -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
    """The input of each layer, and the probabilities ``(n, 10)``."""
    inputs = [images]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        inputs.append(np.maximum(inputs[-1] @ weight + bias, 0))
    scores = inputs[-1] @ weights[-1] + biases[-1]
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return inputs, scores / scores.sum(axis=1, keepdims=True)
