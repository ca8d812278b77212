"""Complex numbers and floats of few bits are coded as raw bits, in every kind of payload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import resfed_codec as rfc
from resfed_codec import reference as slow
from resfed_codec.tensors.dtypes import PATTERNS, SUPPORTED

FORMAT = Path(__file__).parents[2] / "docs" / "format.md"
NUMPY_DTYPES = [
    np.dtype(getattr(ml_dtypes, name, getattr(np, name, None)))
    for name in sorted(PATTERNS)
    if hasattr(ml_dtypes, name) or hasattr(np, name)
]
SHAPES = [(), (0,), (3, 0), (7,), (5, 6)]


def bits_of(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def model(dtype: np.dtype[Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random bits, including NaN and negative zeros, and a float tensor."""
    state: dict[str, np.ndarray] = {"w": rng.standard_normal((20, 30)).astype(np.float32)}
    for i, shape in enumerate(SHAPES):
        data = rng.bytes(dtype.itemsize * int(np.prod(shape)))
        state[f"x{i}"] = np.frombuffer(data, dtype).reshape(shape)
    return state


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    for name in b:
        if name != "w":
            assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
            assert bits_of(a[name]) == bits_of(b[name]), name


@pytest.mark.parametrize("dtype", NUMPY_DTYPES, ids=str)
def test_lossless_in_every_payload(dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    if dtype.name == "bfloat16":
        pytest.skip("a float of the codec")
    reference, state = model(dtype, rng), model(dtype, rng)
    payload = rfc.encode(state, reference)
    assert_same(rfc.decode(payload, reference), state)
    assert payload == slow.encode(state, reference)
    out = {name: np.empty_like(array) for name, array in reference.items()}
    assert_same(rfc.decode(payload, reference, out=out), state)

    keyframe = rfc.encode_keyframe(state, mantissa_bits=3)
    assert_same(rfc.decode_keyframe(keyframe, reference), state)
    assert keyframe == slow.encode_keyframe(state, mantissa_bits=3)
    again = slow.decode_keyframe(keyframe, reference)
    assert all(bits_of(again[name]) == bits_of(state[name]) for name in state if name != "w")

    server, client = rfc.ServerSession(reference), rfc.ClientSession(reference)
    for _ in range(3):
        local = model(dtype, rng)
        assert_same(server.receive("c", client.send(local)), local)
        server.update(local)
        assert_same(client.receive(server.send("c")), local)
        server.load_state_dict(server.state_dict())
    encoder, decoder = rfc.Encoder(reference), rfc.Decoder(reference)
    assert_same(decoder.decode(encoder.encode(state)), state)


def test_strided_complex_and_names(rng: np.random.Generator) -> None:
    state = {"z": (rng.standard_normal((6, 4)) + 1j * rng.standard_normal((6, 4))).T}
    reference = {"z": np.zeros((4, 6), complex)}
    assert np.array_equal(rfc.decode(rfc.encode(state, reference), reference)["z"], state["z"])
    info = rfc.inspect(rfc.encode(state, reference))
    assert (info.n_lossless, info.n_changed) == (48, 48)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float4_e2m1fn", "int4"])
def test_no_mean_of_low_precision_floats(dtype: str) -> None:
    reference = {"z": np.zeros(3, getattr(ml_dtypes, dtype))}
    with pytest.raises(TypeError, match=f"reference: tensor 'z': {dtype} has no mean here"):
        rfc.Aggregator(reference)


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "complex32", "bcomplex32"])
def test_mean_of_complex(dtype: str, rng: np.random.Generator) -> None:
    """Real and imaginary parts average as floats; the result does not depend on the order."""
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))

    def one() -> dict[str, np.ndarray]:
        z = rng.standard_normal((5, 7)) + 1j * rng.standard_normal((5, 7))
        return {
            "w": rng.standard_normal((9, 9)).astype(np.float32),
            "z": z.astype(kind),
            "n": rng.integers(-9, 9, 4),
        }

    reference, states = one(), [one() for _ in range(3)]
    weights = [1, 2.5, 3]
    forward, backward, plain = (rfc.Aggregator(reference) for _ in range(3))
    for aggregator, order in ((forward, [0, 1, 2]), (backward, [2, 0, 1])):
        for i in order:
            aggregator.add(rfc.encode(states[i], reference), weights[i])
    for state, weight in zip(states, weights, strict=True):
        plain.add_state(state, weight)
    mean = forward.result()["z"]
    assert mean.dtype == kind
    assert bits_of(mean) == bits_of(backward.result()["z"]) == bits_of(plain.result()["z"])
    total = sum(weights)
    exact = sum(
        w * s["z"].astype(complex) for w, s in zip(weights, states, strict=True)
    ) / total  # fmt: skip
    tolerance = {"complex128": 1e-14, "complex64": 1e-6, "complex32": 2e-3}.get(dtype, 2e-2)
    np.testing.assert_allclose(mean.astype(complex), exact, rtol=tolerance, atol=tolerance)


