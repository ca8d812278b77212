"""Fixtures of tests marked `cuda`: kinds of device arrays, and objects on both host and device."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

import device_library
import resfed_codec as rfc
from models import assert_same
from resfed_codec import _native

try:
    import torch

    import emulated_torch
except ImportError:
    torch = None  # type: ignore[assignment]

REASON = _native.cuda_unavailable_reason()
EMULATED = not REASON and _native.cuda_is_emulated()
REAL_TORCH = torch is not None and not REASON and not EMULATED and torch.cuda.is_available()

needs_cuda = pytest.mark.skipif(bool(REASON), reason=f"resfed_codec has no CUDA here: {REASON}")
needs_emulator = pytest.mark.skipif(
    not EMULATED, reason="memory can be limited in the emulator only; `make test-emulated`"
)
needs_torch = pytest.mark.skipif(not REAL_TORCH, reason="torch has no CUDA here")

LIBRARIES = ["cupy", "other"] + (["torch"] if REAL_TORCH or (torch and EMULATED) else [])


ONE = LIBRARIES[-1:] if EMULATED else LIBRARIES
"""For tests that are slow in the emulator and do not depend on the kind of arrays."""


class Gpu:
    """A kind of device arrays: torch's, those of a library like CuPy, or of another library.

    Results for the other library, whose arrays are read-only, are DeviceArrays.
    """

    def __init__(self, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.library = library
        device_library.install_as_cupy(monkeypatch)
        if library == "torch":
            self.result_type: type = torch.Tensor if REAL_TORCH else emulated_torch.CudaTensor
            if not REAL_TORCH:
                emulated_torch.install(monkeypatch)
        else:
            self.result_type = device_library.ndarray if library == "cupy" else rfc.DeviceArray

    def array(self, array: Any) -> Any:
        """Copy a host array to the device."""
        array = np.asarray(array)
        if self.library == "torch" and not REAL_TORCH:
            return emulated_torch.to_device(array)
        if self.library == "torch":
            raw = array.view(np.uint16) if array.dtype.name == "bfloat16" else array
            tensor = torch.from_numpy(np.array(raw)).cuda()
            return tensor.view(torch.bfloat16) if array.dtype.name == "bfloat16" else tensor
        kind = device_library.ndarray if self.library == "cupy" else device_library.Array
        return kind(device_library.to_device(array))

    def state(self, state: Any) -> Any:
        """Copy a state of host arrays to the device."""
        if isinstance(state, dict):
            return {name: self.array(value) for name, value in state.items()}
        return [self.array(value) for value in state]

    def empty_like(self, state: Any) -> Any:
        """Writable arrays of the same shapes."""
        new = self.state(state)
        if self.library != "other":
            return new
        if isinstance(new, dict):
            return {name: value.memory for name, value in new.items()}
        return [value.memory for value in new]

    def host_array(self, value: Any) -> np.ndarray:
        if self.library != "torch" or not REAL_TORCH:
            return device_library.to_host(value)
        assert value.is_cuda
        is_bfloat16 = value.dtype == torch.bfloat16
        array: np.ndarray = (value.view(torch.uint16) if is_bfloat16 else value).cpu().numpy()
        return array.view(device_library.BFLOAT16) if is_bfloat16 else array

    def host(self, state: Any, *, result: bool = True) -> Any:
        """Copy a state to host arrays; ``result``: the codec returned it."""
        values = list(state.values() if isinstance(state, dict) else state)
        for value in values if result else ():
            assert type(value) is self.result_type
        arrays = [self.host_array(value) for value in values]
        return dict(zip(state, arrays, strict=True)) if isinstance(state, dict) else arrays


class Twin:
    """Two copies of an object, for models on the host and on the device.

    A call goes to both; the second gets its models on the device. Both must have the same result:
    bytes, models or error. The call returns or raises what the first one did.
    """

    def __init__(self, gpu: Gpu, host: Any, device: Any) -> None:
        self.gpu, self.host, self.device = gpu, host, device

    def __getattr__(self, name: str) -> Any:
        host, device = getattr(self.host, name), getattr(self.device, name)
        if not callable(host):
            return self._same(host, device)
        return partial(self._call, name)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        host = partial(getattr(self.host, name), *map(_of_host, args), **kwargs)
        device = partial(getattr(self.device, name), *map(self._of_device, args), **kwargs)
        try:
            expected = host()
        except (ValueError, TypeError) as caught:
            error = caught
        else:
            return self._same(expected, device())
        with pytest.raises(type(error)) as other:
            device()
        assert str(other.value) == str(error)
        assert getattr(other.value, "request", b"") == getattr(error, "request", b"")
        raise error

    def _of_device(self, value: Any) -> Any:
        if isinstance(value, Twin):
            return value.device
        return self.gpu.state(value) if _is_state(value) else value

    def _same(self, expected: Any, actual: Any) -> Any:
        if isinstance(expected, rfc.Aggregator):
            return Twin(self.gpu, expected, actual)
        if not _is_state(expected):
            assert type(actual) is type(expected)
            assert actual == expected
        elif "structure" in expected:  # a state_dict is on the host for both
            assert_same(dict(actual), expected)
        else:
            assert_same(self.gpu.host(actual), expected)
        return expected

    def state_dict(self) -> dict[str, Any]:
        """The same host arrays for both."""
        expected = self.host.state_dict()
        actual = {name: np.asarray(value) for name, value in self.device.state_dict().items()}
        assert_same(actual, expected)
        return expected  # type: ignore[no-any-return]

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.host.load_state_dict(saved)
        self.device.load_state_dict(saved)


def _of_host(value: Any) -> Any:
    return value.host if isinstance(value, Twin) else value


def _is_state(value: Any) -> bool:
    arrays = value.values() if isinstance(value, dict) else value
    return isinstance(value, (dict, list)) and all(isinstance(a, np.ndarray) for a in arrays)
