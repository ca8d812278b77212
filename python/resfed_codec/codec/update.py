"""encode() and decode(): one reference, one update, no memory between calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from resfed_codec import _native
from resfed_codec._native import DeviceArray, Role, Tensors
from resfed_codec.codec import native_call
from resfed_codec.codec.native_call import tensors_of
from resfed_codec.codec.payload import UPDATE, as_bytes, parse_payload
from resfed_codec.config import (
    AUTO_STEP_RATIO,
    CodecConfig,
    ConfigOptions,
    check_config,
    counts,
)
from resfed_codec.errors import StateMismatchError, native_errors
from resfed_codec.notices import warn
from resfed_codec.stream.link import link_from
from resfed_codec.tensors.layout import (
    ArrayT,
    Layout,
    OutT,
    Specs,
    State,
    View,
    arrays_of,
    block_sizes,
    check_same_device,
    check_same_layout,
    device_of,
    layout_digest,
    read_model,
    read_once,
    specs_of,
    views_of,
)
from resfed_codec.tensors.memory import Memory, filled, on_host, publish
from resfed_codec.tensors.roles import RoleOverrides, role_overrides, roles_of
from resfed_codec.tensors.suspects import CHECKED, warn_of_suspects
from resfed_codec.tensors.torch_tensors import untraced

if TYPE_CHECKING:
    from typing_extensions import Unpack

_LAYOUTS = 1024
"""At most this many layouts are looked at in a process."""

VECTOR_SHARE = 10
"""Vectors are sent this many times as densely as matrices; docs/design.md has the measurement."""


@untraced
def encode(
    state: State,
    reference: State,
    config: CodecConfig | None = None,
    **options: Unpack[ConfigOptions],
) -> bytes:
    """Encode ``state`` as a payload that :func:`decode` turns back with the same ``reference``.

    The residual ``state - reference`` is sparsified by top-k, quantized and entropy coded; that of
    running statistics, and of what ``dense`` names, is not sparsified. Tensors of other dtypes
    than the floats below, and those that ``exclude`` names, are carried losslessly. The bytes
    depend on the values alone: not on the number of threads, the processor, or the order of a
    mapping.

    Args:
        state: The model to send: a mapping from names to arrays, a sequence of arrays, or a nested
            state (docs/integrations.md). NumPy or JAX arrays, torch tensors, Keras variables, or
            arrays on a CUDA device that speak DLPack, of any shape; float16, bfloat16, float32,
            float64 (lossy); integers, bool, complex numbers, floats of 8 bits and fewer (lossless;
            docs/format.md has the list).
        reference: A model of the same names, shapes and dtypes that the receiver holds too, on the
            same device. If that is a CUDA device, the work is done there (docs/gpu.md).
        config: What to aim at; default ``CodecConfig()``.
        **options: Fields of :class:`CodecConfig`, instead of ``config``.

    Returns:
        The payload.

    Raises:
        TypeError: An argument is of the wrong type, a tensor's dtype is not supported, or it is on
            a CUDA device that cannot be used here.
        ValueError: The layouts or devices differ (both sides are named); a residual is not finite
            (tensor and flat index are named); an option is out of range; ``max_bytes`` or
            ``max_error`` cannot be met; the float tensors have more than 2**39 elements together.
        RuntimeError: Another thread wrote to the arrays during the call.
        MemoryError, RuntimeError: Of a CUDA device: it has no memory left; it reports an error.

    Warns:
        UserWarning: All arrays of ``state`` are those of ``reference``, as when it is a
            ``state_dict()`` that was not cloned. Not if both are one object. Or a tensor looks
            replaced rather than updated, or like an optimizer's, and is not dense or excluded.
    """
    return _encode(state, reference, make_config(config, options), None)


def make_config(config: CodecConfig | None, options: ConfigOptions) -> CodecConfig:
    """The one way in which keyword options and ``config`` become a CodecConfig."""
    if config is not None and options:
        raise TypeError(f"give config or options, not both (config and {', '.join(options)})")
    return check_config("config", config) if not options else CodecConfig(**options)


def encode_and_recover(
    state: State,
    reference: State,
    config: CodecConfig | None = None,
    **options: Unpack[ConfigOptions],
) -> tuple[bytes, State]:
    """:func:`encode`, and the model that :func:`decode` will return: payload, recovered model.

    The recovered model is what the encoder itself computed, a copy of ``reference``'s kind.
    """
    once = read_once(reference, "reference")
    state, reference = once if state is reference else state, once
    layout, _ = read_model(reference, "reference")
    recovered = layout.empty()
    payload = _encode(state, reference, make_config(config, options), recovered)
    return payload, layout.state_of(recovered)


def _encode(state: State, reference: State, config: CodecConfig, out: list[Memory] | None) -> bytes:
    if config.predictor is not None or config.error_feedback:
        raise ValueError(
            "predictor, error_feedback: encode() knows the reference alone; use an Encoder or a"
            " session"
        )
    current = views_of(state, "state")
    base = views_of(reference, "reference")
    specs = specs_of(base)
    check_same_layout(specs_of(current), specs, "state")
    check_same_device(current, device_of(base), "state")
    if state is not reference and same_memory(arrays_of(current), arrays_of(base)):
        warn(
            "state and reference are the same memory, so nothing has changed between them: a"
            " reference must be a copy, such as {name: tensor.clone() for name, tensor in"
            " net.state_dict().items()}"
        )
    overrides = role_overrides(specs, config)
    roles = roles_of(specs, overrides)
    digest = layout_digest(specs)
    if _is_new(digest):
        warn_of_suspects(specs, roles, arrays_of(current), arrays_of(base))

    on = device_of(base)
    tensors = tensors_of(specs, roles, arrays_of(base), current=arrays_of(current), out=out)
    with native_errors(specs):
        options = native_options(config, specs, roles, overrides, tensors, on)
        options.digest = digest
        return native_call.encode(tensors, options, on)


_seen: dict[int, int] = {}
"""Models encoded in this process, by the digest of their layout, up to CHECKED."""


def _is_new(layout: int) -> bool:
    """Whether this is one of the first models of a layout in this process."""
    n_before = _seen.get(layout, 0)
    if n_before < CHECKED and (n_before or len(_seen) < _LAYOUTS):
        _seen[layout] = n_before + 1
        return True
    return False


def native_options(
    config: CodecConfig,
    specs: Specs,
    roles: tuple[Role, ...],
    overrides: RoleOverrides,
    tensors: Tensors,
    on: int | None = None,
) -> _native.EncodeOptions:
    """What ``config`` asks for, for the native encoder; digest and link are the caller's to set.

    ``tensors``, on the CUDA device ``on`` (None: the host), tell how much there is to send.
    """
    options = _native.EncodeOptions()
    options.exclusions, options.dense = overrides
    options.dense_bits = config.dense_bits
    options.blocks = _blocks(specs, roles)
    options.vector_share = VECTOR_SHARE
    if config.max_bytes is not None:
        options.max_bytes = config.max_bytes
    elif config.max_error is not None:
        options.max_error = config.max_error
    else:
        changed = native_call.count_changed(tensors, on)
        options.k_matrix, options.k_vector = counts(config.sparsity, *changed, VECTOR_SHARE)
    if config.max_norm is not None:
        options.max_norm = config.max_norm
    step = _native.StepRule()
    step.automatic = config.step == "auto"
    step.ratio = AUTO_STEP_RATIO if config.step == "auto" else float(config.step)
    step.bits = config.bits or 0
    options.step = step
    return options


@lru_cache(maxsize=16)
def _blocks(specs: Specs, roles: tuple[Role, ...]) -> list[int]:
    shapes = (s.shape if role == Role.MATRIX else () for s, role in zip(specs, roles, strict=True))
    return block_sizes(list(shapes))


Payload: TypeAlias = "bytes | bytearray | memoryview"


@overload
def decode(payload: Payload, reference: State, *, out: OutT) -> OutT: ...
@overload
def decode(payload: Payload, reference: Mapping[str, ArrayT]) -> dict[str, ArrayT]: ...
@overload
def decode(payload: Payload, reference: Sequence[ArrayT]) -> list[ArrayT]: ...
@untraced
def decode(payload: Payload, reference: State, *, out: Any = None) -> Any:
    """The model that ``payload`` encodes, given the reference it was encoded with.

    All or nothing: on any error neither ``reference`` nor ``out`` has changed.

    Args:
        payload: What :func:`encode` returned.
        reference: The same model as the encoder's ``reference``.
        out: Arrays of the same layout and device to write into, C-contiguous and writable;
            ``out=reference`` updates in place and then costs only what changed. Default: new
            arrays.

    Returns:
        ``out`` if given, else a new state of ``reference``'s kind: a dict or a list, or nested as
        it is, with the same names in the same order, shapes, dtypes, device; torch where it was
        torch, JAX where it was JAX. On a CUDA device, a :class:`DeviceArray` where it was neither
        torch nor CuPy. The caller owns it.

    Raises:
        PayloadError: The payload is damaged, truncated, or not of this codec.
        StateMismatchError: The payload was made for another layout or against another reference,
            or belongs to a stream.
        TypeError: An argument is of the wrong type.
        ValueError: ``out`` has another layout or device, is not contiguous, cannot be written to,
            or two of its arrays share memory, or one with another tensor of ``reference``.
        MemoryError, RuntimeError: As :func:`encode`.
    """
    in_place = out is reference
    data = as_bytes(payload, UPDATE)
    reference = read_once(reference, "reference")
    base = views_of(reference, "reference")
    specs = specs_of(base)
    parsed = parse_unlinked(data, len(specs), layout_digest(specs), "the Decoder or the session")
    if out is None:
        layout = Layout(reference, "reference", base)
        model = layout.empty()
    else:
        targets = base if in_place else views_of(out, "out")
        tied = check_writable(targets, specs, device_of(base), base)
        if tied:
            return _decode_tied(data, reference, targets, tied, out)
        model = arrays_of(targets)
    tensors = tensors_of(specs, roles_of(specs), arrays_of(base), out=model)
    with native_errors(specs, len(data)):
        native_call.decode(parsed, parsed.digest, tensors, device_of(base))
    if out is None:
        return layout.state_of(model)
    publish(view.origin for view in targets)
    return out


def _decode_tied(
    payload: bytes,
    reference: State,
    targets: Sequence[View],
    tied: Sequence[tuple[int, int]],
    out: Any,
) -> Any:
    """:func:`decode` in place of a model with tied tensors, if these stay equal."""
    decoded = arrays_of(views_of(decode(payload, reference), "reference"))
    for i, j in tied:
        a, b = (on_host(decoded[k]) for k in (i, j))
        if a.tobytes() != b.tobytes():
            names = sorted(targets[k].spec.name for k in (i, j))
            raise ValueError(
                f"out: tensors {names[0]!r} and {names[1]!r} share memory, and the payload makes"
                " them differ; decode to new arrays"
            )
    return copy_into(targets, decoded, out)


def parse_unlinked(data: bytes, n_tensors: int, digest: int, taker: str) -> _native.Payload:
    """A payload of :func:`encode`, parsed for a layout of this digest; raises CodecError.

    ``taker`` is who takes payloads that build on versions of a stream.
    """
    parsed = parse_payload(data, n_tensors, digest)
    if parsed.link is not None:
        raise StateMismatchError(
            f"payload: belongs to a stream ({link_from(parsed.link)}): give it to {taker} that"
            " holds this version"
        )
    return parsed


def writable_views(out: State, specs: Specs, on: int | None) -> list[View]:
    """The caller's arrays to write to, which must lie on the device ``on`` (None: the host)."""
    views = views_of(out, "out")
    check_writable(views, specs, on)
    return views


