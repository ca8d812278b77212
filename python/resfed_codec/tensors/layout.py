"""Models as frameworks hold them, seen as a list of named arrays in memory.

A *layout* is the names, shapes and dtypes of a model's tensors. Both ends must have the same one;
its digest is in every payload. Mappings are taken in the order of their sorted names, so that two
ends that built their dictionaries in different orders still agree; sequences have the names "0",
"1", ... in their own order, and a mapping with exactly these names is taken in that order too. So
models of equal names always have one order, and what is paired by position is paired by name.
Nested states have names with "/", see nesting.py.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from resfed_codec._native import DeviceArray, DType
from resfed_codec.tensors.dtypes import (
    FLOAT_DTYPES,
    LOSSY_DTYPES,
    PATTERNS,
    SUPPORTED,
    as_patterns,
    from_patterns,
    pattern_dtype,
    pattern_shape,
)
from resfed_codec.tensors.jax_arrays import (
    JaxKind,
    check_jax,
    is_jax,
    keras_value,
    on_cuda,
    read_jax,
)
from resfed_codec.tensors.memory import (
    TORCH,
    Memory,
    Origin,
    SupportsDLPack,
    filled,
    name_of,
    origin_of,
    publish,
    size_kept,
)
from resfed_codec.tensors.nesting import Flat, flattened, rebuilt, registered
from resfed_codec.tensors.torch_tensors import (
    Shards,
    check_readable,
    is_torch,
    local_shard,
    memory_of,
    plain_array,
    plain_torch,
    tensor_over,
)

if TYPE_CHECKING:
    import torch

Array: TypeAlias = "NDArray[Any] | torch.Tensor | SupportsDLPack"
Branch: TypeAlias = "Mapping[Any, Any] | list[Any] | tuple[Any, ...]"
"""A part of a nested state."""

State: TypeAlias = "Mapping[str, Array | Branch] | Sequence[Array | Branch]"

ArrayT = TypeVar("ArrayT", bound="Array | Branch")
Out: TypeAlias = "MutableMapping[str, Any] | Sequence[Any]"
OutT = TypeVar("OutT", bound=Out)
if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault

    StateT = TypeVarWithDefault("StateT", default=Any)
    """What an object returns as a state: a dict or a list of the arrays that it was made from."""
else:
    StateT = TypeVar("StateT")


class TensorSpec(NamedTuple):
    """Name, shape and dtype of one tensor. ``dtype`` is NumPy's and torch's common name."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def is_float(self) -> bool:
        """Whether residuals of it are quantized; what is not travels losslessly."""
        return self.dtype in LOSSY_DTYPES

    @property
    def n_elems(self) -> int:
        """Elements as they are coded: a complex number is two."""
        return math.prod(pattern_shape(self.shape, self.dtype))

    @property
    def row_length(self) -> int:
        """Elements in a row of a tensor of two dimensions; 0 for any other."""
        return self.shape[1] if len(self.shape) == 2 else 0

    @property
    def float_dtype(self) -> DType:
        """The dtype of floats, and of a complex tensor's parts."""
        return FLOAT_DTYPES.get(self.dtype, DType.OTHER)

    def __str__(self) -> str:
        return f"{self.name!r} {self.dtype} {list(self.shape)}"


Specs: TypeAlias = "tuple[TensorSpec, ...]"


