"""The tensors of messages: NumPy arrays or torch tensors, as the framework gives them."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from resfed_codec.tensors.layout import view_of
from resfed_codec.tensors.torch_tensors import is_torch

Described = list[Any]
"""Name, dtype and shape of a tensor, and "torch" if it is one of torch; in the types of JSON."""


def is_array(value: object) -> bool:
    return isinstance(value, (np.ndarray, np.generic)) or is_torch(value)


def empty_like(array: Any) -> Any:
    return array.new_empty(array.shape) if is_torch(array) else np.empty_like(array)


def copied(array: Any) -> Any:
    return array.detach().clone() if is_torch(array) else array.copy()


def cast(array: Any, like: Any) -> Any:
    """An array as another's dtype and kind; floats are rounded to integers."""
    if is_torch(like):
        torch = importlib.import_module("torch")
        tensor = torch.as_tensor(array).detach()
        if tensor.is_floating_point() and not (like.is_floating_point() or like.is_complex()):
            tensor = tensor.round()
        return tensor.to(like.device, like.dtype)
    if is_torch(array):
        array = array.detach().cpu().numpy()
    if array.dtype.kind == "f" and like.dtype.kind in "iu":
        array = np.rint(array)
    return array.astype(like.dtype, copy=False)


def same(a: Any, b: Any) -> bool:
    """Whether two arrays are bitwise equal."""
    if is_torch(a) != is_torch(b):
        return False
    first, second = (view_of("", array, "") for array in (a, b))
    return first.spec == second.spec and np.array_equal(*map(_bytes_of, (first, second)))


def _bytes_of(view: Any) -> Any:
    return view.array.reshape(-1).view(np.uint8)


def described(name: str, array: Any) -> Described:
    if is_torch(array):
        return [name, str(array.dtype).removeprefix("torch."), list(array.shape), "torch"]
    return [name, array.dtype.name, list(array.shape)]


def zeros(description: Described) -> Any:
    """An array of zeros that is described so.

    Raises:
        RuntimeError: The library that has such arrays is not installed here.
    """
    _, dtype, shape, *library = description
    if library:
        torch = _needed("torch", "the server's model has torch tensors")
        return torch.zeros(shape, dtype=getattr(torch, dtype))
    try:
        return np.zeros(shape, dtype)
    except TypeError:  # NumPy does not know bfloat16 and its like
        types = _needed("ml_dtypes", f"the server's model has NumPy arrays of {dtype}")
        return np.zeros(shape, getattr(types, dtype))


def _needed(module: str, why: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RuntimeError(f"resfed_codec: {why}: this site needs {module}, too") from error
