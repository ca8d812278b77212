"""Arrays on CUDA devices: exchange with other libraries, streams, memory, copies.

Inside the codec such an array is a ``_native.DeviceArray``: a view of a caller's tensor (of torch's
by its address, of all others' by DLPack, https://dmlc.github.io/dlpack) or memory made here. All
arrays of a call lie on one device, and the call runs in order on one stream of it, see
:func:`current_stream`. The native encoder and decoder work on the device. What has no kernels is
done on the host: memory.py copies there and back.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from resfed_codec import _native
from resfed_codec._native import DeviceArray
from resfed_codec.errors import native_errors
from resfed_codec.tensors.cuda_support import require_cuda
from resfed_codec.tensors.dtypes import LOSSY_DTYPES, PATTERNS, pattern_dtype, pattern_shape
from resfed_codec.tensors.memory import CUPY, OTHER, TORCH, Memory, Origin
from resfed_codec.tensors.torch_tensors import from_patterns, plain_torch


def is_writable(value: object, origin: Origin) -> bool:
    """Whether the codec may write to a caller's array; JAX's, for one, must never change."""
    return origin.library != OTHER or isinstance(value, DeviceArray)


# ---- arrays of callers


def array_of(value: Any, origin: Origin, dtype: str, where: str) -> DeviceArray:
    """The memory of a contiguous array; ``dtype`` is torch's name where it is a torch tensor.

    Raises:
        TypeError: CUDA cannot be used, or the array cannot be exchanged.
        ValueError: It is not C-contiguous.
    """
    require_cuda(where, origin.device)
    if isinstance(value, DeviceArray):
        return value
    if origin.library == TORCH:
        shape = pattern_shape(tuple(value.shape), dtype)
        held = pattern_dtype(dtype) if _is_pattern(dtype) else dtype
        stream = _stream_of(TORCH, origin.device)
        return DeviceArray.from_pointer(value.data_ptr(), shape, held, origin.device, value, stream)
    try:
        # The protocol calls the legacy default stream 1, and has the library order its work.
        array = DeviceArray.from_dlpack(
            value.__dlpack__(stream=current_stream(origin.device) or 1),
            _stream_of(origin.library, origin.device),
        )
    except (TypeError, BufferError) as error:
        raise TypeError(f"{where} cannot be exchanged by DLPack: {error}") from error
    if not array.contiguous:
        raise ValueError(f"{where} is not C-contiguous; make it so first (ascontiguousarray)")
    return array


def new_value(origin: Origin, shape: Sequence[int], dtype: str) -> Any:
    """A new array, not filled, of the library that the origin names; from its own allocator."""
    if origin.library == TORCH:
        with plain_torch():
            return importlib.import_module(TORCH).empty(
                tuple(shape), dtype=origin.dtype, device=f"cuda:{origin.device}"
            )
    if origin.library == CUPY:
        cupy = importlib.import_module(CUPY)
        with cupy.cuda.Device(origin.device):
            return cupy.empty(tuple(shape), dtype=origin.dtype)
    return new_memory(shape, dtype, origin.device)


def value_of(array: DeviceArray, origin: Origin, dtype: str) -> Any:
    """``array`` as one of the library that the origin names, without a copy. In plain_torch()."""
    named = array if array.dtype == dtype or _is_pattern(dtype) else array.view(dtype)
    if origin.library == TORCH:
        tensor = importlib.import_module(TORCH).from_dlpack(named.__dlpack__())
        if _is_pattern(dtype):
            return from_patterns(tensor, dtype)
        return tensor if tensor.dtype == origin.dtype else tensor.view(origin.dtype)
    return importlib.import_module(CUPY).from_dlpack(named) if origin.library == CUPY else named


def _is_pattern(dtype: str) -> bool:
    """Whether arrays on a device hold bit patterns; bfloat16 is itself there."""
    return dtype in PATTERNS and dtype not in LOSSY_DTYPES


# ---- streams


def current_stream(device: int) -> int:
    """The stream that calls work on: torch's current one, else CuPy's, else the legacy default."""
    streams = (_stream_of(library, device) for library in (TORCH, CUPY))
    return next((stream for stream in streams if stream is not None), 0)


def _stream_of(library: str, device: int) -> int | None:
    """A library's current stream; None if that is not known, or it does not use CUDA.

    Memory of its allocator that is let go is used again in order of the stream that was the current
    one when it was allocated.
    """
    module = sys.modules.get(library) if library else None
    if module is None:
        return None
    if library == TORCH:
        cuda = module.cuda
        return int(cuda.current_stream(device).cuda_stream) if cuda.is_initialized() else None
    with module.cuda.Device(device):
        return int(module.cuda.get_current_stream().ptr)


def wait_for(written: Iterable[tuple[str, int]]) -> None:
    """Wait for devices, unless the library that an array is of works on the codec's stream."""
    for library, device in written:
        stream = current_stream(device)
        if library == OTHER or _stream_of(library, device) != stream:
            with native_errors():
                _native.wait(device, stream)


# ---- memory inside the codec


def library_memory(device: int, n_bytes: int) -> DeviceArray | None:
    """Memory of the library whose stream calls work on; None if there is none, or it has none.

    Libraries keep what was freed, so that beside them a device may have no memory left.
    """
    libraries = ((name, _stream_of(name, device)) for name in (TORCH, CUPY))
    library = next((name for name, stream in libraries if stream is not None), OTHER)
    if library == OTHER or n_bytes == 0:
        return None
    dtype = sys.modules[TORCH].uint8 if library == TORCH else np.dtype("uint8")
    origin = Origin(library, device, dtype)
    try:
        return array_of(new_value(origin, (n_bytes,), "uint8"), origin, "uint8", "memory")
    except (MemoryError, RuntimeError):  # torch's OutOfMemoryError is the latter
        return None


if hasattr(_native, "set_allocator"):
    _native.set_allocator(library_memory)


def new_memory(shape: Sequence[int], dtype: str, device: int) -> DeviceArray:
    """A new array, not filled."""
    # np.dtype does not know bfloat16.
    itemsize = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
    memory = library_memory(device, math.prod(shape) * itemsize)
    if memory is not None:
        stream = current_stream(device)
        return DeviceArray.from_pointer(memory.pointer, shape, dtype, device, memory, stream)
    with native_errors():
        return _native.empty_on_device(shape, dtype, device)


def copy(source: Memory, target: Memory) -> None:
    """Fill ``target`` from ``source``, one of which is on a device; waits if one is not."""
    with native_errors():
        if isinstance(source, DeviceArray):
            stream = current_stream(source.device)
            if isinstance(target, DeviceArray):
                _native.copy_on_device(source, target, stream)
            else:
                _native.copy_to_host(source, target, stream)
        elif isinstance(target, DeviceArray):
            contiguous = np.asarray(source, order="C")
            _native.copy_to_device(contiguous, target, current_stream(target.device))
