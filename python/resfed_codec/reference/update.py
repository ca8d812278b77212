"""Updates: sections 7 and 8 of docs/format.md as NumPy, slow and readable.

Use it to understand the format or to start an implementation of your own, and for work
:func:`resfed_codec.encode`. Section numbers are those of docs/format.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resfed_codec.errors import PayloadError, StateMismatchError
from resfed_codec.reference.changes import find_changes, restore_group
from resfed_codec.reference.frame import Frame, Group, read_frame, write_frame
from resfed_codec.reference.lanes import (
    LANE_LOG2,
    decode_changes,
    decode_nonzeros,
    encode_changes,
    encode_nonzeros,
    lane_sizes,
)
from resfed_codec.reference.scan import Matrix
from resfed_codec.reference.symbols import MAX_LEVEL, Nonzeros
from resfed_codec.reference.values import (
    F32,
    Quantizer,
    State,
    Tensor,
    as_model,
    groups_of,
    layout_digest,
    patterns,
    recover,
    recover_group,
    residuals,
    size_of,
    tensors_of,
    widen,
)

VECTOR_SHARE = 10
DEFAULT_SPARSITY, MIN_ELEMENTS = 0.99, 1024
NORM_ATTEMPTS = 20


@dataclass(frozen=True, kw_only=True)
class Options:
    """What an encoder is asked for, as in :class:`resfed_codec.CodecConfig` but not checked.

    ``dense`` and ``exclude`` are names or patterns of :mod:`fnmatch`. No tensor is dense by
    default.
    """

    sparsity: float | None = None
    max_bytes: int | None = None
    max_error: float | None = None
    max_norm: float | None = None
    step: float | str = "auto"
    bits: int | None = None
    exclude: str | Sequence[str] = ()
    dense: str | Sequence[str] = ()
    dense_bits: int = 3
    lane_log2: int = LANE_LOG2

    def counts(self, matrices: list[Tensor], vectors: list[Tensor]) -> tuple[int, int]:
        """How many elements of matrices and of vectors are sent. Tensors without any residual are
        not counted."""
        n_m, n_v = (
            sum(t.reference.size for t in group if np.any(residuals([t], scaled=False)))
            for group in (matrices, vectors)
        )
        sparsity = DEFAULT_SPARSITY if self.sparsity is None else float(self.sparsity)
        density = 1 - Fraction(repr(sparsity))
        if self.sparsity is None and n_m + n_v:
            density = max(density, Fraction(MIN_ELEMENTS, n_m + VECTOR_SHARE * n_v))
            if n_m:
                density = max(density, Fraction(MIN_ELEMENTS - n_v, n_m))
        k_m = n_m * min(Fraction(1), density)
        k_v = n_v * min(Fraction(1), VECTOR_SHARE * density)
        return math.ceil(k_m), math.ceil(k_v)

    def special(self, tensors: list[Tensor]) -> tuple[list[int], list[int]]:
        """Ordinals of the floats that are excluded, and of those that are dense."""
        floats = {t.name: i for i, t in enumerate(tensors) if t.is_float}
        names = [t.name for t in tensors]
        exclusions, dense = (
            [i for name, i in floats.items() if is_named(name, patterns, names)]
            for patterns in (self.exclude, self.dense)
        )
        return exclusions, [i for i in dense if i not in exclusions]


def is_named(name: str, patterns: str | Sequence[str], names: list[str]) -> bool:
    """Whether a pattern means this name; what is a tensor's name means that tensor alone."""
    return any(
        name == pattern or (pattern not in names and fnmatchcase(name, pattern))
        for pattern in ([patterns] if isinstance(patterns, str) else patterns)
    )


# ---- 8. Encoding


def exact_squares(values: NDArray[np.float32]) -> float:
    """The sum of squares, as the format rounds it."""
    bits = values.view(np.uint32) & 0x7FFFFFFF
    exponents = np.maximum(bits >> 23, 1)
    mantissas = (bits & 0x7FFFFF | np.where(bits >> 23, 0x800000, 0)).astype(np.uint64)
    total = 0.0
    for x in np.unique(exponents):
        squares = mantissas[exponents == x] ** 2
        low = sum(int(s) & 0xFFFFFF for s in squares)
        high = sum(int(s) >> 24 for s in squares)
        total += (float(high) * 2.0**24 + float(low)) * 2.0 ** (2 * int(x) - 300)
    return total


