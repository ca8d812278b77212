"""inspect(): what is inside a payload, byte by byte of the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from resfed_codec import _native
from resfed_codec._native import MOST_TENSORS, Payload
from resfed_codec.codec.numbers import Numbers
from resfed_codec.errors import PayloadError, native_errors
from resfed_codec.stream.link import Link, link_from
from resfed_codec.tensors.torch_tensors import untraced


@dataclass(frozen=True)
class QuantizerInfo:
    """A group's quantizer. docs/format.md, sections 3 and 4, has the arithmetic.

    Attributes:
        threshold: Least magnitude sent, in the unit of the weights (for vectors and dense tensors
            before their power-of-two scale).
        step: Width of a level, in the same unit.
        offsets: Reconstruction points of the first levels, up to four, in 1/256 of a step.
    """

    threshold: float
    step: float
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class PayloadInfo:
    """What :func:`inspect` returns.

    The ``*_bytes`` attributes but ``n_bytes`` add up to ``n_bytes``.

    Attributes:
        n_bytes: Length of the payload.
        format_version: Version of the payload format.
        digest: 64-bit digest of names, shapes and dtypes; in a stream, of the versions that the
            payload builds on.
        link: What a payload of a stream builds on; None for those of :func:`encode`.
        reference_check: 32-bit check of the values that the payload builds on.
        n_matrix: Elements of float tensors of two or more dimensions.
        n_vector: Elements of other float tensors.
        n_dense: Elements of dense tensors.
        n_lossless: Elements of tensors carried losslessly: integers, bool, excluded ones.
        k_matrix: Elements of matrices that were sent.
        k_vector: Elements of vectors that were sent.
        k_dense: Elements of dense tensors that were sent.
        n_changed: Elements of lossless tensors that were sent.
        matrix: Quantizer of the matrices; None where nothing was sent.
        vector: Quantizer of the vectors, likewise.
        dense: Quantizer of the dense tensors, likewise.
        exponents: Power-of-two scale of each vector tensor.
        dense_exponents: Power-of-two scale of each dense tensor.
        exclusions: Ordinals of float tensors carried losslessly, in coding order.
        dense_tensors: Ordinals of dense tensors, in coding order.
        lossy_slices: Length of each slice of nonzeros in bytes.
        lossless_slices: Length of each slice of changed lossless elements in bytes.
        header_bytes: Fixed header and element counts.
        link_bytes: The link.
        quantizer_bytes: Counts of what was sent, quantizers, exponents, exclusions, dense
            tensors.
        table_bytes: Slice lengths.
        lossy_bytes: The slices of nonzeros, entropy coded.
        lossless_bytes: The slices of changed lossless elements, entropy coded.
        checksum_bytes: The CRC-32C.
    """

    n_bytes: int
    format_version: int
    digest: int
    link: Link | None
    reference_check: int
    n_matrix: int
    n_vector: int
    n_dense: int
    n_lossless: int
    k_matrix: int
    k_vector: int
    k_dense: int
    n_changed: int
    matrix: QuantizerInfo | None
    vector: QuantizerInfo | None
    dense: QuantizerInfo | None
    exponents: Sequence[int]
    dense_exponents: Sequence[int]
    exclusions: Sequence[int]
    dense_tensors: Sequence[int]
    lossy_slices: Sequence[int]
    lossless_slices: Sequence[int]
    header_bytes: int
    link_bytes: int
    quantizer_bytes: int
    table_bytes: int
    lossy_bytes: int
    lossless_bytes: int
    checksum_bytes: int

    @property
    def n_elems(self) -> int:
        """Number of elements of the model."""
        return self.n_matrix + self.n_vector + self.n_dense + self.n_lossless

    @property
    def n_nonzero(self) -> int:
        """Number of lossy elements that were sent."""
        return self.k_matrix + self.k_vector + self.k_dense

    @property
    def sparsity(self) -> float:
        """Fraction of matrix and vector elements that were not sent; 1.0 if there are none."""
        n_elems = self.n_matrix + self.n_vector
        return 1 - (self.k_matrix + self.k_vector) / n_elems if n_elems else 1.0

    @property
    def bits_per_nonzero(self) -> float:
        """Entropy coded bits per lossy element sent; 0.0 if there are none."""
        return 8 * self.lossy_bytes / self.n_nonzero if self.n_nonzero else 0.0

    def __str__(self) -> str:
        rows = [
            ("header", self.header_bytes, f"format {self.format_version},"
             f" {self.n_elems:,} elements"),
            ("link", self.link_bytes, str(self.link) if self.link else "none"),
            ("quantizers", self.quantizer_bytes, _describe(self)),
            ("slice table", self.table_bytes, f"{len(self.lossy_slices)} lossy slices,"
             f" {len(self.lossless_slices)} lossless"),
            ("lossy slices", self.lossy_bytes, f"{self.n_nonzero:,} nonzeros,"
             f" {self.bits_per_nonzero:.2f} bits each, sparsity {self.sparsity:.4f}"),
            ("lossless slices", self.lossless_bytes,
             f"{self.n_changed:,} of {self.n_lossless:,} elements changed"),
            ("checksum", self.checksum_bytes, "CRC-32C"),
            ("payload", self.n_bytes, ""),
        ]  # fmt: skip
        return "\n".join(f"{name:<16}{n:>12,} B  {note}".rstrip() for name, n, note in rows)


def _describe(info: PayloadInfo) -> str:
    parts = [
        f"{name}: threshold {q.threshold:.3g}, step {q.step:.3g}"
        for name, q in (
            ("matrices", info.matrix),
            ("vectors", info.vector),
            ("dense", info.dense),
        )
        if q is not None
    ]
    return "; ".join(parts) or "none"


UPDATE, KEYFRAME, MESSAGE, REQUEST = "update", "keyframe", "message", "request"
_KINDS = {_native.MAGIC: UPDATE, _native.KEYFRAME_MAGIC: KEYFRAME, b"RFM": MESSAGE}
_WHO_TAKES = {
    UPDATE: "this is an update: give it to decode(), or, if it is of an Encoder or a session, to"
    " the Decoder or to receive() of the other end's session",
    KEYFRAME: "this is a keyframe, a whole model: give it to decode_keyframe()",
    MESSAGE: "this is a message: give it to receive() of the other end's session, or, if it is of"
    " an Encoder, to the Decoder",
    REQUEST: "this is a request: give it to answer() of the other end's session or Encoder, or, if"
    " it is of acknowledge(), to acknowledged()",
}


def kind_of(data: bytes) -> str | None:
    """What the bytes say they are, by their first five; None if nothing of this codec."""
    kind = _KINDS.get(data[:3])
    is_request = kind == MESSAGE and len(data) > 4 and data[4] & 1
    return REQUEST if is_request else kind


def as_bytes(payload: object, *accepted: str) -> bytes:
    """``payload`` as bytes.

    Raises:
        TypeError: It is not bytes-like.
        PayloadError: It is of this codec, and none of the ``accepted`` kinds; says who takes it.
    """
    if isinstance(payload, bytes):
        data = payload
    elif isinstance(payload, (bytearray, memoryview)):
        data = bytes(payload)
    else:
        raise TypeError(f"payload: must be bytes-like, not {type(payload).__name__}")
    kind = kind_of(data)
    if kind is not None and kind not in accepted:
        raise PayloadError(f"payload: {_WHO_TAKES[kind]}")
    return data


def parse_payload(
    data: bytes, n_tensors: int = MOST_TENSORS, layout_digest: int | None = None
) -> Payload:
    """An update, verified and read; all that is done with it takes what this returns.

    ``n_tensors`` of the receiver's layout bound the lists in the payload; a payload without a link
    was made for the layout of ``layout_digest``.

    Raises:
        PayloadError: Damaged, or no update.
        StateMismatchError: Made for another layout.
    """
    with native_errors(n_bytes=len(data)):
        return Payload(data, n_tensors, layout_digest)


@untraced
def inspect(payload: bytes | bytearray | memoryview) -> PayloadInfo:
    """Describe a payload without a reference: counts, quantizers, bytes of each part.

    Verifies the checksum and the header; the entropy coded slices are not decoded. Takes time and
    memory in proportion to the payload, whatever its header claims.

    Args:
        payload: From :func:`encode`, an :class:`Encoder` or a session's ``update``; keyframes and
            messages are other formats and refused, saying what they are.

    Raises:
        PayloadError: The bytes are no sound payload.
        TypeError: ``payload`` is not bytes-like.
    """
    data = as_bytes(payload, UPDATE)
    parsed = parse_payload(data)
    fields = parsed.fields()
    for name in ("matrix", "vector", "dense"):
        fields[name] = fields[name] and QuantizerInfo(*fields[name])
    for name, kind in _LISTS.items():
        fields[name] = Numbers(fields[name], kind)
    return PayloadInfo(
        n_bytes=len(data),
        link=None if parsed.link is None else link_from(parsed.link),
        lossy_bytes=sum(fields["lossy_slices"]),
        lossless_bytes=sum(fields["lossless_slices"]),
        **fields,
    )


_LISTS = {
    **dict.fromkeys(("exponents", "dense_exponents"), "b"),
    **dict.fromkeys(("exclusions", "dense_tensors"), "I"),
    **dict.fromkeys(("lossy_slices", "lossless_slices"), "Q"),
}
"""Fields that are lists of numbers, and the types of these."""


__all__ = ["PayloadError", "PayloadInfo", "QuantizerInfo", "inspect"]
