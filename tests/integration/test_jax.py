"""JAX arrays and pytrees, Flax NNX, Keras variables: what comes back, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import resfed_codec as rfc
from resfed_codec.tensors.layout import items_of

jax = pytest.importorskip("jax", reason="needs JAX: pip install jax")

import jax.numpy as jnp  # noqa: E402

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class Pair(NamedTuple):
    x: Any
    y: Any


def normal(seed: int, *shape: int, dtype: Any = jnp.float32) -> Any:
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def params(seed: int, few_bits: Any = jnp.int4) -> dict[str, Any]:
    return {
        "layers": [
            {"w": normal(seed, 30, 20), "b": normal(seed + 1, 20)},
            {"w": normal(seed + 2, 20, 10, dtype=jnp.bfloat16), "b": jnp.zeros(10, few_bits)},
        ],
        "pair": Pair(normal(seed + 4, 10), jnp.array(seed)),
        "ordered": OrderedDict(z=normal(seed + 5, 3), a=jnp.ones((), few_bits)),
    }


NAMES = ["layers/0/b", "layers/0/w", "layers/1/b", "layers/1/w"]
NAMES = [*NAMES, "ordered/a", "ordered/z", "pair/0", "pair/1"]


def as_numpy(tree: Any) -> Any:
    return jax.tree.map(np.array, tree)


def check_same(a: Any, b: Any) -> None:
    """Two pytrees are of one kind and hold the same JAX arrays, bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert isinstance(x, jax.Array)
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_pytrees_come_back_as_pytrees() -> None:
    old, new = params(0), params(1)
    old["ordered"]["a"] = new["ordered"]["a"] = jnp.ones((), jnp.float8_e4m3fn)
    assert [name for name, _ in items_of(old, "state")] == NAMES
    payload = rfc.encode(new, old, sparsity=0.5)
    decoded = rfc.decode(payload, old)
    assert payload == rfc.encode(as_numpy(new), as_numpy(old), sparsity=0.5)
    expected = rfc.decode(payload, as_numpy(old))
    check_same(decoded, jax.tree.map(jnp.asarray, expected))
    assert decoded["pair"].y == 1
    check_same(rfc.decode_keyframe(rfc.encode_keyframe(new), old), new)


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: {"a": a, "b": b},
        lambda a, b: [a, b],
        lambda a, b: (a, b),
        Pair,
        lambda a, b: OrderedDict(b=b, a=a),
    ],
)
def test_flat_states_come_back_as_they_were(make: Callable[[Any, Any], Any]) -> None:
    old, new = make(normal(0, 9, 9), normal(1, 9)), make(normal(2, 9, 9), normal(3, 9))
    decoded = rfc.decode(rfc.encode(new, old, sparsity=0.0, bits=16), old)
    assert jax.tree.structure(decoded) == jax.tree.structure(old)
    for x, y in zip(jax.tree.leaves(decoded), jax.tree.leaves(new), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-2)


def test_streams_sessions_and_aggregator() -> None:
    old, new = params(0, jnp.int8), params(1, jnp.int8)
    encoder, decoder = rfc.Encoder(old, sparsity=0.5), rfc.Decoder(old)
    held = decoder.decode(encoder.encode(new), copy=False)
    kept = as_numpy(held)
    check_same(pickle.loads(pickle.dumps(decoder)).state, held)
    decoder.decode(encoder.encode(old))
    assert str(as_numpy(held)) == str(kept), "a JAX array must not change"
    server, client = rfc.ServerSession(old), rfc.ClientSession(as_numpy(old))
    server.update(new)
    received = client.receive(server.send("a"))
    check_same(jax.tree.map(jnp.asarray, received), server.state)
    aggregator = server.aggregator()
    payload = client.send(new)
    server.receive_into("a", payload, aggregator)
    check_same(aggregator.result(), server.receive("a", payload))
    restored = rfc.ServerSession(old)
    restored.load_state_dict(server.state_dict())
    check_same(restored.state, server.state)


def test_the_codec_does_not_write_to_jax_arrays() -> None:
    state = {"a": normal(0, 9)}
    with pytest.raises(ValueError, match="out: tensor 'a' is read-only"):
        rfc.decode(rfc.encode(state, state), state, out=state)


def test_dtypes_of_64_bits_without_x64() -> None:
    with jax.enable_x64(True):
        state = {"a": jnp.arange(9.0), "n": jnp.array(2**40)}
    decoded = rfc.decode(rfc.encode(state, state), state)
    check_same(decoded, state)
    assert decoded["a"].dtype == np.float64


