"""Limits of layouts: many tensors, and names in any script."""

from __future__ import annotations

import numpy as np
import pytest

import resfed_codec as rfc
from models import assert_same
from resfed_codec import reference as slow
from resfed_codec.tensors.layout import TensorSpec
from resfed_codec.tensors.roles import role_overrides

NAMES = [
    "",
    " ",
    "\n",
    "\0",
    "a\0b",
    "weight",
    "gewicht.größe",
    "вес.слоя",
    "重み",
    "وزن",
    "भार",
    "🧠.🏋",
    "e\u0301",  # not the same as the next one
    "\u00e9",
    "\u202egnal",
    "\ud800",  # half of a surrogate pair: surrogateescape makes it of bytes that are not UTF-8
    "\udcff.bias",
    "x" * 100_000,
    "[*]?",
]


def test_names_in_any_script() -> None:
    rng = np.random.default_rng(0)
    reference = {name: rng.standard_normal((4, 5)).astype(np.float32) for name in NAMES}
    state = {name: value + 1 for name, value in reference.items()}
    payload, decoded = rfc.encode(state, reference, sparsity=0.5), None
    decoded = rfc.decode(payload, reference)
    assert list(decoded) == NAMES
    assert_same(slow.decode(payload, reference), decoded)
    assert_same(rfc.decode_keyframe(rfc.encode_keyframe(state), reference), state)
    encoder, decoder = rfc.Encoder(reference, run="\udcff"), rfc.Decoder(reference, run="\udcff")
    decoder.load_state_dict(decoder.state_dict())
    assert_same(decoder.decode(encoder.encode(state)), encoder.state)
    for client_id in NAMES:
        server = rfc.ServerSession(reference)
        server.load_state_dict(server.state_dict())
        server.update(state)
        rfc.ClientSession(reference, client_id=client_id).receive(server.send(client_id))
        again = rfc.ServerSession(reference)
        again.load_state_dict(server.state_dict())
        assert again.clients == [client_id]


@pytest.mark.parametrize("name", NAMES)
def test_errors_name_any_tensor(name: str) -> None:
    reference = {name: np.zeros((2, 2), np.float32)}
    with pytest.raises(ValueError, match="not finite"):
        rfc.encode({name: np.full((2, 2), np.nan, np.float32)}, reference)
    with pytest.raises(ValueError, match="lacks"):
        rfc.encode({name + "x": reference[name]}, reference)


@pytest.mark.slow
def test_a_hundred_thousand_tensors() -> None:
    """Tensors of every role; docs/security.md has the times."""
    rng = np.random.default_rng(0)
    n = 100_000
    values = rng.standard_normal((n, 6)).astype(np.float32)
    shapes = [(2, 3), (6,), (3, 2, 1), (6, 1)]
    reference = {f"layer{i}.weight": values[i].reshape(shapes[i % 4]) for i in range(n)}
    for i in range(0, n, 10):
        del reference[f"layer{i}.weight"]
        reference[f"layer{i}.running_mean"] = values[i]
        reference[f"layer{i}.steps"] = np.array(i)
    state = {name: value + 1 for name, value in reference.items()}
    payload = rfc.encode(state, reference, sparsity=0.9, exclude="layer1*.weight")
    info = rfc.inspect(payload)
    assert len(info.dense_tensors) == n // 10
    assert len(info.exclusions) > 1000
    decoded = rfc.decode(payload, reference)
    assert_same(decoded["layer10.steps"][None], state["layer10.steps"][None])
    assert_same(rfc.decode_keyframe(rfc.encode_keyframe(decoded), reference), decoded)


def test_patterns_that_name_many_tensors_one_by_one() -> None:
    """Patterns without wildcards are looked up by name, so lists may be as long as the model."""
    specs = tuple(TensorSpec(f"layer{i}.weight", (6,), "float32") for i in range(20_000))
    names = tuple(spec.name for spec in specs)
    overrides = role_overrides(specs, rfc.CodecConfig(exclude=names[:15_000], dense=names[10_000:]))
    assert list(overrides.exclusions) == list(range(15_000))
    assert list(overrides.dense) == list(range(15_000, 20_000))
    with pytest.raises(ValueError, match="no tensor is named like 'nobody'"):
        role_overrides(specs, rfc.CodecConfig(exclude=(*names, "nobody")))
    odd = (TensorSpec("[*]?", (6,), "float32"), TensorSpec("*x", (6,), "float32"))
    assert list(role_overrides(odd, rfc.CodecConfig(exclude="[*]?")).exclusions) == [0]
    assert list(role_overrides(odd, rfc.CodecConfig(exclude="[*]x")).exclusions) == [1]
