"""Cases: a model and a reference for native encode and decode, on the host and on a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from models import State, clustered
from resfed_codec import _native
from resfed_codec._native import Role, Tensors
from resfed_codec.codec.native_call import tensors_of
from resfed_codec.codec.update import native_options
from resfed_codec.config import CodecConfig
from resfed_codec.tensors.layout import layout_digest, specs_of, views_of
from resfed_codec.tensors.roles import role_overrides, roles_of

Arrays = list[np.ndarray]


def to_device(array: np.ndarray) -> _native.DeviceArray:
    moved = _native.empty_on_device(array.shape, array.dtype.name, 0)
    _native.copy_to_device(np.ascontiguousarray(array), moved, 0)
    return moved


def bytes_of(arrays: Sequence[Any]) -> list[bytes]:
    """The bytes of the arrays; empty for None."""
    result = []
    for array in arrays:
        if isinstance(array, _native.DeviceArray):
            host = np.empty(array.shape, array.dtype)
            _native.copy_to_host(array, host, 0)
            array = host
        result.append(b"" if array is None else array.tobytes())
    return result


class Result(NamedTuple):
    """Result of a call: payload, recovered model and feedback, or the error's numbers."""

    payload: bytes = b""
    model: Sequence[bytes] = ()
    feedback: Sequence[bytes] = ()
    error: tuple[int, ...] = ()


class Case:
    """A state and a reference for encoding on host and device."""

    def __init__(
        self,
        state: State,
        reference: State,
        *,
        feedback: bool = False,
        terms: Sequence[tuple[Arrays, float]] = (),
        **config: Any,
    ) -> None:
        self.current = [view.array for view in views_of(state, "state")]
        views = views_of(reference, "reference")
        self.base = [view.array for view in views]
        self.specs = specs_of(views)
        parsed = CodecConfig(**config)
        overrides = role_overrides(self.specs, parsed)
        self.roles = roles_of(self.specs, overrides)
        self.terms = terms
        self.feedback_given = feedback
        rng = np.random.default_rng(3)
        self.feedback: list[np.ndarray | None] = [
            np.asarray(0.01 * rng.standard_normal(array.shape), dtype=np.float32)
            if feedback and role not in (Role.LOSSLESS, Role.DENSE)
            else None
            for array, role in zip(self.base, self.roles, strict=True)
        ]
        tensors, _ = self.tensors(on_device=False)
        self.options = native_options(parsed, self.specs, self.roles, overrides, tensors)
        self.options.digest = layout_digest(self.specs)

    def tensors(self, *, on_device: bool, in_place: bool = False) -> tuple[Tensors, list[Any]]:
        """What the native encoder takes, with arrays of its own; outputs, then feedback."""
        place = to_device if on_device else np.array
        base = [place(array) for array in self.base]
        out = base if in_place else [place(np.zeros_like(array)) for array in self.base]
        feedback = [None if array is None else place(array) for array in self.feedback]
        lossy = [role != Role.LOSSLESS for role in self.roles]
        tensors = tensors_of(
            self.specs,
            self.roles,
            base,
            current=[place(array) for array in self.current],
            out=out,
            feedback=feedback,
            terms=[[place(a[i]) for a, _ in self.terms * n] for i, n in enumerate(lossy)],
            coefficients=[[c for _, c in self.terms * n] for n in lossy],
        )
        return tensors, [*out, *feedback]

    def encode(self, *, on_device: bool, in_place: bool = False) -> Result:
        tensors, arrays = self.tensors(on_device=on_device, in_place=in_place)
        out, feedback = arrays[: len(tensors)], arrays[len(tensors) :]
        try:
            if on_device:
                payload = _native.encode_on_device(tensors, self.options, 0, 0)
            else:
                payload = _native.encode(tensors, self.options)
        except _native.NativeError as error:
            return Result(b"", bytes_of(out), bytes_of(feedback), error.args)
        return Result(payload, bytes_of(out), bytes_of(feedback))

    def decode(self, payload: bytes, *, on_device: bool, in_place: bool = False) -> Result:
        place = to_device if on_device else np.array
        base = [place(array) for array in self.base]
        out = base if in_place else [place(np.zeros_like(array)) for array in self.base]
        tensors = tensors_of(self.specs, roles_of(self.specs), base, out=out)
        try:
            if on_device:
                _native.decode_on_device(
                    _native.Payload(payload), self.options.digest, tensors, 0, 0
                )
            else:
                _native.decode(_native.Payload(payload), self.options.digest, tensors)
        except _native.NativeError as error:
            return Result(model=bytes_of(out), error=error.args)
        return Result(model=bytes_of(out))


def random_pair(
    shapes: dict[str, tuple[int, ...]], dtype: Any = np.float32, grid: float = 0.0
) -> tuple[State, State]:
    """(state, reference); ``grid`` rounds residuals so that many are equal."""
    rng = np.random.default_rng(11)
    state, reference = {}, {}
    for name, shape in shapes.items():
        base = (0.1 * rng.standard_normal(shape)).astype(dtype)
        residual = clustered(shape or (1,), rng).reshape(shape)
        if grid:
            residual = np.round(residual / grid) * grid
        reference[name] = base
        state[name] = (base.astype(np.float64) + residual).astype(dtype)
    return state, reference
