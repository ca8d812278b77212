"""torch tensors that use the emulated CUDA device's memory.

They report a CUDA device. :func:`install` replaces the functions of torch with which the codec
creates CUDA tensors and gets the current stream. This tests the codec's code for torch, but not
torch's behavior on a real device.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from resfed_codec import _native


class CudaTensor(torch.Tensor):
    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", 0)

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def contiguous(self) -> CudaTensor:  # type: ignore[override]
        if self.is_contiguous():
            return self
        # Host code cannot read device memory: copy the whole storage to the host and back.
        storage = self.untyped_storage()
        raw = _native.DeviceArray.from_pointer(
            storage.data_ptr(), (storage.nbytes(),), "uint8", 0, self
        )
        host = np.empty(storage.nbytes(), np.uint8)
        _native.copy_to_host(raw, host, 0)
        there = torch.from_numpy(host).view(self.dtype)
        there = there.as_strided(self.shape, self.stride(), self.storage_offset()).contiguous()
        new = empty(tuple(self.shape), dtype=self.dtype, device="cuda:0")
        _native.copy_to_device(there.view(torch.uint8).numpy(), _memory_of(new), 0)
        return new

    def __dlpack__(self, *, stream: int | None = None) -> Any:  # type: ignore[override]
        return _memory_of(self).__dlpack__()

    def __dlpack_device__(self) -> Any:
        return _memory_of(self).__dlpack_device__()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _memory_of(tensor: torch.Tensor) -> _native.DeviceArray:
    assert tensor.is_contiguous()
    shape, dtype = tuple(tensor.shape), _name(tensor.dtype)
    return _native.DeviceArray.from_pointer(tensor.data_ptr(), shape, dtype, 0, tensor)


def tensor_over(memory: _native.DeviceArray) -> CudaTensor:
    dtype = getattr(torch, memory.dtype)
    if memory.nbytes == 0:
        return torch.zeros(memory.shape, dtype=dtype).as_subclass(CudaTensor)
    buffer = (ctypes.c_char * memory.nbytes).from_address(memory.pointer)
    buffer.memory = memory  # type: ignore[attr-defined]  # lives as long as the tensor's storage
    tensor = torch.frombuffer(buffer, dtype=dtype).view(memory.shape)
    return tensor.as_subclass(CudaTensor)


def empty(shape: tuple[int, ...], *, dtype: torch.dtype, device: str) -> CudaTensor:
    assert device == "cuda:0"
    try:
        return tensor_over(_native.empty_on_device(shape, _name(dtype), 0))
    except _native.NativeError as error:
        raise torch.OutOfMemoryError("CUDA out of memory, says torch") from error


def from_dlpack(capsule: Any) -> CudaTensor:
    return tensor_over(_native.DeviceArray.from_dlpack(capsule))


def install(monkeypatch: pytest.MonkeyPatch, stream: int = 0) -> None:
    """Replace torch's functions until the test ends; ``stream`` is the current stream."""
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch, "from_dlpack", from_dlpack)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=stream)
    )


def to_device(array: np.ndarray) -> CudaTensor:
    memory = _native.empty_on_device(array.shape, array.dtype.name, 0)
    _native.copy_to_device(np.asarray(array, order="C"), memory, 0)
    return tensor_over(memory)
