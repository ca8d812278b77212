"""The dtypes of tensors, by NumPy's, ml_dtypes' and torch's common names, and how they are held.

docs/format.md, section 1, lists them. Floats that NumPy's arithmetic does not know are held as
unsigned numbers, their bit patterns; a complex number is two, real and imaginary part.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from resfed_codec._native import DType

LOSSY_DTYPES = {dtype.name.lower(): dtype for dtype in DType if dtype != DType.OTHER}
"""The dtypes whose residuals are quantized, by name; all others travel losslessly."""

_BYTES = [
    *(f"float8_{kind}" for kind in ("e3m4", "e4m3", "e4m3b11fnuz", "e4m3fn", "e4m3fnuz")),
    *(f"float8_{kind}" for kind in ("e5m2", "e5m2fnuz", "e8m0fnu")),
    *("float6_e2m3fn", "float6_e3m2fn", "float4_e2m1fn", "float4_e2m1fn_x2"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)),
]

PATTERNS = {
    "bfloat16": "uint16",
    "complex32": "uint16",
    "bcomplex32": "uint16",
    "complex64": "uint32",
    "complex128": "uint64",
    **dict.fromkeys(_BYTES, "uint8"),
}
"""For dtypes held as bit patterns, the dtype of those."""

PARTS = {
    "complex32": "float16",
    "bcomplex32": "bfloat16",
    "complex64": "float32",
    "complex128": "float64",
}
"""Dtype of a complex number's real and imaginary part."""

FLOAT_DTYPES = LOSSY_DTYPES | {dtype: LOSSY_DTYPES[part] for dtype, part in PARTS.items()}
"""The same and, of complex dtypes, that of their real and imaginary part."""

SUPPORTED = frozenset(
    ["bool", *LOSSY_DTYPES, *PATTERNS]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)


def pattern_shape(shape: tuple[int, ...], dtype: str) -> tuple[int, ...]:
    """Shape of the array that holds a tensor: that of complex ones has one dimension more."""
    return (*shape, 2) if dtype in PARTS else shape


def pattern_dtype(dtype: str) -> str:
    """Dtype of the array that holds a tensor."""
    return PATTERNS.get(dtype, dtype)


def as_patterns(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    """A C-contiguous array as it is held; shares its memory."""
    if dtype not in PATTERNS:
        return array
    if dtype in PARTS:
        array = array.reshape(*array.shape, 1)
    return array.view(PATTERNS[dtype])


def from_patterns(held: NDArray[Any], dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The array of this dtype and shape that is held so; shares its memory."""
    return held.view(dtype).reshape(shape)
