"""The link of a payload: the versions that it builds on, and the prediction from them.

docs/format.md has the bytes, csrc/format/link.hpp reads them. Streams and sessions hold the
versions themselves.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from resfed_codec import _native
from resfed_codec._native import MAX_DEPTH
from resfed_codec.codec.numbers import Numbers
from resfed_codec.errors import native_errors
from resfed_codec.stream.wire import varint, zigzag

_PLACES = 2 * MAX_DEPTH
_PER_TENSOR, _COEFFICIENTS = 64, 128

Terms = tuple[int, ...]
"""Six numerators of a prediction: of the base and the two versions before it, then the same of the
other direction. A version with numerator 0 is not read."""


class Link(NamedTuple):
    """What a payload of a stream builds on.

    Attributes:
        version: Number of the version that the payload makes, counted per direction from 1.
        base: The version of the same direction that it builds on, or None.
        other: The version of the other direction that it builds on, or None.
        n_own: Number of versions in the sender's history from the base back, 0 (no base) to 3; the
            oldest one also takes the places before it.
        n_other: The same of the other direction.
        keep: Number of versions of this direction that the receiver has to keep, 1 to 3.
        coef_log2: Coefficients are numerators over two to this power, 0 to 12.
        terms: The prediction of all tensors except those in ``per_tensor``.
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
    per_tensor: Mapping[int, Terms]

    def __str__(self) -> str:
        base = "no version" if self.base is None else f"version {self.base}"
        other = "" if self.other is None else f" and {self.other} of the other direction"
        return f"version {self.version}, building on {base}{other}"


def digest64(*parts: bytes | memoryview) -> int:
    """64 bits of BLAKE2b over the concatenated parts, as a little-endian number."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest(), "little")


def link_digest(tag: int, base: int, other: int) -> int:
    """The digest field of a linked payload, from the receiver's tag and the digests of the versions
    that it builds on (0 for none)."""
    parts = (tag.to_bytes(8, "little"), base.to_bytes(8, "little"), other.to_bytes(8, "little"))
    return digest64(b"link", *parts)


def version_digest(payload: bytes) -> int:
    """Digest of the version that a payload makes. It covers the link, and so the whole chain."""
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


def link_from(fields: dict[str, Any]) -> Link:
    """The link that native code has read."""
    places = fields.pop("places")
    used = tuple(j for j in range(_PLACES) if places >> j & 1)
    numerators = Numbers(fields.pop("numerators"), "i")
    ordinals = Numbers(fields.pop("ordinals"), "I")
    terms = _terms(used, numerators[: len(used)])
    return Link(**fields, terms=terms, per_tensor=TensorTerms(ordinals, numerators, used))


def parse_link(data: bytes, n_tensors: int = _native.MOST_TENSORS) -> Link:
    """Parse a link for a layout of ``n_tensors``; time and memory are linear in its bytes.

    Raises:
        PayloadError: A field has a value that is not allowed.
        StateMismatchError: The link names a tensor that the layout does not have.
    """
    with native_errors(n_bytes=len(data)):
        return link_from(_native.read_link(data, n_tensors))


class TensorTerms(Mapping[int, Terms]):
    """Terms of single tensors, by ordinal; each tuple is made on access.

    Args:
        ordinals: Ascending.
        numerators: One per place in ``used``: of all other tensors, then of each of these.
        used: The places.
    """

    def __init__(self, ordinals: Numbers, numerators: Numbers, used: Sequence[int]) -> None:
        self._ordinals, self._numerators, self._used = ordinals, numerators, used

    def __getitem__(self, ordinal: int) -> Terms:
        i, n = bisect_left(self._ordinals, ordinal), len(self._used)
        if i == len(self._ordinals) or self._ordinals[i] != ordinal:
            raise KeyError(ordinal)
        return _terms(self._used, self._numerators[(i + 1) * n : (i + 2) * n])

    def __iter__(self) -> Iterator[int]:
        return iter(self._ordinals)

    def __len__(self) -> int:
        return len(self._ordinals)

    def __repr__(self) -> str:
        return repr(dict(self))


def _terms(used: Sequence[int], numerators: Sequence[int]) -> Terms:
    values = [0] * _PLACES
    for j, numerator in zip(used, numerators, strict=True):
        values[j] = numerator
    return tuple(values)


def unit_terms(place: int) -> Terms:
    """The prediction that is one version, unchanged."""
    return _terms([place], [1])