def test_not_finite_complex_names_the_tensor() -> None:
    reference = {"z": np.zeros(3, np.complex64)}
    aggregator = rfc.Aggregator(reference)
    with pytest.raises(ValueError, match="tensor 'z'"):
        aggregator.add_state({"z": np.full(3, np.nan * 1j, np.complex64)})


def torch_pairs() -> list[tuple[str, np.dtype[Any]]]:
    torch = pytest.importorskip("torch")
    return [(d.name, d) for d in NUMPY_DTYPES if hasattr(torch, d.name)]


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_torch_and_numpy_make_the_same_bytes(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")

    def as_torch(array: np.ndarray, name: str) -> Any:
        if array.size == 0:
            return torch.empty(array.shape, dtype=getattr(torch, name))
        if name == "complex32":
            halves = torch.from_numpy(array.reshape(*array.shape, 1).view(np.float16).copy())
            return torch.view_as_complex(halves)
        if array.dtype.kind in "fc" and array.dtype.isbuiltin == 1:
            return torch.from_numpy(array.copy())
        raw = array.view(np.uint16 if array.itemsize == 2 else np.uint8).copy()
        return torch.from_numpy(raw).view(getattr(torch, name))

    pairs = torch_pairs()
    assert {"complex64", "complex128", "float8_e5m2", "int4"} <= {name for name, _ in pairs}
    for name, dtype in pairs:
        states = [model(dtype, rng) for _ in range(2)]
        tensors = [{n: as_torch(a, a.dtype.name) for n, a in s.items()} for s in states]
        payload = rfc.encode(*states)
        assert rfc.encode(*tensors) == payload, name
        assert rfc.encode_keyframe(tensors[0]) == rfc.encode_keyframe(states[0])
        decoded = rfc.decode(payload, tensors[1])
        assert all(decoded[n].dtype == tensors[0][n].dtype for n in decoded)
        assert rfc.encode_keyframe(decoded) == rfc.encode_keyframe(rfc.decode(payload, states[1]))
        session = rfc.ServerSession(tensors[1])
        session.update(tensors[0])
        copied = rfc.ServerSession(tensors[1])
        copied.load_state_dict(session.state_dict())
        assert all(copied.state[n].dtype == tensors[0][n].dtype for n in decoded)


def test_conjugate_views() -> None:
    torch = pytest.importorskip("torch")
    z = torch.complex(torch.arange(6.0), torch.ones(6))
    reference = {"z": torch.zeros(6, dtype=torch.complex64)}
    decoded = rfc.decode(rfc.encode({"z": z.conj()}, reference), reference)
    assert torch.equal(decoded["z"], z.conj().resolve_conj())
    with pytest.raises(ValueError, match="out: tensor 'z' is not C-contiguous"):
        rfc.decode(rfc.encode({"z": z}, reference), reference, out={"z": z.conj()})


def test_table_in_format_md() -> None:
    text = FORMAT.read_text("utf-8")
    in_ranges = {f"{sign}int{bits}" for sign in ("", "u") for bits in (*range(1, 8), 16, 32)}
    assert [name for name in sorted(SUPPORTED - in_ranges) if f"`{name}`" not in text] == []
