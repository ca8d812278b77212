"""Models on a CUDA device: the same bytes and models as on the host, without copies to the host.

With a GPU these tests use torch tensors and two other kinds of arrays. In the emulated build
(`make test-emulated`) they use the latter; see tests/support/gpu.py.
"""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import device_library
import resfed_codec as rfc
from gpu import LIBRARIES, ONE, REAL_TORCH, Gpu, Twin, needs_cuda, needs_torch
from models import FLOATS, INTEGERS, State, assert_same, cnn_pair, options, pairs
from published_rules import moved, random_model
from resfed_codec import _native
from resfed_codec.codec.update import encode_and_recover

try:
    import torch

    import emulated_torch
except ImportError:
    pass

pytestmark = [pytest.mark.cuda, needs_cuda]


@pytest.fixture(params=LIBRARIES)
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(request.param, monkeypatch)


one_gpu = pytest.mark.parametrize("gpu", ONE, indirect=True)


def test_available() -> None:
    assert rfc.cuda_available()
    rfc.release_workspace()


# ---- encode and decode


def check(gpu: Gpu, state: Any, reference: Any, **config: Any) -> bytes:
    """Encode and decode on device and host, compare, and return the payload."""
    payload, recovered = encode_and_recover(state, reference, **config)
    on_device, base = gpu.state(state), gpu.state(reference)
    there, recovered_there = encode_and_recover(on_device, base, **config)
    assert there == payload
    assert_same(gpu.host(recovered_there), recovered)
    assert_same(gpu.host(rfc.decode(payload, base)), recovered)
    assert_same(gpu.host(base, result=False), reference, "the reference")
    assert_same(gpu.host(on_device, result=False), state, "the state")
    return payload


@one_gpu
@given(pairs(), options())
def test_same_as_on_the_host(gpu: Gpu, pair: tuple[State, State], config: dict[str, Any]) -> None:
    payload = check(gpu, *pair, **config)
    out = gpu.empty_like(pair[1])
    assert rfc.decode(payload, out, out=out) is out
    assert_same(gpu.host(out, result=False), rfc.decode(payload, pair[1]))


@one_gpu
@settings(max_examples=20)
@given(pairs(FLOATS + INTEGERS), st.sampled_from([(), ("*",)]))
def test_dense_and_excluded(gpu: Gpu, pair: tuple[State, State], exclude: tuple[str, ...]) -> None:
    if pair[0]:
        check(gpu, *pair, dense=("*",), exclude=exclude, dense_bits=5)


CONFIGS: list[dict[str, Any]] = [
    {},
    {"sparsity": 0.9, "step": 2.0},
    {"sparsity": 0.5, "bits": 4},
    {"sparsity": 0.0},
    {"sparsity": 1.0},
    {"max_bytes": 300},
    {"max_error": 0.3},
    {"exclude": ("w*",)},
    {"dense": ("w16", "bias", "wb"), "dense_bits": 6},
]


@one_gpu
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_all_dtypes(gpu: Gpu, config: dict[str, Any], rng: np.random.Generator) -> None:
    reference = random_model(rng)
    for state in (moved(reference, rng), reference):
        check(gpu, state, reference, **config)


def test_network_with_running_statistics(gpu: Gpu, rng: np.random.Generator) -> None:
    state, reference = cnn_pair(rng)
    check(gpu, state, reference, sparsity=0.9)
    on_device, base = gpu.state(state), gpu.state(reference)
    assert rfc.encode(on_device, base) == rfc.encode(state, reference)


@one_gpu
def test_more_than_one_slice_and_chunk(gpu: Gpu, rng: np.random.Generator) -> None:
    reference = {"w": rng.standard_normal((300, 700), np.float32), "b": np.zeros(70000, np.float16)}
    payload = check(gpu, moved(reference, rng), reference, sparsity=0.5)
    assert len(rfc.inspect(payload).lossy_slices) > 2


@one_gpu
def test_ties(gpu: Gpu, rng: np.random.Generator) -> None:
    reference = [np.zeros((90, 800), np.float32)]
    state = [np.where(rng.random((90, 800)) < 0.3, 1, -1).astype(np.float32)]
    for sparsity in (0.3, 0.999):
        check(gpu, state, reference, sparsity=sparsity)


@pytest.mark.parametrize(
    "model",
    [
        {},
        [],
        [np.zeros((0, 4), np.float32)],
        [np.array(2.5)],
        {"b": np.array(True), "": np.ones(1)},
    ],
    ids=str,
)
def test_small_models(gpu: Gpu, model: Any) -> None:
    check(gpu, model, model)


