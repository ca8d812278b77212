"""Keras variables in and out, for the backend that KERAS_BACKEND names; test_keras.py runs it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

import resfed_codec as rfc


def make_model(seed: int) -> Any:
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((20,)),
            layers.Dense(40, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.1),
            layers.Dense(10),
        ]
    )


def numbers(arrays: Any) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(array).copy() for array in arrays]


def main() -> None:
    old, new = make_model(1), make_model(2)
    assert rfc.buffer_names(new) == ("4", "5")
    config = rfc.CodecConfig(sparsity=0.5, dense=rfc.buffer_names(new))

    # model.weights are taken as a sequence, as what get_weights() returns is.
    payload = rfc.encode(new.weights, old.weights, config)
    assert payload == rfc.encode(new.get_weights(), old.get_weights(), config)
    expected = rfc.decode(payload, old.get_weights())
    decoded = rfc.decode(payload, old.weights)
    kinds = {"jax": "jaxlib", "torch": "torch", "numpy": "numpy"}
    assert {type(array).__module__.partition(".")[0] for array in decoded} == {
        kinds[keras.backend.backend()]
    }
    for a, b in zip(numbers(decoded), expected, strict=True):
        assert a.tobytes() == b.tobytes()
    encoder, decoder = rfc.Encoder(old.weights, config), rfc.Decoder(old.weights, run="")
    old.set_weights(decoder.decode(encoder.encode(new.weights)))
    for a, b in zip(numbers(old.weights), numbers(encoder.state), strict=True):
        assert a.tobytes() == b.tobytes()

    # By paths, statistics are recognized.
    by_path = {variable.path: variable for variable in new.weights}
    moved = {name: array + 1 for name, array in zip(by_path, numbers(new.weights), strict=True)}
    names = sorted(by_path)
    dense = [names[i] for i in rfc.inspect(rfc.encode(moved, by_path)).dense_tensors]
    assert [name.rpartition("/")[2] for name in dense] == ["moving_mean", "moving_variance"]

    new.compile("sgd", "mse")
    # A nested state, as Keras gives it.
    tree = {"trainable_variables": new.get_state_tree()["trainable_variables"]}
    new.set_state_tree(rfc.decode(rfc.encode(tree, tree), tree))


if __name__ == "__main__":
    main()