def check_writable(
    views: Sequence[View],
    specs: Specs,
    on: int | None,
    reference: Sequence[View] = (),
) -> list[tuple[int, int]]:
    """Raise ValueError unless a model of this layout can be written to ``out``, on its device.

    See :func:`check_out` for arrays that share memory, and for what it returns.
    """
    check_same_layout(specs_of(views), specs, "out")
    check_same_device(views, on, "out")
    for view in views:
        if view.copied:
            raise ValueError(f"out: tensor {view.spec.name!r} is not C-contiguous and aligned")
        if not view.writable:
            raise ValueError(f"out: tensor {view.spec.name!r} is read-only")
    return check_out(views, reference)


def copy_into(targets: Sequence[View], model: Sequence[Memory], out: Any) -> Any:
    """``out``, whose views are ``targets``, after it has received the model."""
    filled(arrays_of(targets), model)
    publish(view.origin for view in targets)
    return out


# ---- arrays that share memory where they must not


def check_out(out: Sequence[View], reference: Sequence[View] = ()) -> list[tuple[int, int]]:
    """Pairs of tied tensors of ``out`` that are updated in place; mostly none.

    A tensor of ``out`` may be that of the same name in the reference, as a whole. Only where all
    are, and two of them are the same memory in both, may they be so in ``out``.

    Raises:
        ValueError: Writing one tensor of ``out`` would change another, or the reference's.
    """
    written = [view.array for view in out]
    read = written if out is reference else [view.array for view in reference]
    in_place, of_out, of_reference = _native.overlaps(written, read)
    for i, j, same in of_out:
        if not (in_place and same):
            names = sorted(out[k].spec.name for k in (i, j))
            raise ValueError(
                f"out: tensors {names[0]!r} and {names[1]!r} share memory; give each memory of its"
                " own"
            )
    for i, j in of_reference:
        raise ValueError(
            f"out: tensor {out[i].spec.name!r} shares memory with tensor"
            f" {reference[j].spec.name!r} of reference; give other arrays, or out=reference to"
            " update in place"
        )
    return [(i, j) for i, j, _ in of_out]


def same_memory(state: Sequence[Memory], reference: Sequence[Memory]) -> bool:
    """Whether all of a model's memory is the reference's."""
    pairs = [(a, b) for a, b in zip(state, reference, strict=True) if a.nbytes]
    return bool(pairs) and all(_span(a) == _span(b) for a, b in pairs)


def _span(memory: Memory) -> tuple[int, int]:
    """First address, and the one after the last."""
    if isinstance(memory, DeviceArray):
        return memory.pointer, memory.pointer + memory.nbytes
    first: int = memory.__array_interface__["data"][0]  # half the time of array.ctypes.data
    return first, first + memory.nbytes