@one_gpu
def test_real_update(gpu: Gpu, snapshots: dict[str, State]) -> None:
    check(gpu, snapshots["l0_5"], snapshots["g4"], sparsity=0.99)


def test_out(gpu: Gpu, rng: np.random.Generator) -> None:
    state, reference = cnn_pair(rng)
    payload, recovered = encode_and_recover(state, reference)
    out = gpu.empty_like({n: np.zeros_like(v) for n, v in reference.items()})
    assert rfc.decode(payload, gpu.state(reference), out=out) is out
    assert_same(gpu.host(out), recovered)


def test_callers_own_the_results(gpu: Gpu, rng: np.random.Generator) -> None:
    """Writing to a result does not change the decoder; copy=False returns the decoder's memory."""
    state, reference = cnn_pair(rng)
    encoder, decoder = rfc.Encoder(reference), rfc.Decoder(gpu.state(reference))
    payload = encoder.encode(state)
    own = decoder.decode(payload)
    mine = decoder.decode(payload, copy=False)
    for value in own.values():
        overwrite(value)
    assert_same(gpu.host(decoder.state), encoder.state)
    assert_same(gpu.host(mine), encoder.state)
    again = decoder.decode(payload, copy=False)
    addresses = [memory_of(model["fc.bias"]).pointer for model in (mine, again, own)]
    assert addresses[0] == addresses[1] != addresses[2]


def memory_of(value: Any) -> _native.DeviceArray:
    return _native.DeviceArray.from_dlpack(value.__dlpack__(stream=1))


def overwrite(value: Any) -> None:
    memory = memory_of(value)
    _native.copy_to_device(np.full(memory.nbytes, 7, np.uint8), memory, 0)


# ---- keyframes, streams, the mean


@pytest.mark.parametrize("mantissa_bits", [None, 4])
def test_keyframes(gpu: Gpu, mantissa_bits: int | None, rng: np.random.Generator) -> None:
    model = random_model(rng)
    payload = rfc.encode_keyframe(model, mantissa_bits=mantissa_bits)
    assert rfc.encode_keyframe(gpu.state(model), mantissa_bits=mantissa_bits) == payload
    like = gpu.state({name: np.zeros_like(value) for name, value in model.items()})
    expected = rfc.decode_keyframe(payload, model)
    assert_same(gpu.host(rfc.decode_keyframe(payload, like)), expected)
    out = gpu.empty_like(model)
    assert rfc.decode_keyframe(payload, like, out=out) is out
    assert_same(gpu.host(out), expected)


PREDICTORS = ["previous", "adaptive", rfc.LinearPredictor((2, -1))]


@one_gpu
@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("predictor", PREDICTORS, ids=str)
def test_streams(gpu: Gpu, predictor: Any, feedback: bool, rng: np.random.Generator) -> None:
    check_stream(gpu, predictor, feedback, rng)


def test_streams_of_each_kind(gpu: Gpu, rng: np.random.Generator) -> None:
    check_stream(gpu, "adaptive", True, rng)


def check_stream(gpu: Gpu, predictor: Any, feedback: bool, rng: np.random.Generator) -> None:
    """Compare both ends on device and host; save on one kind of memory and restore on the other."""
    initial = random_model(rng)
    config = rfc.CodecConfig(sparsity=0.8, predictor=predictor, error_feedback=feedback)
    encoder = Twin(gpu, rfc.Encoder(initial, config), rfc.Encoder(gpu.state(initial), config))
    decoder = Twin(gpu, rfc.Decoder(initial), rfc.Decoder(gpu.state(initial)))
    state = initial
    for number in range(6):
        state = moved(state, rng)
        recovered = decoder.decode(encoder.encode(state))
        assert_same(recovered, encoder.state, f"version {number}")
        if number == 2:
            for end in (encoder, decoder):
                end.load_state_dict(end.state_dict())
        if number == 3:
            encoder.device = pickle.loads(pickle.dumps(encoder.device))
            decoder.device = copy.deepcopy(decoder.device)
    late = Twin(gpu, rfc.Decoder(initial), rfc.Decoder(gpu.state(initial)))
    assert_same(late.decode(encoder.keyframe()), encoder.state)
    with pytest.raises(rfc.StateMismatchError) as caught:
        rfc.Decoder(gpu.state(initial)).decode(encoder.encode(moved(state, rng)))
    late.decode(encoder.answer(caught.value.request))
    assert_same(late.state, encoder.state)


