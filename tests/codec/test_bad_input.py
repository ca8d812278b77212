"""Errors of invalid input name the argument, the tensor and the value, and change nothing."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc
from models import State, assert_same, cnn_pair

ONE = [np.zeros((2, 3), np.float32)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["conv.weight", "norm.weight", "fc.weight"])
@pytest.mark.parametrize(
    "config", [{"sparsity": 0.99}, {"sparsity": 1}, {"max_bytes": 999}, {"max_error": 0.3}]
)
def test_not_finite(
    value: float, name: str, config: dict[str, Any], rng: np.random.Generator
) -> None:
    state, reference = cnn_pair(rng)
    for broken in (state, reference):
        saved = broken[name].flat[13]
        broken[name].flat[13] = value
        with pytest.raises(ValueError, match=rf"tensor '{name}' at flat index 13 is not finite"):
            rfc.encode(state, reference, **config)
        broken[name].flat[13] = saved


def test_difference_that_overflows() -> None:
    with pytest.raises(ValueError, match="tensor '0' at flat index 1 is not finite"):
        rfc.encode([np.array([0, 3e38], np.float32)], [np.array([0, -3e38], np.float32)])
    with pytest.raises(ValueError, match="not finite"):
        rfc.encode([np.array([1e300])], [np.array([0.0])])


def test_not_finite_in_excluded_tensors() -> None:
    state = {"w": np.eye(3, dtype=np.float32), "odd": np.array([np.nan, np.inf], np.float32)}
    reference = {"w": np.zeros((3, 3), np.float32), "odd": np.zeros(2, np.float32)}
    decoded = rfc.decode(rfc.encode(state, reference, exclude="odd"), reference)
    assert_same({"odd": decoded["odd"]}, {"odd": state["odd"]})


def layouts() -> dict[str, tuple[Any, Any, str]]:
    a, b = np.zeros(3, np.float32), np.zeros((3, 1), np.float32)
    return {
        "missing": ({"a": a}, {"a": a, "b": a}, "state lacks 'b', which reference has"),
        "extra": ({"a": a, "b": a}, {"a": a}, "state has 'b', which reference lacks"),
        "shape": ({"a": a}, {"a": b}, r"'a' float32 \[3\] against 'a' float32 \[3, 1\]"),
        "dtype": ({"a": a}, {"a": a.astype("f8")}, r"'a' float32 \[3\] against 'a' float64 \[3\]"),
        "length": ([a, a], [a], "state has '1', which reference lacks"),
    }


@pytest.mark.parametrize("case", layouts())
def test_layouts_that_differ(case: str) -> None:
    state, reference, message = layouts()[case]
    with pytest.raises(ValueError, match=message):
        rfc.encode(state, reference)


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(2, "U3"),
        np.zeros(2, object),
        np.zeros(2, "datetime64[s]"),
        np.zeros(2, np.longdouble),
        np.zeros(2, ">f4"),
        [1.0, 2.0],
        3.5,
        None,
    ],
    ids=str,
)
def test_tensors_of_the_wrong_type(value: Any) -> None:
    with pytest.raises(TypeError, match=r"state: tensor 'w(/0)?'"):
        rfc.encode({"w": value}, {"w": np.zeros(2, np.float32)})
    with pytest.raises(TypeError, match=r"reference: tensor '0(/0)?'"):
        rfc.encode([np.zeros(2, np.float32)], [value])


@pytest.mark.parametrize(
    "state", [None, 5, "text", b"bytes", np.zeros((2, 2)), {1: np.zeros(2)}], ids=str
)
def test_states_of_the_wrong_type(state: Any) -> None:
    with pytest.raises(TypeError, match="state: "):
        rfc.encode(state, ONE)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sparsity": -0.1}, ValueError, "sparsity=-0.1: must lie in [0, 1]"),
        ({"sparsity": 1.5}, ValueError, "sparsity=1.5"),
        ({"sparsity": 10**400}, ValueError, "sparsity=1000"),
        ({"max_error": -(10**400)}, ValueError, "max_error=-1000"),
        ({"step": 10**400}, ValueError, "step=1000"),
        ({"sparsity": float("nan")}, ValueError, "sparsity=nan"),
        ({"sparsity": "0.9"}, TypeError, "sparsity='0.9': must be a number"),
        ({"sparsity": True}, TypeError, "sparsity=True"),
        ({"max_bytes": 0}, ValueError, "max_bytes=0"),
        ({"max_bytes": 10.5}, TypeError, "max_bytes=10.5: must be an integer"),
        ({"max_bytes": 3}, ValueError, "max_bytes: too small; the smallest payload"),
        ({"max_error": 0}, ValueError, "max_error=0: must be above 0"),
        ({"max_error": 1.1}, ValueError, "max_error=1.1"),
        ({"sparsity": 0.9, "max_bytes": 9}, ValueError, "sparsity and max_bytes exclude"),
        ({"step": "fine"}, ValueError, "step='fine'"),
        ({"step": 0}, ValueError, "step=0"),
        ({"step": None}, TypeError, "step=None"),
        ({"bits": 0}, ValueError, "bits=0"),
        ({"bits": 17}, ValueError, "bits=17"),
        ({"bits": 2.0}, TypeError, "bits=2.0"),
        ({"bits": 2, "step": 0.5}, ValueError, "step and bits exclude each other"),
        ({"exclude": ["nobody"]}, ValueError, "exclude: no tensor is named like 'nobody'"),
        ({"exclude": [3]}, TypeError, "exclude: 3"),
        ({"exclude": 3}, TypeError, "exclude=3"),
        ({"exclude": False}, TypeError, "exclude=False"),
        ({"exclude": None}, TypeError, "exclude=None"),
        ({"dense": ["nobody"]}, ValueError, "dense: no tensor is named like 'nobody'"),
        ({"dense": [3]}, TypeError, "dense: 3"),
        ({"dense": 3}, TypeError, "dense=3"),
        ({"dense_bits": 1}, ValueError, "dense_bits=1: must lie in [2, 12]"),
        ({"dense_bits": 13}, ValueError, "dense_bits=13"),
        ({"dense_bits": 3.0}, TypeError, "dense_bits=3.0"),
        ({"dense_bits": None}, TypeError, "dense_bits=None"),
        ({"config": {"sparsity": 0.9}}, TypeError, "config: must be a CodecConfig, not dict"),
        ({"sparcity": 0.9}, TypeError, "sparcity"),
        ({"config": rfc.CodecConfig(), "bits": 2}, TypeError, "give config or options, not both"),
    ],
    ids=str,
)  # fmt: skip
def test_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        rfc.encode(ONE, ONE, **options)


def test_invalid_out(rng: np.random.Generator) -> None:
    state, reference = cnn_pair(rng)
    payload = rfc.encode(state, reference)

    def out_with(name: str, value: Any) -> State:
        return {**{n: v.copy() for n, v in reference.items()}, name: value}

    locked = reference["fc.weight"].copy()
    locked.flags.writeable = False
    for value, error, message in (
        (locked, ValueError, "out: tensor 'fc.weight' is read-only"),
        (np.asfortranarray(reference["fc.weight"]), ValueError, "is not C-contiguous"),
        (np.zeros((10, 511), np.float32), ValueError, "out and reference differ"),
        ("text", TypeError, "out: tensor 'fc.weight'"),
    ):
        with pytest.raises(error, match=message):
            rfc.decode(payload, reference, out=out_with("fc.weight", value))


def test_config_is_frozen_and_comparable() -> None:
    config = rfc.CodecConfig(sparsity=0.9, exclude=["a*"])  # type: ignore[arg-type]
    assert config == rfc.CodecConfig(sparsity=0.9, exclude=("a*",))
    assert hash(config) == hash(rfc.CodecConfig(sparsity=0.9, exclude="a*"))  # type: ignore[arg-type]
    assert rfc.CodecConfig() == rfc.CodecConfig(sparsity=None)
    with pytest.raises(AttributeError):
        config.sparsity = 0.5  # type: ignore[misc]
