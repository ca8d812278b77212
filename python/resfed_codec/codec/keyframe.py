"""encode_keyframe() and decode_keyframe(): a whole model, without a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

from resfed_codec import _native
from resfed_codec._native import MAX_MANTISSA_BITS
from resfed_codec.codec.native_call import tensors_of
from resfed_codec.codec.numbers import checked_integer
from resfed_codec.codec.payload import KEYFRAME, as_bytes
from resfed_codec.codec.update import Payload, copy_into, writable_views
from resfed_codec.errors import native_errors
from resfed_codec.tensors.layout import (
    ArrayT,
    OutT,
    State,
    layout_digest,
    read_model,
    specs_of,
    views_of,
)
from resfed_codec.tensors.memory import empty_on_host, filled, on_host, staging
from resfed_codec.tensors.roles import roles_of
from resfed_codec.tensors.torch_tensors import untraced


@untraced
def encode_keyframe(state: State, *, mantissa_bits: int | None = None) -> bytes:
    """Encode all of ``state`` as a payload that :func:`decode_keyframe` turns back.

    Where :func:`encode` sends what changed against a reference, a keyframe stands alone: for a
    client that joins, or a checkpoint. The bytes depend on the values alone: not on the number of
    threads, the processor, or the order of a mapping.

    Args:
        state: The model: a mapping from names to arrays, or a sequence of arrays. NumPy arrays or
            torch tensors of any shape, or arrays on a CUDA device, which are copied to the host;
            of every dtype that :func:`encode` takes.
        mantissa_bits: None to keep every bit, NaN payloads and the signs of zeros too. Else, 0 to
            52, float16, bfloat16, float32 and float64 are rounded to so many explicit mantissa
            bits, nearest, ties to even; dtypes that have no more are not changed. Finite numbers
            stay finite: the largest ones saturate. Infinities, NaN, and other dtypes stay as they
            are.

    Returns:
        The payload.

    Raises:
        TypeError: An argument is of the wrong type, or a tensor's dtype is not supported.
        ValueError: ``mantissa_bits`` is out of range.
    """
    keep = MAX_MANTISSA_BITS  # of float64: nothing is rounded
    if mantissa_bits is not None:
        keep = checked_integer("mantissa_bits", mantissa_bits, 0, MAX_MANTISSA_BITS)
    views = views_of(state, "state")
    specs = specs_of(views)
    model = [on_host(view.array) for view in views]
    tensors = tensors_of(specs, roles_of(specs), model, current=model)
    return _native.encode_keyframe(tensors, layout_digest(specs), keep)


@overload
def decode_keyframe(payload: Payload, like: State, *, out: OutT) -> OutT: ...
@overload
def decode_keyframe(payload: Payload, like: Mapping[str, ArrayT]) -> dict[str, ArrayT]: ...
@overload
def decode_keyframe(payload: Payload, like: Sequence[ArrayT]) -> list[ArrayT]: ...
@untraced
def decode_keyframe(payload: Payload, like: State, *, out: Any = None) -> Any:
    """The model that ``payload`` holds.

    All or nothing: on any error ``out`` has not changed.

    Args:
        payload: What :func:`encode_keyframe` returned.
        like: A model of the same names, shapes and dtypes; its values are not used. Where it is on
            a CUDA device the model is decoded on the host and copied there.
        out: Arrays of the same layout and device to write into, C-contiguous and writable; may be
            ``like``. Default: new arrays.

    Returns:
        ``out`` if given, else a new state of ``like``'s kind, a dict or a list, with the same names
        in the same order, shapes, dtypes; torch where it was torch. The caller owns it.

    Raises:
        PayloadError: The payload is damaged, truncated, or no keyframe.
        StateMismatchError: The payload was made for another layout.
        TypeError: An argument is of the wrong type.
        ValueError: ``out`` has another layout, is not contiguous, or cannot be written to.
    """
    data = as_bytes(payload, KEYFRAME)
    layout, _ = read_model(like, "like")
    if out is None:
        model = layout.empty()
        decoded = [staging(array) for array in model]
    else:
        targets = writable_views(out, layout.specs, layout.device)
        decoded = [empty_on_host(view.array) for view in targets]  # errors must not change out
    with native_errors(layout.specs, len(data)):
        tensors = tensors_of(layout.specs, roles_of(layout.specs), decoded, out=decoded)
        _native.decode_keyframe(data, layout.digest, tensors)
    if out is None:
        return layout.state_of(filled(model, decoded))
    return copy_into(targets, decoded, out)
