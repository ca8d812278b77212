"""Calls of the native codec: the tensors that they take, on the host or on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

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


class Aggregator(Protocol):
    """The native aggregator of the host, or of a device; each takes its own contributions."""

    def prepare(self, payload: Payload, digest: int, weight: float) -> Any: ...
    def prepare_state(self, arrays: Any, weight: float) -> Any: ...
    def add(self, contribution: Any, replaced: Any, commit: Plan) -> None: ...
    def result(self, arrays: Any, total_weight: float) -> None: ...


def aggregator(
    tensors: Tensors, is_signed: Sequence[bool], is_complex: Sequence[bool], on: int | None
) -> Aggregator:
    """A native aggregator of tensors on the CUDA device ``on`` (None: the host)."""
    if on is None:
        return _native.Aggregator(tensors, is_signed, is_complex)
    return _DeviceAggregator(tensors, is_signed, on)


class _DeviceAggregator:
    """Calls go to the current stream. They raise NativeError."""

    def __init__(self, tensors: Tensors, is_signed: Sequence[bool], device: int) -> None:
        self._device = device
        self._native = _native.DeviceAggregator(tensors, is_signed, device, self._stream())

    def _stream(self) -> int:
        from resfed_codec.tensors.device import current_stream

        return current_stream(self._device)

    def prepare(self, payload: Payload, digest: int, weight: float) -> _native.DeviceContribution:
        return self._native.prepare(payload, digest, weight, self._stream())

    def prepare_state(
        self, arrays: Sequence[_native.DeviceArray], weight: float
    ) -> _native.DeviceContribution:
        return self._native.prepare_state(arrays, weight, self._stream())

    def add(
        self,
        contribution: _native.DeviceContribution,
        replaced: _native.DeviceContribution | None,
        commit: Plan,
    ) -> None:
        self._native.add(contribution, replaced, commit, self._stream())

    def result(self, arrays: Sequence[_native.DeviceArray], total_weight: float) -> None:
        self._native.result(arrays, total_weight, self._stream())