def donated() -> Any:
    value = jnp.ones(3)
    value.delete()
    return value


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (lambda: jax.random.key(0), "is a random key; leave it out"),
        (donated, "has been deleted"),
        (lambda: jnp.zeros, "must be a numpy.ndarray, a torch.Tensor, a jax.Array"),
        (lambda: 3.0, "must be a numpy.ndarray, a torch.Tensor, a jax.Array"),
        (lambda: None, "must be a numpy.ndarray, a torch.Tensor, a jax.Array"),
    ],
)
def test_what_cannot_be_read_is_named(value: Callable[[], Any], advice: str) -> None:
    state = {"a": jnp.ones(3), "b": {"c": value()}}
    for call in (rfc.encode_keyframe, rfc.Encoder, rfc.ServerSession, rfc.Aggregator):
        with pytest.raises(TypeError, match=f": tensor 'b/c': {advice}"):
            call(state)


def test_inside_of_a_jit() -> None:
    def call(x: Any) -> Any:
        rfc.encode_keyframe({"x": x})
        return x

    with pytest.raises(TypeError, match="state: tensor 'x': is traced by a JAX transform"):
        jax.jit(call)(jnp.ones(3))


def test_devices_and_shardings() -> None:
    """On eight devices of the host, which JAX only makes at its start."""
    code = """
import jax, numpy as np, pickle, resfed_codec as rfc
from jax.sharding import NamedSharding, PartitionSpec as P
mesh = jax.make_mesh((8,), ("x",))
device = jax.devices()[3]
state = {
    "sharded": jax.device_put(np.arange(16.0, dtype=np.float32), NamedSharding(mesh, P("x"))),
    "replicated": jax.device_put(np.ones((4, 4), np.float32), NamedSharding(mesh, P())),
    "committed": jax.device_put(np.ones(3, np.float32), device),
    "free": jax.numpy.ones(3),
}
for result in (rfc.decode(rfc.encode(state, state), state), rfc.Encoder(state).state):
    for name, value in state.items():
        assert result[name].sharding == value.sharding, name
        assert result[name].committed == value.committed, name
        assert np.array_equal(result[name], value)
alone = {name: state[name] for name in ("committed", "free")}
assert pickle.loads(pickle.dumps(rfc.Encoder(alone))).state["committed"].devices() == {device}
"""
    settings = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **settings}, check=True)


# ---- Flax


def test_flax_nnx() -> None:
    nnx = pytest.importorskip("flax.nnx", reason="needs Flax: pip install flax")

    class Net(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.norm = nnx.BatchNorm(20, rngs=rngs)
            self.layers = nnx.List([nnx.Linear(20, 20, rngs=rngs) for _ in range(2)])
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

    net = Net(nnx.Rngs(0))
    kinds = nnx.Any(nnx.Param, nnx.BatchStat)
    old = jax.tree.map(jnp.copy, nnx.state(net, kinds))
    assert [name for name, _ in items_of(old, "state")] == [
        *("layers/0/bias", "layers/0/kernel", "layers/1/bias", "layers/1/kernel"),
        *("norm/bias", "norm/mean", "norm/scale", "norm/var"),
    ]
    new = jax.tree.map(lambda x: x + normal(1, *x.shape), old)
    payload = rfc.encode(new, old, sparsity=0.9)
    assert rfc.inspect(payload).dense_tensors == (5, 7)
    decoded = rfc.decode(payload, old)
    assert jax.tree.structure(decoded) == jax.tree.structure(old)
    nnx.update(net, decoded)
    check_same(nnx.state(net, kinds), decoded)
    pure = nnx.to_pure_dict(old)
    check_same(rfc.decode(payload, pure), nnx.to_pure_dict(decoded))
    decoder = pickle.loads(pickle.dumps(rfc.Decoder(old)))
    check_same(decoder.decode(rfc.Encoder(old, sparsity=0.9).encode(new)), decoder.state)
    with pytest.raises(TypeError, match="tensor 'dropout/rngs/key': is a random key"):
        rfc.encode_keyframe(nnx.state(net))


def test_flax_linen() -> None:
    core = pytest.importorskip("flax.core", reason="needs Flax: pip install flax")
    old = core.freeze(
        {"params": {"d": {"kernel": normal(0, 9, 9)}}, "batch_stats": {"m": normal(1, 9)}}
    )
    decoded = rfc.decode(rfc.encode(old, old), old)
    assert type(decoded) is type(old)
    check_same(decoded, old)


def test_example() -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    example = Path(__file__).parents[2] / "examples" / "jax" / "train.py"
    output = subprocess.check_output(
        [sys.executable, example], env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    report = json.loads(output)
    assert report["accuracies"][-1] > 0.9
    assert 100 * report["bytes"] < report["plain_bytes"]
