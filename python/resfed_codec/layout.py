"""Models as frameworks hold them, seen as a list of named arrays in memory.

A *layout* is the names, shapes and dtypes of a model's tensors. Both ends must have the same one;
its digest is in every payload. Mappings are taken in the order of their sorted names, so that two
ends that built their dictionaries in different orders still agree; sequences have the names "0",
"1", ... in their own order.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from resfed_codec.config import RUNNING_STATISTICS, CodecConfig

if TYPE_CHECKING:
    import torch

Array: TypeAlias = "NDArray[Any] | torch.Tensor"
State: TypeAlias = "Mapping[str, Array] | Sequence[Array]"

MATRIX, VECTOR, LOSSLESS, DENSE = 0, 1, 2, 3
"""Roles, as in csrc/api.hpp."""

_LOSSY_CODES = {"float32": 0, "float16": 1, "bfloat16": 2, "float64": 3}
_LOSSLESS_DTYPES = frozenset(
    ["bool"] + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)


class TensorSpec(NamedTuple):
    """Name, shape and dtype of one tensor. ``dtype`` is NumPy's and torch's common name."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def is_float(self) -> bool:
        return self.dtype in _LOSSY_CODES

    @property
    def n_elems(self) -> int:
        return math.prod(self.shape)

    @property
    def row_length(self) -> int:
        """Elements per first dimension; 0 if there are no rows."""
        return math.prod(self.shape[1:]) if len(self.shape) >= 2 else 0

    @property
    def dtype_code(self) -> int:
        """The native dtype; of no meaning for lossless tensors."""
        return _LOSSY_CODES.get(self.dtype, 0)

    def __str__(self) -> str:
        return f"{self.name!r} {self.dtype} {list(self.shape)}"


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


class View(NamedTuple):
    """One tensor of a state: what it is, and its memory as a C-contiguous NumPy array.

    ``array`` shares memory with the tensor unless ``copied``. bfloat16 is seen as uint16.
    """

    spec: TensorSpec
    array: NDArray[Any]
    copied: bool


def torch_module() -> Any:
    """The torch module if the caller uses it, else None; never imports it."""
    return sys.modules.get("torch")


def is_torch(value: object) -> bool:
    torch = torch_module()
    return torch is not None and isinstance(value, torch.Tensor)


def items_of(state: State, argument: str) -> list[tuple[str, Array]]:
    """The state's tensors in coding order, with names.

    Raises:
        TypeError: ``state`` is neither a mapping from str to arrays nor a sequence of arrays.
    """
    if isinstance(state, Mapping):
        for name in state:
            if not isinstance(name, str):
                raise TypeError(f"{argument}: the name {name!r} must be a str")
        return sorted(state.items())
    if isinstance(state, Sequence) and not isinstance(state, (str, bytes, bytearray)):
        return [(str(i), value) for i, value in enumerate(state)]
    raise TypeError(
        f"{argument}: must be a mapping from names to arrays or a sequence of arrays,"
        f" not {type(state).__name__}"
    )


def view_of(name: str, value: Array, argument: str) -> View:
    """``value`` as contiguous host memory.

    Raises:
        TypeError: No NumPy array or torch tensor, or of a dtype or kind that is not supported.
    """
    where = f"{argument}: tensor {name!r}"
    if is_torch(value):
        return _view_of_torch(name, value, where)
    if not isinstance(value, (np.ndarray, np.generic)):
        raise TypeError(
            f"{where}: must be a numpy.ndarray or a torch.Tensor, not {type(value).__name__}"
        )
    array = np.asarray(value)
    dtype, problem = _dtype_name(array.dtype)
    if problem:
        raise TypeError(f"{where}: dtype {problem}")
    spec = TensorSpec(name, array.shape, dtype)
    copied = isinstance(value, np.generic) or not array.flags.c_contiguous
    if not array.flags.c_contiguous:
        array = array.copy(order="C")
    return View(spec, array.view(np.uint16) if dtype == "bfloat16" else array, copied)


@lru_cache(maxsize=64)
def _dtype_name(dtype: np.dtype[Any]) -> tuple[str, str]:
    """Name of a NumPy dtype, and what is wrong with it ("" if nothing); cached, for it is slow."""
    if not dtype.isnative:
        return dtype.name, f"{dtype.str} is not in this machine's byte order"
    if dtype.name in _LOSSY_CODES or dtype.name in _LOSSLESS_DTYPES:
        return dtype.name, ""
    return dtype.name, f"{dtype.name} is not supported"


def _view_of_torch(name: str, value: Any, where: str) -> View:
    torch = torch_module()
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in _LOSSY_CODES and dtype not in _LOSSLESS_DTYPES:
        raise TypeError(f"{where}: dtype {value.dtype} is not supported")
    if value.layout != torch.strided:
        raise TypeError(f"{where}: layout {value.layout} is not supported; call to_dense() first")
    if value.device.type != "cpu":
        raise TypeError(
            f"{where}: lies on device {value.device}, which this version cannot read; call .cpu()"
            " first"
        )
    plain = value.detach().resolve_conj().resolve_neg()
    contiguous = plain.contiguous()
    copied = contiguous.data_ptr() != value.data_ptr()
    if dtype == "bfloat16":
        contiguous = contiguous.view(torch.uint16)
    return View(TensorSpec(name, tuple(value.shape), dtype), contiguous.numpy(), copied)


def views_of(state: State, argument: str) -> list[View]:
    return [view_of(name, value, argument) for name, value in items_of(state, argument)]


