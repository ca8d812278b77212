"""A minimal library of arrays on CUDA devices that replaces CuPy in tests.

:func:`install_as_cupy` installs it as the module "cupy", so the codec treats its arrays as CuPy's.
It uses memory and copies of resfed_codec's native module, so it also works on the emulated device.
"""

from __future__ import annotations

import ctypes
import sys
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from resfed_codec import _native

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def _dtype(name: str) -> np.dtype[Any]:
    return BFLOAT16 if name == "bfloat16" else np.dtype(name)


class Array:
    """An array with DLPack export."""

    def __init__(self, memory: _native.DeviceArray) -> None:
        self.memory = memory

    @property
    def dtype(self) -> np.dtype[Any]:
        return _dtype(self.memory.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.memory.shape

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        assert stream != 0, "0 is ambiguous: the protocol forbids it"
        return self.memory.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.memory.__dlpack_device__()


class ndarray(Array):  # noqa: N801 - CuPy's name
    """A writable array."""


ndarray.__module__ = "cupy"


class Strided(Array):
    """The first half of every row of a matrix."""

    @property
    def shape(self) -> tuple[int, ...]:
        rows, columns = self.memory.shape
        return rows, columns // 2

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        capsule = super().__dlpack__(stream=stream)
        tensor = tensor_in(capsule)
        tensor.shape[1] //= 2
        self._strides = (ctypes.c_int64 * 2)(self.memory.shape[1], 1)
        tensor.strides = ctypes.cast(self._strides, ctypes.POINTER(ctypes.c_int64))
        return capsule


class _Tensor(ctypes.Structure):
    """DLPack's DLTensor, the first member of a capsule's struct."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("n_dims", ctypes.c_int32),
        ("dtype", ctypes.c_uint8 * 4),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def tensor_in(capsule: Any) -> _Tensor:
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype = ctypes.c_void_p
    get_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
    address: int = get_pointer(capsule, b"dltensor")
    return _Tensor.from_address(address)


def to_device(array: np.ndarray) -> _native.DeviceArray:
    memory = _native.empty_on_device(array.shape, array.dtype.name, 0)
    _native.copy_to_device(np.asarray(array, order="C"), memory, 0)
    return memory


def to_host(value: Any) -> np.ndarray:
    """A NumPy copy of any DLPack array."""
    memory = _native.DeviceArray.from_dlpack(value.__dlpack__(stream=1))
    array = np.empty(memory.shape, _dtype(memory.dtype))
    _native.copy_to_host(memory, array, 0)
    return array


# ---- the functions of CuPy that the codec uses


def empty(shape: tuple[int, ...], dtype: Any) -> ndarray:
    try:
        memory = _native.empty_on_device(shape, np.dtype(dtype).name, cuda.Device.current)
    except _native.NativeError as error:
        raise MemoryError("out of memory on the device, says the library") from error
    return ndarray(memory)


def from_dlpack(value: Any) -> ndarray:
    stream = cuda.get_current_stream().ptr or 1
    return ndarray(_native.DeviceArray.from_dlpack(value.__dlpack__(stream=stream)))


class Stream:
    def __init__(self, ptr: int) -> None:
        self.ptr = ptr


class cuda:  # noqa: N801 - a module there
    stream = Stream(0)

    class Device:
        current = 0

        def __init__(self, number: int) -> None:
            self.number = number

        def __enter__(self) -> None:
            self.before, cuda.Device.current = cuda.Device.current, self.number

        def __exit__(
            self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None
        ) -> None:
            cuda.Device.current = self.before

    @staticmethod
    def get_current_stream() -> Stream:
        return cuda.stream


def install_as_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", sys.modules[__name__])