def test_mean(gpu: Gpu, rng: np.random.Generator) -> None:
    reference = random_model(rng)
    mean = Twin(gpu, rfc.Aggregator(reference), rfc.Aggregator(gpu.state(reference)))
    for weight in (1.0, 2.5, 300):
        mean.add(rfc.encode(moved(reference, rng), reference, sparsity=0.8), weight)
        mean.add_state(moved(reference, rng), weight)
    assert mean.count == 6
    mean.result()
    mean.reset(moved(reference, rng))
    mean.add_state(moved(reference, rng))
    mean.result()


# ---- CUDA streams


def test_work_goes_to_the_current_stream(
    gpu: Gpu, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    encode, decode = _native.encode_on_device, _native.decode_on_device
    monkeypatch.setattr(_native, "encode_on_device", lambda *a: (used.append(a[-2]), encode(*a))[1])
    monkeypatch.setattr(_native, "decode_on_device", lambda *a: (used.append(a[-2]), decode(*a))[1])
    state, reference = cnn_pair(rng)
    on_device, base = gpu.state(state), gpu.state(reference)
    with current_stream(gpu, monkeypatch) as stream:
        rfc.decode(rfc.encode(on_device, base), base)
    assert used == [stream, stream]


class current_stream:  # noqa: N801 - a context manager
    """A stream of the array library if it has streams, else the legacy default stream."""

    def __init__(self, gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gpu, self.monkeypatch = gpu, monkeypatch

    def __enter__(self) -> int:
        self.context: Any = nullcontext()
        if self.gpu.library != "torch":
            # CUDA has two numbers for the legacy default stream.
            legacy = 1
            self.monkeypatch.setattr(device_library.cuda, "stream", device_library.Stream(legacy))
            return torch.cuda.current_stream().cuda_stream if REAL_TORCH else legacy
        if not REAL_TORCH:
            emulated_torch.install(self.monkeypatch, stream=77)  # the emulator ignores it
            return 77
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        self.context = torch.cuda.stream(stream)
        self.context.__enter__()
        return int(stream.cuda_stream)

    def __exit__(self, *error: Any) -> None:
        self.context.__exit__(*error)


def test_waits_for_unknown_streams(
    gpu: Gpu, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For libraries with unknown or other streams, results are complete when the call returns."""
    waits = []
    wait = _native.wait
    monkeypatch.setattr(_native, "wait", lambda *a: (waits.append(a), wait(*a))[1])
    state, reference = cnn_pair(rng)
    rfc.decode(rfc.encode(state, reference), gpu.state(reference))
    assert bool(waits) == (gpu.library == "other")


# ---- torch parameters


@needs_torch
def test_torch_parameters_and_views(rng: np.random.Generator) -> None:
    layer = torch.nn.Linear(30, 20).cuda()
    reference = {n: p.detach().clone() for n, p in layer.named_parameters()}
    with torch.no_grad():
        for p in layer.parameters():
            p += 0.01 * torch.randn_like(p)
    payload = rfc.encode(dict(layer.named_parameters()), reference, sparsity=0.5)
    decoded = rfc.decode(payload, reference)
    assert not decoded["weight"].requires_grad
    assert decoded["weight"].device == reference["weight"].device
    rfc.decode(payload, reference, out=dict(layer.named_parameters()))
    assert torch.equal(layer.weight, decoded["weight"])


# ---- without a device


def test_without_torch_and_cupy() -> None:
    """Only DeviceArrays, in a process that cannot import torch or CuPy."""
    code = """
import sys
sys.modules["torch"] = sys.modules["cupy"] = None
import numpy as np, resfed_codec as rfc
from resfed_codec import _native
reference = _native.empty_on_device((4, 5), "float32", 0)
_native.copy_to_device(np.zeros((4, 5), np.float32), reference, 0)
state = _native.empty_on_device((4, 5), "float32", 0)
_native.copy_to_device(np.arange(20, dtype=np.float32).reshape(4, 5), state, 0)
(decoded,) = rfc.decode(rfc.encode([state], [reference], sparsity=0.5), [reference])
result = np.empty((4, 5), np.float32)
_native.copy_to_host(decoded, result, 0)
assert np.count_nonzero(result) == 10
assert repr(decoded) == "<DeviceArray of float32 [4, 5] on cuda:0>"
"""
    subprocess.run([sys.executable, "-c", code], check=True)
