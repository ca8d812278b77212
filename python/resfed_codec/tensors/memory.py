"""The memory of a model's tensors: NumPy arrays, or arrays on a CUDA device.

The module for CUDA devices, device.py, is imported when the first array on one is met.
"""

from __future__ import annotations

import copyreg
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from resfed_codec._native import DeviceArray
from resfed_codec.tensors.cuda_support import require_cuda
from resfed_codec.tensors.torch_tensors import is_torch


class SupportsDLPack(Protocol):
    """An array of any library that can be exchanged by DLPack."""

    def __dlpack__(self) -> Any: ...
    def __dlpack_device__(self) -> tuple[Any, int]: ...


Memory: TypeAlias = "NDArray[Any] | DeviceArray"
"""One tensor's memory in C order: the host's, or a device's."""

TORCH, CUPY, OTHER = "torch", "cupy", ""

_CUDA, _CUDA_MANAGED = 2, 13
"""Device types of DLPack."""


class Origin(NamedTuple):
    """Whose array it is, on which device, of which dtype of theirs (None for OTHER)."""

    library: str
    device: int
    dtype: Any


def origin_of(value: Any) -> Origin | None:
    """Where an array comes from, or None if it is not on a CUDA device."""
    if is_torch(value):
        return Origin(TORCH, value.device.index, value.dtype) if value.is_cuda else None
    if not hasattr(value, "__dlpack__") or not hasattr(value, "__dlpack_device__"):
        return None
    kind, number = value.__dlpack_device__()
    if int(kind) not in (_CUDA, _CUDA_MANAGED):
        return None
    if type(value).__module__.partition(".")[0] == CUPY:
        return Origin(CUPY, int(number), value.dtype)
    return Origin(OTHER, int(number), None)


def publish(origins: Iterable[Origin | None]) -> None:
    """Wait for what was written to a caller's arrays, if he may read them on another stream."""
    written = {(origin.library, origin.device) for origin in origins if origin}
    if written:
        from resfed_codec.tensors import device

        device.wait_for(written)


def device_of(memory: Memory) -> int | None:
    """Number of its CUDA device, None for the host."""
    return memory.device if isinstance(memory, DeviceArray) else None


def name_of(device: int | None) -> str:
    return "cpu" if device is None else f"cuda:{device}"


def empty_on_host(memory: Memory) -> NDArray[Any]:
    """A new array of the host, not filled, that could be copied to ``memory``."""
    if isinstance(memory, DeviceArray):
        return np.empty(memory.shape, "uint16" if memory.dtype == "bfloat16" else memory.dtype)
    return np.empty_like(memory)


def staging(memory: Memory) -> NDArray[Any]:
    """The array itself if it is the host's, else a new one there, not filled, to copy from."""
    return empty_on_host(memory) if isinstance(memory, DeviceArray) else memory


def on_host(memory: Memory) -> NDArray[Any]:
    """The array itself if it is the host's, else a copy there; bfloat16 as uint16."""
    if not isinstance(memory, DeviceArray):
        return memory
    array = empty_on_host(memory)
    copy(memory, array)
    return array


def placed(array: NDArray[Any], on: int | None) -> Memory:
    """The array itself if the host is asked for, else a copy on the device ``on``."""
    if on is None:
        return array
    from resfed_codec.tensors import device

    memory = device.new_memory(array.shape, array.dtype.name, on)
    device.copy(array, memory)
    return memory


def copy(source: Memory, target: Memory) -> None:
    """Fill ``target``, of the same shape and dtype; between devices and the host this waits."""
    if isinstance(source, DeviceArray) or isinstance(target, DeviceArray):
        from resfed_codec.tensors import device

        device.copy(source, target)
    elif source is not target:
        with size_kept(source):
            np.copyto(target, source)


def filled(model: list[Memory], source: Sequence[Memory]) -> list[Memory]:
    """Copy ``source`` into ``model`` and return it."""
    for array, values in zip(model, source, strict=True):
        copy(values, array)
    return model


@contextmanager
def size_kept(array: NDArray[Any]) -> Iterator[None]:
    """A context in which NumPy refuses to resize the array: its copies run beside other threads."""
    owner: Any = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    reference = weakref.ref(owner)
    yield
    del reference


def _reduce(array: DeviceArray) -> tuple[Any, ...]:
    """For pickle and copy: by way of the host, back to the same device."""
    return _restored, (on_host(array), array.dtype, array.device)


def _restored(array: NDArray[Any], dtype: str, device: int) -> DeviceArray:
    require_cuda("the pickled object", device)
    memory = placed(array, device)
    assert isinstance(memory, DeviceArray)
    return memory.view(dtype)


copyreg.pickle(DeviceArray, _reduce)
