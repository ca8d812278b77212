"""Calls of the native codec: the tensors that they take, on the host or on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from resfed_codec import _native
from resfed_codec._native import DType, Payload, Role, Tensors

if TYPE_CHECKING:
    from resfed_codec.tensors.layout import Specs
    from resfed_codec.tensors.memory import Memory

Assignments: TypeAlias = "Sequence[tuple[Any, Any, Any]]"
"""What changes in one step: tuples (object, attribute name, value) or (dict, key, value)."""

Plan: TypeAlias = "Callable[[], Assignments]"
"""A callback that native code calls just before it writes.

The assignments that it returns take effect in one step with the write, so an interrupt finds either
both done or neither. If the plan raises, neither is.
"""

PayloadPlan: TypeAlias = "Callable[[bytes], Assignments]"
"""A :data:`Plan` that is given the finished payload."""


def tensors_of(
    specs: Specs, roles: Sequence[Role], reference: Sequence[Memory], **columns: Any
) -> Tensors:
    """The tensors of a native call; ``columns`` are others of :class:`Tensors`."""
    dtypes, row_lengths = _columns_of(specs)
    return Tensors(
        roles=roles,
        dtypes=dtypes,
        n_elems=[array.size for array in reference],
        row_lengths=row_lengths,
        reference=reference,
        **columns,
    )


@lru_cache(maxsize=16)
def _columns_of(specs: Specs) -> tuple[list[DType], list[int]]:
    """Dtypes and lengths of rows."""
    return [spec.float_dtype for spec in specs], [spec.row_length for spec in specs]


def count_changed(tensors: Tensors, on: int | None) -> tuple[int, int]:
    """Elements of matrices and of vectors, of the tensors with a residual other than zero.

    The arrays lie on the CUDA device ``on`` (None: the host).
    """
    if on is None:
        return _native.count_changed(tensors)
    from resfed_codec.tensors.device import current_stream

    return _native.count_changed_on_device(tensors, on, current_stream(on))


def encode(
    tensors: Tensors,
    options: _native.EncodeOptions,
    on: int | None,
    commit: PayloadPlan | None = None,
) -> bytes:
    """The native encoder on the CUDA device ``on`` (None: the host); raises NativeError."""
    if on is None:
        return _native.encode(tensors, options, commit)
    from resfed_codec.tensors.device import current_stream

    return _native.encode_on_device(tensors, options, on, current_stream(on), commit)


def decode(
    payload: Payload, digest: int, tensors: Tensors, on: int | None, commit: Plan | None = None
) -> None:
    """The native decoder on the CUDA device ``on`` (None: the host); raises NativeError."""
    if on is None:
        return _native.decode(payload, digest, tensors, commit)
    from resfed_codec.tensors.device import current_stream

    return _native.decode_on_device(payload, digest, tensors, on, current_stream(on), commit)
