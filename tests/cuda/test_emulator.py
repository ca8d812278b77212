"""Faults that only the emulated device detects: out-of-bounds accesses, failed calls, stream order.

RESFED_EMULATOR (tests/emulator/cuda_runtime.h) sets properties of the device for the process;
`make test-emulated` runs the tests of kernels with several settings.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import device_library
import resfed_codec as rfc
from device_cases import Case, bytes_of, random_pair
from gpu import Gpu, needs_cuda, needs_emulator
from models import assert_same, cnn_pair
from published_rules import moved
from resfed_codec import _native

torch = pytest.importorskip("torch")
import emulated_torch  # noqa: E402

pytestmark = [pytest.mark.cuda, needs_cuda, needs_emulator]

NEVER = 2**64 - 1
late = pytest.mark.skipif(
    "at-once" in os.environ.get("RESFED_EMULATOR", ""), reason="nothing waits in this mode"
)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """Arrays of the emulated torch."""
    return Gpu("torch", monkeypatch)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    for setting in ("memory_limit", "fail_in", "capturing"):
        _native.emulate(setting, NEVER)


def run(code: str, mode: str = "") -> subprocess.CompletedProcess[str]:
    """Run Python code in a new process that can import the test modules."""
    paths = os.pathsep.join(sys.path)
    environment = {**os.environ, "PYTHONPATH": paths, "RESFED_EMULATOR": mode}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )


# ---- memory

FORGED = """
import numpy as np, resfed_codec as rfc
from resfed_codec import _native
from device_cases import Case, random_pair
case = Case(*random_pair({"a": (90, 111)}), sparsity=0.3)
case.options.lane_log2 = 6
payload = case.encode(on_device=False).payload
inspected = rfc.inspect(payload)
assert len(inspected.lossy_slices) > 2
for at in range(len(payload) - 4 - sum(inspected.lossy_slices), len(payload) - 4, 401):
    forged = bytearray(payload)
    forged[at : at + 8] = b"\\xff" * 8
    forged[-4:] = _native.crc32c(bytes(forged[:-4])).to_bytes(4, "little")
    for _ in range(2):
        result = case.decode(bytes(forged), on_device=True)
        assert result.error[0] == case.decode(bytes(forged), on_device=False).error[0], at
print("refused")
"""


@pytest.mark.parametrize("mode", ["", "zeros", "ones", "stale", "zeros,at-once,blocks"])
def test_forged_payloads_with_any_memory_contents(mode: str) -> None:
    """Corrupt slices leave symbols uninitialized; no kernel may use them as indices."""
    done = run(FORGED, mode)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr


def test_an_out_of_bounds_access_of_a_kernel() -> None:
    done = run("""
import numpy as np
from resfed_codec import _native
from resfed_codec.codec.native_call import tensors_of
from device_cases import Case, random_pair, to_device
case = Case(*random_pair({"a": (64, 65)}), sparsity=0.9)
short = to_device(case.base[0][:32])
longer = _native.DeviceArray.from_pointer(short.pointer, (64, 65), "float32", 0, short)
current = [to_device(case.current[0])]
tensors = tensors_of(case.specs, case.roles, [longer], current=current)
_native.encode_on_device(tensors, case.options, 0, 0)
""")
    assert done.returncode == -signal.SIGSEGV
    assert "a kernel accesses memory outside its allocations" in done.stderr


def test_host_code_that_reads_device_memory() -> None:
    done = run("""
import ctypes
from resfed_codec import _native
array = _native.empty_on_device((4,), "float32", 0)
ctypes.string_at(array.pointer, 4)
""")
    assert done.returncode == -signal.SIGSEGV
    assert "host code accesses device memory" in done.stderr


# ---- failing calls of the CUDA runtime


LARGE, SMALL = {"a": (70, 100), "b": (9,)}, {"a": (4, 5), "b": (3,)}


@pytest.mark.parametrize(
    ("shapes", "config"),
    [
        (LARGE, {}),
        (LARGE, {"exclude": "a"}),
        (SMALL, {"max_bytes": 70}),
        (SMALL, {"max_error": 0.5}),
    ],
    ids=str,
)
def test_every_call_fails_once(shapes: dict[str, Any], config: dict[str, Any]) -> None:
    """The call raises, changes nothing before its final writes, and the next call succeeds."""
    case = Case(*random_pair(shapes), feedback=True, **config)
    expected = case.encode(on_device=False)
    _native.release_workspace()
    before = Case.encode(case, on_device=True, in_place=True)
    _native.release_workspace()
    assert before == expected
    n_failures, changed = 0, []
    while True:
        tensors, arrays = case.tensors(on_device=True)
        held = bytes_of(arrays)
        _native.emulate("fail_in", n_failures)
        try:
            payload = _native.encode_on_device(tensors, case.options, 0, 0)
        except (_native.NativeError, MemoryError):
            left = _native.emulate("fail_in", NEVER)
            assert left == NEVER  # the error reports this failure
        else:
            assert _native.emulate("fail_in", NEVER) != NEVER
            break
        changed.append(bytes_of(arrays) != held)
        n_failures += 1
        if n_failures % 5 == 0:
            assert case.encode(on_device=True) == case.encode(on_device=False)
        _native.release_workspace()
    assert payload == expected.payload
    assert n_failures >= 8
    assert not any(changed[:-4])


def test_errors_have_names(gpu: Gpu, rng: np.random.Generator) -> None:
    state, reference = cnn_pair(rng)
    on_device, base = gpu.state(state), gpu.state(reference)
    rfc.encode(on_device, base)
    _native.emulate("fail_in", 3)
    with pytest.raises(RuntimeError, match=r"CUDA: .* \(emulated\) \(error \d+\)"):
        rfc.encode(on_device, base)
    assert rfc.encode(on_device, base) == rfc.encode(state, reference)


# ---- streams


@late
def test_memory_of_another_stream_is_idle(
    gpu: Gpu, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session may free memory of one stream after a call on another stream."""
    state, reference = cnn_pair(rng)
    encoder = rfc.Encoder(reference)
    first, second = encoder.encode(state), encoder.encode(moved(state, rng))
    emulated_torch.install(monkeypatch, stream=77)
    decoder, base = rfc.Decoder(gpu.state(reference)), gpu.state(reference)
    decoder.decode(first, copy=False)
    assert _native.emulate("waiting") > 0
    emulated_torch.install(monkeypatch, stream=78)
    assert_same(gpu.host(decoder.decode(second, copy=False)), encoder.state)
    decoder = rfc.Decoder(base)
    decoder.decode(first, copy=False)
    emulated_torch.install(monkeypatch, stream=79)
    decoder.decode(second, copy=False)
    assert _native.emulate("waiting") == 0


