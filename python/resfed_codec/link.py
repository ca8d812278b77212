"""The link of a payload: which versions of a stream it builds on, and how they predict.

docs/format.md has the bytes. The native code carries them without looking inside; the versions
themselves are kept by the classes in stream.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from resfed_codec.wire import WireReader, unzigzag, varint, zigzag

MAX_DEPTH = 3
"""Predictions look back this many versions in each direction."""

MAX_COEF_LOG2 = 12
"""Coefficients are multiples of 2**-12 at the finest."""

MAX_NUMERATOR = 2**20

_PLACES = 2 * MAX_DEPTH
_PER_TENSOR, _COEFFICIENTS = 64, 128

Terms = tuple[int, int, int, int, int, int]
"""Numerators of a prediction: of the base, the version before it, and the one before that; then
the same of the other direction. Zeros are not terms."""


class Link(NamedTuple):
    """What a payload of a stream builds on.

    Attributes:
        version: Number of the version that the payload makes, counted per direction from 1.
        base: The version of the same direction that it builds on, or None.
        other: The version of the other direction that it builds on, or None.
        n_own: How many versions the sender's history holds from the base back, 0 (there is none)
            to 3; the oldest one stands for all that would be before it.
        n_other: The same of the other direction.
        keep: How many versions of this direction the receiver has to keep for later, 1 to 3.
        coef_log2: Coefficients are numerators over two to this power, 0 to 12.
        terms: The prediction of all tensors but those in ``per_tensor``.
        per_tensor: Predictions of single tensors, by ordinal in coding order.
    """

    version: int
    base: int | None
    other: int | None
    n_own: int
    n_other: int
    keep: int
    coef_log2: int
    terms: Terms
    per_tensor: dict[int, Terms]

    def __str__(self) -> str:
        base = "no version" if self.base is None else f"version {self.base}"
        other = "" if self.other is None else f" and {self.other} of the other direction"
        return f"version {self.version}, building on {base}{other}"


def digest64(*parts: bytes | memoryview) -> int:
    """64 bits of BLAKE2b over the parts laid end to end, as a little-endian number."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest(), "little")


def link_digest(tag: int, base: int, other: int) -> int:
    """A linked payload's digest field: who it is for, and digests of what it builds on (or 0)."""
    parts = (tag.to_bytes(4, "little"), base.to_bytes(8, "little"), other.to_bytes(8, "little"))
    return digest64(b"link", *parts)


def version_digest(payload: bytes) -> int:
    """Digest of the version that a payload makes. It covers the link, hence the whole chain."""
    return digest64(b"version", payload)


def write_link(link: Link) -> bytes:
    out = bytearray(varint(link.version))
    out += varint(0 if link.base is None else link.version - link.base)
    out += varint(0 if link.other is None else link.other + 1)
    out.append(link.n_own | link.n_other << 2 | link.keep << 4)
    used = [
        j for j in range(_PLACES) if link.terms[j] or any(t[j] for t in link.per_tensor.values())
    ]
    copies_one_version = not link.per_tensor and sum(map(abs, link.terms)) == max(link.terms)
    if copies_one_version and link.terms[used[0]] == 1 << link.coef_log2:
        out.append(1 << used[0])
        return bytes(out)
    out.append(sum(1 << j for j in used) | _COEFFICIENTS | (_PER_TENSOR if link.per_tensor else 0))
    out.append(link.coef_log2)
    out += _numerators(link.terms, used)
    if link.per_tensor:
        bitmap = bytearray(max(link.per_tensor) // 8 + 1)
        for ordinal in link.per_tensor:
            bitmap[ordinal // 8] |= 1 << ordinal % 8
        out += varint(len(bitmap)) + bitmap
        for ordinal in sorted(link.per_tensor):
            out += _numerators(link.per_tensor[ordinal], used)
    return bytes(out)


def _numerators(terms: Terms, used: Sequence[int]) -> bytes:
    return b"".join(varint(zigzag(terms[j])) for j in used)


def parse_link(data: bytes) -> Link:
    """The link's fields, each checked.

    Raises:
        PayloadError: A field holds what it may not hold.
    """
    reader = WireReader(data, "link")
    version, back, other = reader.varint(), reader.varint(), reader.varint()
    depths = reader.byte()
    n_own, n_other, keep = depths & 3, depths >> 2 & 3, depths >> 4 & 3
    if version == 0 or back > version or depths >> 6 or keep == 0:
        raise reader.refuse("holds a version or a depth that is not allowed")
    if (back > 0) != (n_own > 0) or (other > 0) != (n_other > 0):
        raise reader.refuse("names a version without history, or history without a version")

    mask = reader.byte()
    used = [j for j in range(_PLACES) if mask >> j & 1]
    held = [n_own > 0] * MAX_DEPTH + [n_other > 0] * MAX_DEPTH
    with_coefficients = bool(mask & _COEFFICIENTS)
    if not used or not all(held[j] for j in used) or (len(used) > 1 and not with_coefficients):
        raise reader.refuse("holds terms that are not allowed")
    if mask & _PER_TENSOR and not with_coefficients:
        raise reader.refuse("holds terms that are not allowed")

    def numerators() -> Terms:
        values = [0] * _PLACES
        for j in used:
            values[j] = unzigzag(reader.varint(2 * MAX_NUMERATOR))
        if not any(values):
            raise reader.refuse("holds a prediction from nothing")
        return (values[0], values[1], values[2], values[3], values[4], values[5])

    coef_log2, per_tensor = 0, {}
    if with_coefficients:
        coef_log2 = reader.byte()
        if coef_log2 > MAX_COEF_LOG2:
            raise reader.refuse("holds coefficients that are too fine")
        terms = numerators()
    else:
        terms = unit_terms(used[0])
    if mask & _PER_TENSOR:
        bitmap = reader.take(reader.varint(len(data)))
        if not bitmap or bitmap[-1] == 0:
            raise reader.refuse("holds a list of tensors that is not in its shortest form")
        for ordinal in range(8 * len(bitmap)):
            if bitmap[ordinal // 8] >> ordinal % 8 & 1:
                per_tensor[ordinal] = numerators()
    reader.end()
    return Link(
        version=version,
        base=version - back if back else None,
        other=other - 1 if other else None,
        n_own=n_own,
        n_other=n_other,
        keep=keep,
        coef_log2=coef_log2,
        terms=terms,
        per_tensor=per_tensor,
    )


def unit_terms(place: int) -> Terms:
    """The prediction that is one version, unchanged."""
    values = [0] * _PLACES
    values[place] = 1
    return (values[0], values[1], values[2], values[3], values[4], values[5])