def block_sizes(shapes: Sequence[tuple[int, ...]]) -> list[int]:
    """Elements that tend to be sent together, for each matrix of a model; 0 if there are no such.

    Of a convolution those are its kernels, as PyTorch lays them. The rows of a matrix behind it
    have what flattening made of a channel; which convolution it is behind is a guess.
    """
    channels = sorted({s[0] for s in shapes if len(s) >= 3 and s[0]}, reverse=True)

    def size(shape: tuple[int, ...]) -> int:
        if len(shape) != 2:
            return math.prod(shape[2:]) if len(shape) > 2 else 0
        return next((shape[1] // c for c in channels if shape[1] % c == 0), 0)

    return [size(shape) for shape in shapes]


Kind: TypeAlias = "str | Shards | JaxKind | None"


class View(NamedTuple):
    """One tensor of a state: what it is, its memory in C order, and where that came from.

    ``array`` shares memory with the tensor unless ``copied``. On the host it is a NumPy array, held
    as dtypes.py says; ``origin`` is None there. ``kind`` is TORCH, or what makes a DTensor or a
    JAX array; None for arrays of NumPy or of a device.
    """

    spec: TensorSpec
    array: Memory
    copied: bool
    origin: Origin | None
    writable: bool
    kind: Kind = None


def read_once(state: State, argument: str) -> dict[str, Array] | list[Array]:
    """The state's tensors in its own order, by name or in sequence.

    A caller's mapping or sequence may answer otherwise when it is asked again: because it loads
    tensors lazily, or another thread changes it. A call that needs it twice works on this.

    Raises:
        TypeError: ``state`` is no mapping or sequence of arrays, nor a nested one.
        ValueError: Two tensors of a nested state have one name.
    """
    if type(state) is Flat:
        return state
    if isinstance(state, Mapping):
        items: list[tuple[str, Any]] = list(state.items())
        tensors = dict(items)
        flat = flattened(state, tensors, argument)
        if flat is not None:
            return flat
        if {type(name) for name, _ in items} == {str}:  # nearly always
            return tensors
        for name, _ in items:
            if not isinstance(name, str):
                raise TypeError(f"{argument}: the name {name!r} must be a str")
        return {plain_text(name): value for name, value in items}
    if isinstance(state, Sequence) and not isinstance(state, (str, bytes, bytearray)):
        values: list[Any] = list(state)
        flat = flattened(state, values, argument)
        return values if flat is None else flat
    flat = registered(state, argument)
    if flat is None:
        raise TypeError(
            f"{argument}: must be a mapping from names to arrays, a sequence of arrays or a nested"
            f" state, not {type(state).__name__}"
        )
    return flat


def plain_text(text: str) -> str:
    """The same characters as a plain str: subclasses, such as enums, may print as others."""
    return str.__str__(text)


def items_of(state: State, argument: str) -> list[tuple[str, Array]]:
    """The state's tensors in coding order, with names; raises as :func:`read_once`."""
    tensors = read_once(state, argument)
    if isinstance(tensors, list):
        return [(str(i), value) for i, value in enumerate(tensors)]
    return [(name, tensors[name]) for name in _coding_order(tensors)]


def _coding_order(names: Mapping[str, Any]) -> list[str]:
    """The names of a mapping: as a sequence counts them if they are a sequence's, else sorted."""
    numbers = [str(i) for i in range(len(names))] if "0" in names else []
    return numbers if numbers and all(n in names for n in numbers) else sorted(names)


def view_of(name: str, value: Array, argument: str) -> View:
    """``value`` as contiguous memory, where it is.

    Raises:
        TypeError: No NumPy array, torch tensor or array on a CUDA device, or of a dtype or kind
            that is not supported; or CUDA cannot be used.
        ValueError: An array of another library is not C-contiguous.
    """
    if not isinstance(value, (np.ndarray, np.generic)):
        if not is_torch(value):
            return _view_of_other(name, value, argument)
        found = plain_array(value)
        if found is None:
            return _view_of_torch(name, value, f"{argument}: tensor {name!r}")
        array, dtype = found
        return View(TensorSpec(name, array.shape, dtype), array, False, None, True, TORCH)
    plain_type = type(value) is np.ndarray
    if not plain_type and isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{argument}: tensor {name!r}: a masked array would lose its mask; call filled() first"
        )
    array = value if plain_type else np.asarray(value)
    dtype, problem = _dtype_name(array.dtype)
    if problem:
        raise TypeError(f"{argument}: tensor {name!r}: dtype {problem}")
    flags = array.flags
    plain = flags.c_contiguous and flags.aligned
    copied = isinstance(value, np.generic) or not plain
    if plain:
        memory = array
    else:
        with size_kept(array):
            memory = array.copy(order="C")
    held = as_patterns(memory, dtype)
    return View(TensorSpec(name, array.shape, dtype), held, copied, None, flags.writeable)


@lru_cache(maxsize=64)
def _dtype_name(dtype: np.dtype[Any]) -> tuple[str, str]:
    """Name of a NumPy dtype, and what is wrong with it ("" if nothing); cached, for it is slow."""
    if not dtype.isnative:
        return dtype.name, (
            f"{dtype.str} is not in this machine's byte order; convert with"
            " astype(dtype.newbyteorder('='))"
        )
    if dtype.name in SUPPORTED:
        return dtype.name, ""
    return dtype.name, f"{dtype.name} is not supported; {_advice(dtype)}"


def _advice(dtype: np.dtype[Any]) -> str:
    if dtype.type in (np.longdouble, np.clongdouble):
        kind = "complex128" if dtype.kind == "c" else "float64"
        return f"its size differs between machines; convert with astype({kind!r})"
    if dtype.fields is not None:
        return "pass each field as a tensor of its own"
    return "convert to numbers first, or leave the tensor out"


def _view_of_other(name: str, value: Any, argument: str) -> View:
    where = f"{argument}: tensor {name!r}"
    if is_jax(value):
        check_jax(value, where)
        if not on_cuda(value):
            values, kind = read_jax(value)
            return view_of(name, values, argument)._replace(writable=False, kind=kind)
    held = keras_value(value)
    if held is not None:
        return view_of(name, held, argument)
    origin = origin_of(value)
    if origin is None:
        raise TypeError(
            f"{where}: must be a numpy.ndarray, a torch.Tensor, a jax.Array, a keras.Variable or an"
            f" array on a CUDA device that speaks DLPack, not {type(value).__name__}"
        )
    return _view_on_device(name, value, origin, where)


def _view_on_device(name: str, value: Any, origin: Origin, where: str) -> View:
    from resfed_codec.tensors import device

    array = device.array_of(value, origin, "", where)
    if array.dtype not in SUPPORTED or array.dtype in PATTERNS.keys() - LOSSY_DTYPES.keys():
        raise TypeError(f"{where}: dtype {array.dtype} is not supported")
    spec = TensorSpec(name, tuple(array.shape), array.dtype)
    return View(spec, array, False, origin, device.is_writable(value, origin))


def _view_of_torch(name: str, value: Any, where: str) -> View:
    value, shards = local_shard(value, where)
    kind = shards or TORCH
    check_readable(value, where)
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in SUPPORTED:
        raise TypeError(f"{where}: dtype {value.dtype} is not supported")
    spec = TensorSpec(name, tuple(value.shape), dtype)
    origin = origin_of(value)
    lazy = value.is_neg() or value.is_conj()
    copied = lazy or not value.is_contiguous()
    if copied:
        value = value.resolve_conj().resolve_neg().contiguous()
    if origin is not None:
        from resfed_codec.tensors import device

        return View(spec, device.array_of(value, origin, dtype, where), copied, origin, True, kind)
    return View(spec, memory_of(value, dtype), copied, None, True, kind)


def views_of(state: State, argument: str) -> list[View]:
    """The state's tensors in coding order, all on one device.

    Raises:
        TypeError, ValueError: As :func:`items_of` and :func:`view_of`; tensors on two devices.
    """
    items = items_of(state, argument)
    with plain_torch():
        views = [view_of(name, value, argument) for name, value in items]
    first = device_of(views)
    for view in views:
        if _device(view) != first:
            raise ValueError(
                f"{argument}: tensor {views[0].spec.name!r} lies on {name_of(first)}"
                f" and tensor {view.spec.name!r} on {name_of(_device(view))}; all must lie on one"
                " device"
            )
    return views


def specs_of(views: Iterable[View]) -> Specs:
    return tuple(view.spec for view in views)


def arrays_of(views: Iterable[View]) -> list[Memory]:
    return [view.array for view in views]


def _device(view: View) -> int | None:
    return view.origin.device if view.origin else None


def device_of(views: Sequence[View]) -> int | None:
    """The CUDA device that a model lies on, None for the host."""
    return _device(views[0]) if views else None


def check_same_device(views: Sequence[View], expected: int | None, argument: str) -> None:
    """Raise ValueError unless the model lies on the device that the reference lies on."""
    if views and _device(views[0]) != expected:
        raise ValueError(
            f"{argument}: tensor {views[0].spec.name!r} lies on {name_of(_device(views[0]))}, and"
            f" that of reference on {name_of(expected)}; both must lie on one device"
        )


def check_same_layout(
    state: Sequence[TensorSpec], reference: Sequence[TensorSpec], argument: str
) -> None:
    """Raise ValueError, naming both sides, unless the two layouts are equal."""
    if state == reference:
        return
    ours = {spec.name: spec for spec in state}
    theirs = {spec.name: spec for spec in reference}
    missing = [name for name in theirs if name not in ours]
    extra = [name for name in ours if name not in theirs]
    if missing or extra:
        parts = []
        if missing:
            parts.append(f"lacks {_quoted(missing)}, which reference has")
        if extra:
            parts.append(f"has {_quoted(extra)}, which reference lacks")
        raise ValueError(f"{argument} {' and '.join(parts)}")
    for name, spec in ours.items():
        if spec != theirs[name]:
            raise ValueError(f"{argument} and reference differ: {spec} against {theirs[name]}")
    raise ValueError(f"{argument} and reference have their tensors in different orders")


def read_model(state: State, argument: str) -> tuple[Layout, list[Memory]]:
    """A caller's model: its layout and its memory."""
    state = read_once(state, argument)
    views = views_of(state, argument)
    return Layout(state, argument, views), arrays_of(views)


class Layout:
    """Names, shapes, dtypes and kind of a model, taken from one: what all models of a stream share.

    Inside the codec a model is a list of arrays in coding order and in C order: NumPy arrays, held
    as dtypes.py says, or all on one CUDA device. :meth:`model_of` turns a caller's state into
    that, :meth:`state_of` turns it back. ``views`` are the model's, if they have been made.
    """

    def __init__(self, state: State, argument: str, views: Sequence[View] | None = None) -> None:
        state = read_once(state, argument)
        views = views_of(state, argument) if views is None else views
        self.names = list(state) if isinstance(state, dict) else None
        self.template = state.template if isinstance(state, Flat) else None
        self.specs = specs_of(views)
        self.digest = layout_digest(self.specs)
        self.device = device_of(views)
        self.origins = [view.origin for view in views]
        self.kinds = [view.kind for view in views]
        self.uses_torch = any(kind == TORCH or isinstance(kind, Shards) for kind in self.kinds)
        if isinstance(state, dict):
            state = [state[view.spec.name] for view in views]
        self._dtypes: list[Any] = [
            view.array.dtype if view.kind or view.origin else np.asarray(value).dtype
            for view, value in zip(views, state, strict=True)
        ]
        self.n_bytes = sum(view.array.nbytes for view in views)

    def model_of(self, state: State, argument: str) -> list[Memory]:
        """The state's memory; ValueError, naming both sides, for another layout or device."""
        views = views_of(state, argument)
        check_same_layout(specs_of(views), self.specs, argument)
        check_same_device(views, self.device, argument)
        return arrays_of(views)

    def part_of(self, state: State, argument: str) -> list[Memory | None]:
        """As :meth:`model_of` of a mapping that may lack tensors: None in the places of these."""
        views = views_of(state, argument)
        given = {view.spec.name: view for view in views}
        held = [spec for spec in self.specs if spec.name in given]
        extra = [v.spec for v in views if v.spec.name not in {spec.name for spec in held}]
        ours = tuple(given[spec.name].spec for spec in held)
        check_same_layout((*ours, *extra), tuple(held), argument)
        check_same_device(views, self.device, argument)
        return [given[s.name].array if s.name in given else None for s in self.specs]

    def empty(self) -> list[Memory]:
        """A new model, not filled."""
        pairs = zip(self.specs, self.origins, strict=True)
        return [_empty_memory(spec, origin) for spec, origin in pairs]

    def copy_of(self, model: Sequence[Memory]) -> list[Memory]:
        """A model of its own, with the same values."""
        return filled(self.empty(), model)

    def state_of(self, model: Sequence[Memory], *, read_only: bool = False) -> Any:
        """``model`` as the caller's kind of state, without copying."""
        publish(self.origins)
        with plain_torch():
            values = {
                spec.name: self._array_of(i, model[i], read_only)
                for i, spec in enumerate(self.specs)
            }
        if self.template is not None:
            return rebuilt(self.template, values)
        if self.names is None:
            return [values[spec.name] for spec in self.specs]
        return {name: values[name] for name in self.names}

    def _array_of(self, i: int, array: Memory, read_only: bool) -> Any:
        origin, kind, dtype = self.origins[i], self.kinds[i], self.specs[i].dtype
        if origin is not None:
            from resfed_codec.tensors import device

            assert isinstance(array, DeviceArray)
            value = device.value_of(array, origin, dtype)
            return kind.tensor_of(value) if isinstance(kind, Shards) else value
        assert isinstance(array, np.ndarray)
        if kind == TORCH:
            return tensor_over(array, dtype)
        if isinstance(kind, Shards):
            return kind.tensor_of(tensor_over(array, dtype))
        if isinstance(kind, JaxKind):
            return kind.array_of(from_patterns(array, kind.dtype, self.specs[i].shape))
        if array.dtype == self._dtypes[i] and not read_only:
            return array
        view = from_patterns(array, self._dtypes[i], self.specs[i].shape)
        if read_only:
            view.flags.writeable = False
        return view


def _empty_memory(spec: TensorSpec, origin: Origin | None) -> Memory:
    if origin is None:
        return np.empty(pattern_shape(spec.shape, spec.dtype), pattern_dtype(spec.dtype))
    from resfed_codec.tensors import device

    value = device.new_value(origin, spec.shape, spec.dtype)
    return device.array_of(value, origin, spec.dtype, "result")


def _quoted(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


@lru_cache(maxsize=16)
def layout_digest(specs: Specs) -> int:
    """64 bits that name a layout: BLAKE2b of a text that lists the tensors in coding order."""
    text = "".join(
        f"{len(spec.name)}:{spec.name} {spec.dtype} {','.join(map(str, spec.shape))}\n"
        for spec in specs
    ).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
