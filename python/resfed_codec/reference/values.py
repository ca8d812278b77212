"""Sections 1, 4 and 6 of docs/format.md as NumPy: tensors, values, the reference check."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from resfed_codec.reference.symbols import Nonzeros

State: TypeAlias = "Mapping[str, NDArray[Any]] | Sequence[NDArray[Any]]"

F32 = np.float32
LOSSY = ("float32", "float16", "bfloat16", "float64")
LARGEST = {2: 0x7BFF, 4: 0x7F7FFFFF, 8: 0x7FEFFFFFFFFFFFFF}
MASK64 = 2**64 - 1


# ---- 1. Layout, roles, groups


@dataclass
class Tensor:
    """One tensor, flattened; what section 1 codes as bit patterns is held as those."""

    name: str
    element: np.dtype[Any]
    shape: tuple[int, ...]
    reference: NDArray[Any]
    state: NDArray[Any] | None = None
    exponent: int = 0

    @property
    def dtype(self) -> str:
        return str(self.element.name)

    @property
    def is_float(self) -> bool:
        return self.dtype in LOSSY

    def shaped(self, held: NDArray[Any]) -> NDArray[Any]:
        """The tensor whose elements are held like that."""
        return held.view(self.element).reshape(self.shape)


Writes: TypeAlias = "list[tuple[Tensor, int, Any]]"
"""Elements that get a new value: tensor, where in it, and the value as it is held."""


def held(array: NDArray[Any]) -> NDArray[Any]:
    """The elements, flat; of bool, dtypes that are not NumPy's own and complex numbers' parts, the
    bit patterns."""
    array = np.ascontiguousarray(array).ravel()
    if "complex" in array.dtype.name:
        return array.view(f"u{array.itemsize // 2}")
    return (
        array
        if array.dtype.isbuiltin == 1 and array.dtype.kind != "b"
        else array.view(f"u{array.itemsize}")
    )


def items_of(model: State) -> Iterator[tuple[str, NDArray[Any]]]:
    """Names and arrays in layout order."""
    if not isinstance(model, Mapping):
        model = {str(i): array for i, array in enumerate(model)}
    numbers = [str(i) for i in range(len(model))]
    for name in numbers if set(numbers) == set(model) else sorted(model):
        yield name, np.asarray(model[name])


def tensors_of(reference: State, state: State | None = None) -> list[Tensor]:
    """The tensors of a reference in layout order, with those of a state of the same layout."""
    tensors = [Tensor(name, a.dtype, a.shape, held(a)) for name, a in items_of(reference)]
    if state is not None:
        current = tensors_of(state)
        if [(t.name, t.dtype, t.shape) for t in current] != [
            (t.name, t.dtype, t.shape) for t in tensors
        ]:
            raise ValueError("state: its layout is not that of the reference")
        for t, now in zip(tensors, current, strict=True):
            t.state = now.reference
    return tensors


def as_model(arrays: Mapping[str, NDArray[Any]], like: State) -> Any:
    """Arrays by name as a model of this kind, in its order."""
    if isinstance(like, Mapping):
        return {name: arrays[name] for name in like}
    return list(arrays.values())


def layout_digest(tensors: list[Tensor]) -> bytes:
    text = "".join(
        f"{len(t.name)}:{t.name} {t.dtype} {','.join(str(d) for d in t.shape)}\n" for t in tensors
    )
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def groups_of(
    tensors: list[Tensor], exclusions: Sequence[int], dense_tensors: Sequence[int]
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Matrices, vectors, dense tensors, lossless tensors."""
    matrices: list[Tensor] = []
    vectors: list[Tensor] = []
    dense: list[Tensor] = []
    lossless: list[Tensor] = []
    for i, t in enumerate(tensors):
        if not t.is_float or i in exclusions:
            lossless.append(t)
        elif i in dense_tensors:
            dense.append(t)
        else:
            (matrices if len(t.shape) >= 2 else vectors).append(t)
    return (matrices, vectors, dense, lossless) if matrices else (vectors, [], dense, lossless)


def size_of(group: list[Tensor]) -> int:
    return sum(t.reference.size for t in group)


def locate(group: list[Tensor], element: int) -> tuple[Tensor, int]:
    """The tensor that holds a group's element, and where in it."""
    for t in group:
        if element < t.reference.size:
            return t, element
        element -= t.reference.size
    raise IndexError(element)


# ---- 4. Values


def widen(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    """What arithmetic is done in: float64 for float64, else float32."""
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(F32)
    return array if dtype == "float64" else array.astype(F32)


def patterns(array: NDArray[Any]) -> NDArray[Any]:
    """Elements as the integers that have their bits."""
    return array.view(f"u{array.itemsize}")


def residuals(group: list[Tensor], scaled: bool) -> NDArray[np.float32]:
    parts = [np.zeros(0, F32)]
    for t in group:
        assert t.state is not None
        with np.errstate(invalid="ignore"):
            r = (widen(t.state, t.dtype) - widen(t.reference, t.dtype)).astype(F32)
        r[patterns(t.state) == patterns(t.reference)] = 0
        parts.append(r * F32(2.0) ** F32(-t.exponent) if scaled else r)
    return np.concatenate(parts)


@dataclass
class Quantizer:
    threshold: np.float32
    step: np.float32
    offsets: list[int] = field(default_factory=list)

    def value(self, level: int) -> np.float32:
        offset = self.offsets[level - 1] if level <= len(self.offsets) else 128
        steps = F32(level - 1) + F32(offset) / F32(256)
        return min(F32(self.threshold + steps * self.step), np.finfo(F32).max)


def recover(t: Tensor, where: int, level: int, quantizer: Quantizer) -> Any:
    """The element after recovery, in the tensor's dtype (bfloat16: its bits)."""
    magnitude = quantizer.value(abs(level)) * F32(2.0) ** F32(t.exponent)
    value = F32(-magnitude if level < 0 else magnitude)
    old = widen(t.reference[where : where + 1], t.dtype)[0]
    total = old + (np.float64(value) if t.dtype == "float64" else value)
    if t.dtype == "bfloat16":
        total = saturate(F32(total), 4)
        bits = int(total.view(np.uint32))
        bits = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        if bits & 0x7FFF >= 0x7F80:
            bits = bits & 0x8000 | 0x7F7F
        return np.uint16(bits)
    new = np.dtype(t.dtype).type(total)
    return saturate(new, new.itemsize)


def saturate(value: Any, n_bytes: int) -> Any:
    if not np.isinf(value):
        return value
    largest = np.uint64(LARGEST[n_bytes]).astype(f"u{n_bytes}").view(value.dtype)
    return largest if value > 0 else -largest


# ---- 6. The reference check


def bits_of(value: np.generic) -> int:
    return int.from_bytes(value.tobytes(), "little")


def check_term(element: int, old: int, new: int) -> int:
    z = (element + 1) * 0x9E3779B97F4A7C15 + old * 0xD1B54A32D192ED03 + new * 0x8CB92BA72F3D8DD7
    z &= MASK64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK64
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK64
    return (z ^ z >> 31) >> 32


def recover_group(
    group: list[Tensor], sent: Nonzeros, quantizer: Quantizer | None
) -> tuple[Writes, int]:
    """(tensor, where, new value) of each sent element, and the group's term of the check."""
    writes: Writes = []
    check = 0
    for element, level in sent:
        assert quantizer is not None
        t, where = locate(group, element)
        new = recover(t, where, level, quantizer)
        check += check_term(element, bits_of(t.reference[where]), bits_of(new))
        writes.append((t, where, new))
    return writes, check