@late
def test_arrays_of_unknown_streams_are_idle(rng: np.random.Generator) -> None:
    """A library like JAX may reuse memory at any time."""
    reference = {"a": np.zeros((40, 50), np.float32)}
    state = {"a": rng.standard_normal((40, 50), dtype=np.float32)}
    config = rfc.CodecConfig(error_feedback=True)
    encoder = rfc.Encoder({k: device_library.to_device(v) for k, v in reference.items()}, config)
    given = {k: device_library.Array(device_library.to_device(v)) for k, v in state.items()}
    encoder.encode(given)
    assert _native.emulate("waiting") == 0


def test_a_stream_under_capture(
    gpu: Gpu, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, reference = cnn_pair(rng)
    encoder = rfc.Encoder(reference)
    emulated_torch.install(monkeypatch, stream=77)
    on_device, base = gpu.state(state), gpu.state(reference)
    there = rfc.Encoder(base)
    decoder = rfc.Decoder(base)
    payload, message = rfc.encode(state, reference), encoder.encode(state)
    _native.emulate("capturing", 77)
    for call in (
        lambda: rfc.encode(on_device, base),
        lambda: rfc.encode(on_device, base, max_bytes=1000),
        lambda: rfc.decode(payload, base, out=base),
        lambda: rfc.encode_keyframe(on_device),
        lambda: rfc.Encoder(base),
        lambda: there.encode(on_device),
        lambda: decoder.decode(message),
        lambda: decoder.state,
    ):
        with pytest.raises(RuntimeError, match="cuda:0 is being captured into a graph"):
            call()
    _native.emulate("capturing", NEVER)
    assert_same(gpu.host(base), reference)
    assert there.encode(on_device) == message
    assert_same(gpu.host(decoder.decode(message)), encoder.state)


def test_no_context_on_unused_devices() -> None:
    """A process that uses only the second device allocates nothing on the first."""
    done = run("""
import sys
sys.modules["torch"] = sys.modules["cupy"] = None
import numpy as np, resfed_codec as rfc
from resfed_codec import _native
def to_device(array):
    memory = _native.empty_on_device(array.shape, array.dtype.name, 1)
    _native.copy_to_device(array, memory, 0)
    return memory
reference, state = (to_device(np.full((40, 50), x, "f4")) for x in (0, 1))
rfc.decode(rfc.encode([state], [reference]), [reference], out=[reference])
rfc.release_workspace()
print(_native.emulate("contexts"))
""")
    assert done.stdout == "2\n", done.stderr


# ---- work and memory


def test_memory_comes_from_the_library(
    gpu: Gpu, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The codec allocates from torch's cache if torch holds all free memory."""
    state, reference = cnn_pair(rng)
    config = rfc.CodecConfig(error_feedback=True)
    payload, expected = rfc.encode(state, reference), rfc.Encoder(reference, config).encode(state)
    on_device, base = gpu.state(state), gpu.state(reference)
    rfc.release_workspace()
    cache = _native.empty_on_device((1 << 27,), "uint8", 0)
    used = 0

    def empty(shape: tuple[int, ...], *, dtype: Any, device: str) -> Any:
        nonlocal used
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        part = cache.flat(used, n_bytes)
        used += (n_bytes + 511) // 512 * 512
        name = str(dtype).removeprefix("torch.")
        return emulated_torch.tensor_over(
            _native.DeviceArray.from_pointer(part.pointer, shape, name, 0, part)
        )

    monkeypatch.setattr(torch, "empty", empty)
    _native.emulate("memory_limit", 0)
    assert rfc.encode(on_device, base) == payload
    assert used > 0
    assert rfc.Encoder(base, config).encode(on_device) == expected
    assert_same(gpu.host(rfc.decode(payload, base)), rfc.decode(payload, reference))
    _native.emulate("memory_limit", NEVER)
    rfc.release_workspace()