def choose_exponents(group: list[Tensor]) -> None:
    for t in group:
        if t.reference.size:
            mean = exact_squares(residuals([t], scaled=False)) / t.reference.size
            if mean > 0:
                t.exponent = min(max((math.frexp(mean)[1] - 1) // 2, -120), 120)


def select(r: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    keys = r.view(np.uint32) & 0x7FFFFFFF
    order = np.lexsort((np.arange(r.size), -keys.astype(np.int64)))[:k]
    return np.sort(order[keys[order] > 0])


def fit_quantizer(
    sent: NDArray[np.float32], options: Options, automatic: bool
) -> tuple[Quantizer, int]:
    """Quantizer without offsets, and the highest level."""
    magnitudes = np.abs(sent)
    threshold = float(magnitudes.min())
    span = float(magnitudes.max()) - threshold
    ratio = 0.55 if options.step == "auto" else float(options.step)
    step, most = threshold / ratio, MAX_LEVEL
    if options.bits is not None:
        most = 2 ** (options.bits - 1)
        step = span / most if span > 0 else step
    else:
        if automatic and options.step == "auto":
            step = max(step, math.sqrt(exact_squares(sent) / sent.size) / 16)
        step = max(step, span / 2**22)
    step = min(max(step, 2.0**-149), float(np.finfo(F32).max))
    return Quantizer(F32(threshold), F32(step)), most


@dataclass
class Sent:
    """What a payload sends of one group."""

    quantizer: Quantizer | None
    nonzeros: Nonzeros
    writes: list[tuple[Tensor, int, Any]]
    check: int


def code_group(group: list[Tensor], k: int, options: Options, automatic: bool = True) -> Sent:
    r = residuals(group, scaled=True)
    index = select(r, k)
    if index.size == 0:
        return Sent(None, [], [], 0)
    quantizer, most = fit_quantizer(r[index], options, automatic)
    nonzeros = quantize(r, index, quantizer, most)
    writes, check = recover_group(group, nonzeros, quantizer)
    return Sent(quantizer, nonzeros, writes, check)


def quantize(
    r: NDArray[np.float32], index: NDArray[np.int64], quantizer: Quantizer, most: int
) -> Nonzeros:
    """Levels with signs; completes the quantizer with its offsets."""
    t = (np.abs(r[index]) - quantizer.threshold) / quantizer.step
    levels = np.minimum(np.floor(np.minimum(t, F32(most))).astype(np.int64) + 1, most)
    inside = np.minimum((t - (levels - 1).astype(F32)) * F32(65536), F32(65535))
    positions = np.floor(inside).astype(np.int64)
    for level in range(1, min(4, int(levels.max(initial=0))) + 1):
        q = positions[levels == level]
        n = 256 * q.size
        quantizer.offsets.append(min((int(q.sum()) + n // 2) // n, 255) if n else 128)
    signs = np.where(np.signbit(r[index]), -1, 1)
    return [(int(i), int(v)) for i, v in zip(index, levels * signs, strict=True)]


def code_dense(group: list[Tensor], bits: int) -> Sent:
    r = residuals(group, scaled=True)
    step = F32(2.0 ** (2 - bits))
    quantizer = Quantizer(step / F32(2), step)
    index = np.flatnonzero(np.abs(r) >= quantizer.threshold)
    levels = dict(quantize(r, index, quantizer, MAX_LEVEL))
    element = 0
    for t in group:
        assert t.state is not None
        guarded = not (widen(t.state, t.dtype) < 0).any()
        for where in range(t.reference.size):
            level = levels.get(element, 0)
            while guarded and level < MAX_LEVEL:
                new = recover(t, where, level, quantizer) if level else t.reference[where]
                if not widen(np.array([new]), t.dtype)[0] < 0:
                    break
                level += 1
            levels[element] = level
            element += 1
    nonzeros = [(element, level) for element, level in sorted(levels.items()) if level]
    if not nonzeros:
        return Sent(None, [], [], 0)
    writes, check = recover_group(group, nonzeros, quantizer)
    return Sent(quantizer, nonzeros, writes, check)


def remaining_squares(group: list[Tensor], sent: Sent) -> float:
    """E of section 8: the exact sum of squares of the residuals after recovery."""
    saved = [t.reference for t in group]
    for t in group:
        t.reference = t.reference.copy()
    for t, where, new in sent.writes:
        t.reference[where] = new
    left = exact_squares(residuals(group, scaled=False))
    for t, reference in zip(group, saved, strict=True):
        t.reference = reference
    return left


def float64_changes(group: list[Tensor]) -> int:
    """Elements of float64 tensors that change, however little."""
    return sum(
        int(np.sum((t.state != t.reference) & (patterns(t.state) != patterns(t.reference))))
        for t in group
        if t.dtype == "float64" and t.state is not None
    )


def first_that_holds(low: int, high: int, holds: Callable[[int], bool]) -> int:
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return high


def within_error(group: list[Tensor], options: Options) -> Sent:
    assert options.max_error is not None
    n, bound = size_of(group), float(options.max_error)
    nothing = Sent(None, [], [], 0)
    everything = remaining_squares(group, nothing)
    limit = bound * bound * (1 - 1e-6) * everything
    changed = float64_changes(group)
    if changed:
        root = math.sqrt(limit) - (1 + bound) * (math.sqrt(changed) * 2.0**-150)
        if root <= 0:
            raise ValueError("max_error: changes too small for residuals of float32")
        limit = root * root
    best = nothing

    def holds(k: int) -> bool:
        nonlocal best
        sent = code_group(group, k, options, automatic=False)
        if remaining_squares(group, sent) > limit:
            return False
        best = sent
        return True

    if everything == 0 or holds(0):
        return best
    low, high = 0, min(n, 1 + n // 256)
    while not holds(high):
        if high == n:
            raise ValueError("max_error: the bound cannot be reached")
        low, high = high + 1, min(n, 4 * high)
    first_that_holds(low, high, holds)
    return best


def bounds_of_changes(sent: Sent) -> NDArray[np.float32]:
    """D of section 8: for each element that changes, a bound above its change."""
    changes = [
        abs(
            float(widen(np.array([new]), t.dtype)[0])
            - float(widen(t.reference[i : i + 1], t.dtype)[0])
        )
        for t, i, new in sent.writes
    ]
    rounded = np.array([c for c in changes if c > 0]).astype(F32)
    above: NDArray[np.float32] = (rounded.view(np.uint32) + np.uint32(1)).view(F32)
    return above


def within_norm(groups: list[tuple[list[Tensor], Sent]], max_norm: float) -> list[Sent]:
    """The same nonzeros with thresholds and steps that keep the norm of all changes, or nothing."""
    limit, factor = max_norm * max_norm * (1 - 2.0**-39), 1.0
    limited = [sent for _, sent in groups]
    for attempt in range(NORM_ATTEMPTS):
        squares = exact_squares(np.concatenate([bounds_of_changes(sent) for sent in limited]))
        if squares <= limit:
            return limited
        factor *= math.sqrt(limit / squares) * (1 - 2.0 ** (attempt - 20))
        limited = [scaled(group, sent, factor) for group, sent in groups]
    return [Sent(None, [], [], 0) for _ in groups]


def scaled(group: list[Tensor], sent: Sent, factor: float) -> Sent:
    if sent.quantizer is None:
        return sent
    threshold, step = (
        max(F32(float(value) * factor), F32(2.0**-149))
        for value in (sent.quantizer.threshold, sent.quantizer.step)
    )
    quantizer = Quantizer(threshold, step, sent.quantizer.offsets)
    return Sent(quantizer, sent.nonzeros, *recover_group(group, sent.nonzeros, quantizer))


# ---- The payload


def matrices_of(group: list[Tensor]) -> list[Matrix]:
    """The tensors of the matrix group that are not empty, as the coder of nonzeros knows them."""
    channels = sorted({t.shape[0] for t in group if len(t.shape) >= 3 and t.shape[0]})
    matrices, begin = [], 0
    for t in group:
        m = Matrix(begin, t.reference.size)
        if len(t.shape) == 2:
            m.row_length = t.shape[1]
            fitting = [c for c in channels if t.shape[1] % c == 0]
            m.block = t.shape[1] // fitting[-1] if fitting else 0
        elif len(t.shape) > 2:
            m.block = math.prod(t.shape[2:])
        begin += m.size
        if m.size:
            matrices.append(m)
    return matrices


def as_header(group: list[Tensor], sent: Sent) -> Group:
    """What the header says of a group."""
    exponents = [t.exponent for t in group if t.reference.size]
    return Group(size_of(group), len(sent.nonzeros), sent.quantizer, exponents)


def encode(state: State, reference: State, **options: Any) -> bytes:
    """The same bytes as :func:`resfed_codec.encode`, from NumPy arrays.

    Args:
        state: The model to be sent: a mapping from names to arrays, or a sequence of arrays. Every
            number is finite.
        reference: What the receiver has, of the same layout.
        **options: ``sparsity``, ``max_bytes``, ``max_error``, ``max_norm``, ``step``, ``bits``,
            ``exclude``, ``dense`` and ``dense_bits``, as of :class:`resfed_codec.CodecConfig`, but
            not checked; and ``dense`` has no default that goes by names.

    Raises:
        ValueError: The layouts differ, or the target cannot be reached.
    """
    tensors = tensors_of(reference, state)
    return encode_tensors(tensors, Options(**options), layout_digest(tensors))


def encode_tensors(
    tensors: list[Tensor], options: Options, digest: bytes, link: bytes = b""
) -> bytes:
    """The payload of tensors whose reference is what the receiver predicts."""
    exclusions, dense_tensors = options.special(tensors)
    matrices, vectors, denses, lossless = groups_of(tensors, exclusions, dense_tensors)
    choose_exponents(vectors)
    choose_exponents(denses)
    dense = code_dense(denses, options.dense_bits)

    changes = find_changes(lossless)
    _, changes_check = restore_group(lossless, changes)
    change_tables, lossless_slices = encode_changes(changes, options.lane_log2)

    def payload(matrix: Sent, vector: Sent, dense: Sent = dense) -> bytes:
        n_m, n_v = size_of(matrices), size_of(vectors)
        nonzeros = matrix.nonzeros + [(n_m + i, level) for i, level in vector.nonzeros]
        nonzeros += [(n_m + n_v + i, level) for i, level in dense.nonzeros]
        tables, slices = encode_nonzeros(nonzeros, matrices_of(matrices), options.lane_log2)
        frame = Frame(
            digest=digest,
            check=(matrix.check + vector.check + dense.check + changes_check) % 2**32,
            link=link,
            matrix=as_header(matrices, matrix),
            vector=as_header(vectors, vector),
            dense=as_header(denses, dense),
            n_lossless=size_of(lossless),
            n_changed=len(changes),
            exclusions=exclusions,
            dense_tensors=dense_tensors,
            tables=tables,
            change_tables=change_tables,
            slices=slices + lossless_slices,
            lane_log2=options.lane_log2,
        )
        return write_frame(frame)

    def counts(t: int) -> tuple[int, int]:
        n_m, n_v = size_of(matrices), size_of(vectors)
        k_m = -(-n_m * t // (n_m + n_v)) if t else 0
        return k_m, min(n_v, -(-VECTOR_SHARE * n_v * t // (n_m + n_v))) if t else 0

    def of_counts(k_m: int, k_v: int) -> tuple[Sent, Sent]:
        return code_group(matrices, k_m, options), code_group(vectors, k_v, options)

    if options.max_error is not None:
        matrix, vector = within_error(matrices, options), within_error(vectors, options)
    elif options.max_bytes is not None:
        budget, least = options.max_bytes, len(payload(*of_counts(0, 0)))
        if least > budget:
            raise ValueError(f"max_bytes: too small; the smallest payload takes {least} bytes")
        total = size_of(matrices) + size_of(vectors)
        t = most_within(budget, total, least, lambda t: len(payload(*of_counts(*counts(t)))))
        matrix, vector = of_counts(*counts(t))
    else:
        matrix, vector = of_counts(*options.counts(matrices, vectors))
    if options.max_norm is None:
        return payload(matrix, vector)
    if changes:
        raise ValueError("max_norm: a lossless tensor has changed")
    sent = [(matrices, matrix), (vectors, vector), (denses, dense)]
    return payload(*within_norm(sent, options.max_norm))


def most_within(budget: int, total: int, least: int, size_of: Callable[[int], int]) -> int:
    """The t whose payload is sent; ``least`` is the size at 0, which fits."""
    low, low_size, high = 1, least, min(total, 4 * budget)
    while high > 0 and (size := size_of(high)) <= budget:
        low, low_size = high + 1, size
        if high == total:
            return total
        high = min(total, 2 * high)
    high_size, fitted = size if high > 0 else 0, False
    while low + low // 1024 < high:
        width = high - low
        middle = low + width // 2
        if low > 65536 and high_size <= 2 * budget:
            met = width * (budget - low_size) // (high_size - low_size)
            slack = low // 2048
            middle = low + (min(met + slack, width - 1) if fitted else max(met - slack, 0))
        size = size_of(middle)
        fitted = size <= budget
        if fitted:
            low, low_size = middle + 1, size
        else:
            high, high_size = middle, size
    return low - 1


# ---- 7. Decoding


def decode(payload: bytes, reference: State) -> Any:
    """The same model as :func:`resfed_codec.decode`, in NumPy arrays.

    Args:
        payload: Of either encoder.
        reference: What the encoder had as its reference, in NumPy arrays.

    Raises:
        PayloadError: The payload is damaged, truncated, or none at all.
        StateMismatchError: The payload was made for another layout, or another reference.
    """
    tensors = tensors_of(reference)
    f = read_frame(bytes(payload), len(tensors), layout_digest(tensors))
    return as_model(decode_tensors(f, tensors), reference)


def decode_tensors(f: Frame, tensors: list[Tensor]) -> dict[str, NDArray[Any]]:
    """The recovered tensors by name, from those that the payload builds on."""
    if any(not tensors[i].is_float for i in f.dense_tensors):
        raise PayloadError("payload: a tensor that is dense but no float")
    groups = groups_of(tensors, f.exclusions, f.dense_tensors)
    headers = (f.matrix, f.vector, f.dense)
    if [*(h.n_elems for h in headers), f.n_lossless] != [size_of(g) for g in groups]:
        raise PayloadError("payload: counts that do not fit the layout")
    for header, group in zip(headers[1:], groups[1:3], strict=True):
        filled = [t for t in group if t.reference.size]
        if header.n_sent and len(header.exponents) != len(filled):
            raise PayloadError("payload: counts that do not fit the layout")
        for t, exponent in zip(filled, header.exponents, strict=False):
            t.exponent = exponent

    lossy, lossless = f.slices[: f.n_lossy_slices], f.slices[f.n_lossy_slices :]
    n_elems = sum(h.n_elems for h in headers)
    sizes = lane_sizes(f.n_sent, f.lane_log2)
    nonzeros = decode_nonzeros(f.tables, lossy, sizes, matrices_of(groups[0]), n_elems)
    sizes = lane_sizes(f.n_changed, f.lane_log2)
    changes = decode_changes(f.change_tables, lossless, sizes, f.n_lossless)
    writes, total = restore_group(groups[3], changes)
    base = 0
    for header, group in zip(headers, groups[:3], strict=True):
        sent = [(i - base, level) for i, level in nonzeros[: header.n_sent]]
        if any(not 0 <= i < header.n_elems for i, _ in sent):
            raise PayloadError("payload: the groups are mixed up")
        more, part = recover_group(group, sent, header.quantizer)
        writes, total = writes + more, total + part
        nonzeros, base = nonzeros[header.n_sent :], base + header.n_elems
    if total % 2**32 != f.check:
        raise StateMismatchError("payload: made against another reference")

    arrays = {t.name: t.reference.copy() for t in tensors}
    for t, where, new in writes:
        arrays[t.name][where] = new
    return {t.name: t.shaped(arrays[t.name]) for t in tensors}
