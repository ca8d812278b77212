"""Links and predictions: section 11 of docs/format.md as NumPy, slow and readable.

Written from the specification, like :mod:`resfed_codec.reference.update`, and held to the same
bytes by tests. Streams and sessions choose which versions a payload builds on; that is not repeated
here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resfed_codec.errors import PayloadError, StateMismatchError
from resfed_codec.reference.frame import Reader, read_frame
from resfed_codec.reference.update import Options, decode_tensors, encode_tensors
from resfed_codec.reference.values import (
    F32,
    State,
    Tensor,
    saturate,
    tensors_of,
    widen,
)

History = Sequence["tuple[int, State]"]
"""Versions of one direction, newest first: number and model."""


# ---- 11.1 and 11.2 Digests


def link_digest(tag: int, base: int, other: int) -> bytes:
    """64 bits that name what a payload builds on, and whom it is for."""
    parts = tag.to_bytes(8, "little") + base.to_bytes(8, "little") + other.to_bytes(8, "little")
    return hashlib.blake2b(b"link" + parts, digest_size=8).digest()


# ---- 11.3 The link


@dataclass
class Link:
    """The fields of a link; coefficients are numerators / 2**coef_log2, one per place."""

    version: int
    back: int
    other: int
    n_own: int
    n_other: int
    keep: int
    coef_log2: int
    common: list[int]
    per_tensor: dict[int, list[int]] = field(default_factory=dict)


def read_link(data: bytes, n_tensors: int = 2**32) -> Link:
    """The fields of a link, which may name the first ``n_tensors`` tensors and no others."""
    reader = Reader(data)
    version, back, other = reader.varint(), reader.varint(), reader.varint()
    depths = reader.byte()
    n_own, n_other, keep = depths & 3, depths >> 2 & 3, depths >> 4 & 3
    mask = reader.byte()
    places = [j for j in range(6) if mask >> j & 1]
    if version < 1 or back > version or depths >= 64 or keep < 1 or not places:
        raise PayloadError("payload: a link that cannot be")
    if (back > 0) != (n_own > 0) or (other > 0) != (n_other > 0):
        raise PayloadError("payload: a link without the history it names")
    if any((n_own if j < 3 else n_other) == 0 for j in places):
        raise PayloadError("payload: a link that predicts from nothing")
    link = Link(version, back, other, n_own, n_other, keep, 0, [0] * 6)
    if not mask & 128:
        if len(places) > 1 or mask & 64:
            raise PayloadError("payload: a link without coefficients")
        link.common[places[0]] = 1
    else:
        link.coef_log2 = reader.byte()
        if link.coef_log2 > 12:
            raise PayloadError("payload: a link with coefficients that are too fine")
        link.common = read_numerators(reader, places)
    if mask & 64:
        bitmap = reader.take(reader.varint())
        if not bitmap or bitmap[-1] == 0:
            raise PayloadError("payload: a link with a bitmap that cannot be")
        if 8 * len(bitmap) - 8 + bitmap[-1].bit_length() > n_tensors:
            raise StateMismatchError("payload: made for another layout")
        for i in range(8 * len(bitmap)):
            if bitmap[i // 8] >> i % 8 & 1:
                link.per_tensor[i] = read_numerators(reader, places)
    if reader.at != len(data):
        raise PayloadError("payload: a link that goes on where it must end")
    return link


def read_numerators(reader: Reader, places: list[int]) -> list[int]:
    numerators = [0] * 6
    for j in places:
        zigzag = reader.varint(2**21)
        numerators[j] = zigzag // 2 if zigzag % 2 == 0 else -(zigzag + 1) // 2
    if not any(numerators):
        raise PayloadError("payload: a link that predicts from nothing")
    return numerators


# ---- 11.4 Prediction


def terms_of(
    numerators: list[int], coef_log2: int, own: History, others: History
) -> list[tuple[State, float]]:
    """Models and coefficients, each version once, in the order of their first places."""
    sums: dict[Any, int] = {}
    models: dict[Any, State] = {}
    for j, numerator in enumerate(numerators):
        if numerator == 0:
            continue
        side = own if j < 3 else others
        number, model = side[min(j % 3, len(side) - 1)]
        key = "initial" if number == 0 else (j < 3, number)
        sums[key] = sums.get(key, 0) + numerator
        models.setdefault(key, model)
    kept = [key for key in sums if sums[key] != 0] or list(sums)[:1]
    return [(models[key], sums[key] / 2**coef_log2) for key in kept]


def predict(t: Tensor, terms: list[tuple[NDArray[Any], float]]) -> NDArray[Any]:
    """The prediction of one tensor, in its dtype (bfloat16: bits)."""
    if len(terms) == 1 and terms[0][1] == 1:
        return terms[0][0]
    wide = np.float64 if t.dtype == "float64" else F32
    with np.errstate(invalid="ignore", over="ignore"):
        total = widen(terms[0][0], t.dtype) * wide(terms[0][1])
        for model, coefficient in terms[1:]:
            total = total + widen(model, t.dtype) * wide(coefficient)
    return np.where(np.isfinite(total), rounded_to(t.dtype, total), terms[0][0])


def rounded_to(dtype: str, total: NDArray[Any]) -> NDArray[Any]:
    """Sums in their tensor's dtype (bfloat16: bits)."""
    if dtype == "bfloat16":
        bits = total.astype(F32).view(np.uint32).astype(np.uint64)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        full = rounded & 0x7FFF >= 0x7F80
        return np.asarray(np.where(full, bits >> 16 & 0x8000 | 0x7F7F, rounded)).astype(np.uint16)
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = np.asarray(total).astype(dtype)
    return np.array([saturate(x, 2) for x in narrow], np.float16) if dtype == "float16" else narrow


def predicted_tensors(
    link: Link,
    own: History,
    others: History,
    exclusions: Sequence[int],
    state: State | None = None,
) -> list[Tensor]:
    """Tensors whose reference is the prediction that the link describes."""
    own, others = own[: link.n_own], others[: link.n_other]
    tensors = tensors_of((own or others)[0][1], state)
    common = terms_of(link.common, link.coef_log2, own, others)
    flat = {id(model): tensors_of(model) for _, model in (*own, *others)}
    for i, t in enumerate(tensors):
        if not t.is_float or i in exclusions:
            t.reference = flat[id(common[0][0])][i].reference
            continue
        terms = common
        if i in link.per_tensor:
            terms = terms_of(link.per_tensor[i], link.coef_log2, own, others)
        t.reference = predict(t, [(flat[id(model)][i].reference, c) for model, c in terms])
    return tensors


def decode(payload: bytes, own: History, others: History, digest: bytes) -> dict[str, NDArray[Any]]:
    """The recovered tensors by name; ``digest`` is what the payload must build on."""
    n_tensors = len((own or others)[0][1])
    f = read_frame(payload, n_tensors, digest)
    link = read_link(f.link, n_tensors)
    return decode_tensors(f, predicted_tensors(link, own, others, f.exclusions))


def encode(
    state: State, link: bytes, own: History, others: History, digest: bytes, options: Options
) -> bytes:
    """The payload of ``state`` that builds on these versions as ``link`` says."""
    exclusions, _ = options.special(tensors_of(state))
    tensors = predicted_tensors(read_link(link), own, others, exclusions, state)
    return encode_tensors(tensors, options, digest, link)
