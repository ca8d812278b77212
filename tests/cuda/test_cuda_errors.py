"""Errors with models on a CUDA device: they name the tensor and change nothing.

See tests/support/gpu.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import device_library
import resfed_codec as rfc
from gpu import LIBRARIES, ONE, Gpu, Twin, needs_cuda, needs_emulator
from models import State, assert_same, cnn_pair
from published_rules import moved
from resfed_codec import _native
from snapshots import snapshot

pytestmark = [pytest.mark.cuda, needs_cuda]


@pytest.fixture(params=LIBRARIES)
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(request.param, monkeypatch)


one_gpu = pytest.mark.parametrize("gpu", ONE, indirect=True)


def small(rng: np.random.Generator) -> tuple[State, State, bytes]:
    state, reference = cnn_pair(rng)
    return state, reference, rfc.encode(state, reference)


def test_two_devices_in_one_state(gpu: Gpu, rng: np.random.Generator) -> None:
    state, reference, payload = small(rng)
    mixed = {**gpu.state(reference), "norm.num_batches_tracked": np.array(24)}
    message = "reference: tensor 'conv.weight' lies on cuda:0 and tensor 'norm.num_.*' on cpu; all"
    for call in (
        lambda: rfc.encode(gpu.state(state), mixed),
        lambda: rfc.decode(payload, mixed),
        lambda: rfc.Aggregator(mixed),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match=r"initial_state: .*all must lie on one device"):
        rfc.Decoder(mixed)


def elsewhere(array: np.ndarray) -> rfc.DeviceArray:
    """An array that reports a second device."""
    memory = device_library.to_device(array)
    shape, dtype = memory.shape, memory.dtype
    return _native.DeviceArray.from_pointer(memory.pointer, shape, dtype, 1, memory)


def test_two_cuda_devices(gpu: Gpu, rng: np.random.Generator) -> None:
    _, reference, payload = small(rng)
    base = gpu.state(reference)
    mixed = {**base, "fc.bias": elsewhere(reference["fc.bias"])}
    with pytest.raises(ValueError, match=r"'conv.weight' lies on cuda:0 and .*bias' on cuda:1"):
        rfc.encode(mixed, base)
    other = {name: elsewhere(value) for name, value in reference.items()}
    with pytest.raises(ValueError, match=r"state: .*'conv.weight' lies on cuda:1, .* on cuda:0"):
        rfc.encode(other, base)
    with pytest.raises(ValueError, match=r"out: tensor 'conv.weight' lies on cuda:1, .* on cuda:0"):
        rfc.decode(payload, base, out=other)


def test_host_and_device(gpu: Gpu, rng: np.random.Generator) -> None:
    state, reference, payload = small(rng)
    on_device = gpu.empty_like(reference)
    session = rfc.ClientSession(on_device)
    for call in (
        lambda: rfc.encode(state, on_device),
        lambda: rfc.encode(on_device, reference),
        lambda: rfc.decode(payload, on_device, out=state),
        lambda: rfc.decode(payload, reference, out=on_device),
        lambda: rfc.decode_keyframe(rfc.encode_keyframe(state), reference, out=on_device),
        lambda: rfc.Encoder(on_device).encode(state),
        lambda: rfc.Aggregator(on_device).add_state(state),
        lambda: session.send(state),
    ):
        with pytest.raises(ValueError, match=r"'conv.weight' lies on (cpu|cuda:0), and that of"):
            call()
    assert_same(gpu.host(on_device, result=False), reference)


def test_layouts_that_differ(gpu: Gpu, rng: np.random.Generator) -> None:
    state, reference, payload = small(rng)
    other = {**reference, "fc.bias": reference["fc.bias"].astype(np.float16)}
    with pytest.raises(ValueError, match=r"'fc.bias' float16 \[10\] against 'fc.bias' float32"):
        rfc.encode(gpu.state(other), gpu.state(reference))
    with pytest.raises(rfc.StateMismatchError, match="made for another layout"):
        rfc.decode(payload, gpu.state(other))
    with pytest.raises(ValueError, match="out and reference differ"):
        rfc.decode(payload, gpu.state(reference), out=gpu.empty_like(other))
    with pytest.raises(rfc.StateMismatchError, match="against another reference"):
        rfc.decode(payload, gpu.state(state))


def test_not_finite(gpu: Gpu, rng: np.random.Generator) -> None:
    state, reference, _ = small(rng)
    state["fc.weight"][0, 13] = np.nan
    with pytest.raises(ValueError, match=r"'fc\.weight' at flat index 13 is not finite"):
        rfc.encode(gpu.state(state), gpu.state(reference))


@one_gpu
def test_damaged_payloads_change_nothing(gpu: Gpu, rng: np.random.Generator) -> None:
    """With a valid checksum, some corrupt payloads decode to another model, the same on both."""
    state, reference, payload = small(rng)
    base = gpu.empty_like(reference)
    for n in (*range(0, len(payload), 7), len(payload) - 1):
        with pytest.raises(rfc.PayloadError):
            rfc.decode(payload[:n], base, out=base)
    with pytest.raises(rfc.PayloadError):
        rfc.decode_keyframe(rfc.encode_keyframe(state)[:-9], base, out=base)
    both = Twin(gpu, OneModel(reference), OneModel(base))
    n_refused = 0
    for i in range(0, len(payload), 5):
        broken = bytearray(payload)
        broken[i] ^= 0x40
        try:
            both.decode(with_checksum(broken))
        except rfc.CodecError:
            n_refused += 1
            assert_same(gpu.host(base), reference, f"byte {i}")
        else:
            base = gpu.empty_like(reference)
            both.device.model = base
    assert n_refused > 10


class OneModel:
    def __init__(self, model: Any) -> None:
        self.model = model

    def decode(self, payload: bytes) -> Any:
        host = isinstance(self.model["fc.bias"], np.ndarray)
        return rfc.decode(payload, self.model, out=None if host else self.model)


def with_checksum(payload: bytearray) -> bytes:
    body = bytes(payload[:-4])
    return body + _native.crc32c(body).to_bytes(4, "little")


def test_arrays_that_are_not_contiguous(gpu: Gpu) -> None:
    host = np.arange(48, dtype=np.float32).reshape(4, 12)
    reference = [np.zeros((4, 6), np.float32)]
    if gpu.library == "torch":
        strided = gpu.array(host)[:, :6]
        expected = rfc.encode([np.ascontiguousarray(host[:, :6])], reference)
        assert rfc.encode([strided], gpu.state(reference)) == expected
    else:
        strided = device_library.Strided(device_library.to_device(host))
        with pytest.raises(ValueError, match="state: tensor '0' is not C-contiguous"):
            rfc.encode([strided], gpu.state(reference))
    payload = rfc.encode(reference, reference)
    with pytest.raises(ValueError, match="out: tensor '0' is not C-contiguous"):
        rfc.decode(payload, gpu.state(reference), out=[strided])


def test_read_only_arrays(gpu: Gpu) -> None:
    reference = [np.zeros((4, 6), np.float32)]
    payload = rfc.encode(reference, reference)
    locked = [device_library.Array(device_library.to_device(reference[0]))]
    with pytest.raises(ValueError, match="out: tensor '0' is read-only"):
        rfc.decode(payload, gpu.state(reference), out=locked)


def test_unsupported_dtypes() -> None:
    memory = device_library.to_device(np.zeros((2, 3), np.float32))

    class Complex(device_library.Array):
        def __dlpack__(self, *, stream: int | None = None) -> Any:
            capsule = super().__dlpack__(stream=stream)
            device_library.tensor_in(capsule).dtype[0] = 5
            return capsule

    with pytest.raises(TypeError, match="state: tensor 'w': dtype DLPack type 5 of 32 bits"):
        rfc.encode({"w": Complex(memory)}, {"w": memory})


def test_arrays_whose_dlpack_export_fails() -> None:
    memory = device_library.to_device(np.zeros((2, 3), np.float32))

    class Sharded(device_library.Array):
        def __dlpack__(self, *, stream: int | None = None) -> Any:
            raise BufferError("lies on several devices")

    with pytest.raises(TypeError, match="'w' cannot be exchanged by DLPack: lies on several"):
        rfc.encode({"w": Sharded(memory)}, {"w": memory})


# ---- out of memory


@pytest.fixture
def no_memory() -> Iterator[None]:
    """All later allocations on the device fail."""
    rfc.release_workspace()
    _native.emulate("memory_limit", 0)
    yield
    _native.emulate("memory_limit", 2**64 - 1)


@needs_emulator
def test_out_of_memory(gpu: Gpu, rng: np.random.Generator, request: pytest.FixtureRequest) -> None:
    state, reference, payload = small(rng)
    base = gpu.empty_like(reference)
    encoder, decoder = rfc.Encoder(reference), rfc.Decoder(base)
    decoder.decode(encoder.encode(state))
    new = moved(state, rng)
    second, before = encoder.encode(new), snapshot(decoder)
    config = rfc.CodecConfig(error_feedback=True)
    both = Twin(gpu, rfc.Encoder(reference, config), rfc.Encoder(base, config))
    both.encode(state)
    on_device = gpu.state(new)
    request.getfixturevalue("no_memory")
    for call in (
        lambda: rfc.decode(payload, base),
        lambda: rfc.decode_keyframe(rfc.encode_keyframe(state), base),
        lambda: rfc.Decoder(base),
        lambda: decoder.state,
        lambda: decoder.decode(second),
        lambda: rfc.encode(on_device, base),
        lambda: rfc.decode(payload, base, out=base),
        lambda: both.device.encode(on_device),
    ):
        with pytest.raises((MemoryError, RuntimeError), match="out of memory") as caught:
            call()
        if gpu.library == "other":
            assert re.search(r"cuda:0, where [\d,]+ bytes.*release_workspace", str(caught.value))
    _native.emulate("memory_limit", 2**64 - 1)
    assert_same(gpu.host(base), reference)
    assert_same(gpu.host(decoder.decode(second)), encoder.state)
    assert before != snapshot(decoder)
    both.encode(new)
    both.state_dict()  # compares the feedback, too