def check_same_layout(
    state: Iterable[TensorSpec], reference: Iterable[TensorSpec], argument: str
) -> None:
    """Raise ValueError, naming both sides, unless the two layouts are equal."""
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


class Layout:
    """Names, shapes, dtypes and kind of a model, taken from one: what all models of a stream share.

    Inside the codec a model is a list of C-contiguous NumPy arrays in coding order (bfloat16 as
    uint16);
    :meth:`model_of` turns a caller's state into that, :meth:`state_of` turns it back.
    """

    def __init__(self, state: State, argument: str) -> None:
        views = views_of(state, argument)
        self.specs = [view.spec for view in views]
        self.digest = layout_digest(self.specs)
        self.names = list(state) if isinstance(state, Mapping) else None
        self._torch = [is_torch(value) for _, value in items_of(state, argument)]
        self._dtypes = [
            view.array.dtype if torch else np.asarray(value).dtype
            for view, torch, (_, value) in zip(
                views, self._torch, items_of(state, argument), strict=True
            )
        ]

    @property
    def n_bytes(self) -> int:
        """Size of a model in bytes."""
        return sum(
            spec.n_elems * dtype.itemsize
            for spec, dtype in zip(self.specs, self._dtypes, strict=True)
        )

    @property
    def uses_torch(self) -> bool:
        return any(self._torch)

    def model_of(self, state: State, argument: str) -> list[NDArray[Any]]:
        """The state's memory; raises ValueError, naming both sides, if its layout is another."""
        views = views_of(state, argument)
        check_same_layout((view.spec for view in views), self.specs, argument)
        return [view.array for view in views]

    def empty(self) -> list[NDArray[Any]]:
        """A new model, not filled."""
        return [
            np.empty(spec.shape, np.uint16 if spec.dtype == "bfloat16" else dtype)
            for spec, dtype in zip(self.specs, self._dtypes, strict=True)
        ]

    def state_of(self, model: Sequence[NDArray[Any]], *, read_only: bool = False) -> Any:
        """``model`` as the caller's kind of state, without copying."""
        values = {
            spec.name: self._array_of(i, model[i], read_only) for i, spec in enumerate(self.specs)
        }
        if self.names is None:
            return [values[spec.name] for spec in self.specs]
        return {name: values[name] for name in self.names}

    def _array_of(self, i: int, array: NDArray[Any], read_only: bool) -> Array:
        if self._torch[i]:
            torch = torch_module()
            tensor: Array = torch.from_numpy(array)
            return tensor.view(torch.bfloat16) if self.specs[i].dtype == "bfloat16" else tensor
        view = array.view(self._dtypes[i])
        if read_only:
            view.flags.writeable = False
        return view


def _quoted(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def layout_digest(specs: Iterable[TensorSpec]) -> int:
    """64 bits that name a layout: BLAKE2b of a text that lists the tensors in coding order."""
    text = "".join(
        f"{len(spec.name)}:{spec.name} {spec.dtype} {','.join(map(str, spec.shape))}\n"
        for spec in specs
    ).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


class Special(NamedTuple):
    """Ordinals of the float tensors that are not in the budget, ascending; no tensor is in both."""

    exclusions: Sequence[int] = ()
    dense: Sequence[int] = ()


NOTHING_SPECIAL = Special()


def special_tensors(specs: Sequence[TensorSpec], config: CodecConfig) -> Special:
    """The tensors that ``exclude`` and ``dense`` name.

    Raises:
        ValueError: A pattern that was given names no tensor at all.
    """
    names = {spec.name for spec in specs}
    for argument, patterns in (("exclude", config.exclude), ("dense", config.dense or ())):
        for pattern in patterns:
            like = (fnmatchcase(name, pattern) for name in names)
            if not (pattern in names if _is_plain(pattern) else any(like)):
                raise ValueError(f"{argument}: no tensor is named like {pattern!r}")
    exclusions = _floats_like(specs, config.exclude)
    excluded = set(exclusions)
    dense = _floats_like(specs, RUNNING_STATISTICS if config.dense is None else config.dense)
    return Special(exclusions, [i for i in dense if i not in excluded])


def _is_plain(pattern: str) -> bool:
    return not any(wildcard in pattern for wildcard in "*?[")


class _Patterns:
    """Name patterns. Those without wildcards are looked up: a model may have many tensors."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._plain = {pattern for pattern in patterns if _is_plain(pattern)}
        self._wild = [pattern for pattern in patterns if not _is_plain(pattern)]

    def fit(self, name: str) -> bool:
        return name in self._plain or any(fnmatchcase(name, pattern) for pattern in self._wild)


def _floats_like(specs: Sequence[TensorSpec], patterns: Sequence[str]) -> list[int]:
    chosen = _Patterns(patterns)
    return [i for i, spec in enumerate(specs) if spec.is_float and chosen.fit(spec.name)]


def roles_of(specs: Sequence[TensorSpec], special: Special = NOTHING_SPECIAL) -> list[int]:
    """The role of each tensor, a function of the layout and of what is excluded or dense.

    Integers, bool and excluded tensors are lossless; of the other floats that are not dense, those
    of two or more dimensions are matrices, the rest vectors. Where there is no matrix at all (say,
    one flat parameter vector) the vectors are treated as matrices.
    """
    exclusions, dense = (set(ordinals) for ordinals in special)
    roles = [
        LOSSLESS
        if not spec.is_float or i in exclusions
        else DENSE
        if i in dense
        else MATRIX
        if len(spec.shape) >= 2
        else VECTOR
        for i, spec in enumerate(specs)
    ]
    return roles if MATRIX in roles else [MATRIX if role == VECTOR else role for role in roles]
