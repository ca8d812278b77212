"""Exceptions of this package, and the one place where native error numbers become texts."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NoReturn

from resfed_codec import _native


class CodecError(ValueError):
    """Base of the errors that concern payloads."""


class PayloadError(CodecError):
    """The bytes are damaged, truncated, of an unknown version, or no payload at all."""


class StateMismatchError(CodecError):
    """A sound payload that does not belong to the reference it was to be decoded with.

    Attributes:
        request: From a Decoder or a session: a few bytes for the other end's ``answer``, which
            returns what brings both ends together again. Empty where nothing can be asked for.
    """

    def __init__(self, text: str, request: bytes = b"") -> None:
        super().__init__(text)
        self.request = request

    def __reduce__(self) -> tuple[type[StateMismatchError], tuple[str, bytes]]:
        return type(self), (self.args[0], self.request)


def raise_from_native(
    error: _native.NativeError, names: Sequence[str], n_bytes: int = 0
) -> NoReturn:
    """Raise the public exception for a native one.

    ``names`` are the tensors in the order in which the native call saw them; ``n_bytes`` is the
    length of the payload, if there was one. What goes wrong on a device is a RuntimeError, or a
    MemoryError.
    """
    code, where, detail = error.args
    text: str
    kind: type[Exception]
    if code in _PAYLOAD_TEXTS:
        kind, text = PayloadError, _PAYLOAD_TEXTS[code]
    elif code == 8:
        kind, text = PayloadError, "payload: the link {problem}, before its byte {where}"
    elif code in _MISMATCH_TEXTS:
        kind, text = StateMismatchError, _MISMATCH_TEXTS[code]
    elif code == 40:
        kind = ValueError
        text = (
            "state: the residual of tensor {name!r} at flat index {detail} is not finite: there is"
            " a NaN or an infinity in the state or the reference, or their difference overflows"
            " float32"
        )
    elif code == 43:
        kind = PayloadError if n_bytes else ValueError
        text = ("payload: with this weight" if n_bytes else "weight") + (
            ": the change of tensor {name!r} is too large to be summed exactly (2**45 and more), or"
            " not finite; scale all weights down, or look at the tensor"
        )
    elif code == 41:
        kind = ValueError
        text = (
            "max_bytes: too small; the smallest payload of this update takes {detail} bytes"
            " (lossless and dense tensors are in it whole; by default running statistics are dense)"
        )
    elif code == 44:
        kind = ValueError
        text = "state: {detail} elements of float tensors are more than 2**39, which is the most"
    elif code == 42:
        kind = ValueError
        text = (
            "max_error: the bound cannot be reached; the least relative error found is {ratio:.3g}"
            " (exclude tensors to carry them losslessly)"
        )
    elif code == 45:
        kind = RuntimeError
        text = (
            "state: another thread wrote to the arrays during the call; nothing has changed."
            " Give it a copy, or wait for the other thread"
        )
    elif code == 46:
        kind = ValueError
        text = (
            "max_error: the changes of tensor {name!r} are so small that residuals of float32"
            " cannot keep the bound (float64 changes below about 1e-38 are rounded, below 1e-45"
            " to nothing); exclude it to carry it losslessly"
        )
    elif code == 60:
        kind = RuntimeError
        text = f"CUDA: {_native.cuda_error_text(where)} (error {where})"
    elif code == 61:
        kind = MemoryError
        text = (
            "out of memory on cuda:{where}"
            + (", where {detail:,} bytes were asked for" if detail else "")
            + "; nothing has changed. resfed_codec.release_workspace() frees what the codec keeps"
        )
    elif code == 62:
        kind = RuntimeError
        text = (
            "the stream on cuda:{where} is being captured into a graph; the codec's calls wait for"
            " the device, so they cannot be part of one: call them outside of the capture. Nothing"
            " has changed"
        )
    else:
        raise AssertionError(f"unknown native error {error.args}") from error
    raise kind(
        text.format(
            where=where,
            detail=detail,
            n_bytes=n_bytes,
            name=names[where] if code in (40, 43, 46) else "",
            problem=_LINK_PROBLEMS.get(detail, ""),
            ratio=struct.unpack("<d", struct.pack("<Q", detail))[0],
        )
    ) from None


_PAYLOAD_TEXTS = {
    1: "payload: truncated: {n_bytes} bytes end where more must follow, at byte {where}",
    2: "payload: not a payload of this codec: wrong magic at byte {where}",
    3: "payload: format version {detail} is not known to this version of resfed_codec",
    4: "payload: damaged: the checksum at byte {where} does not match the {n_bytes} bytes",
    5: "payload: the field at byte {where} holds {detail}, which is not allowed there",
    6: "payload: slice {where} is damaged",
    7: "payload: unexpected bytes from byte {where} on",
}
_LINK_PROBLEMS = {
    1: "is truncated",
    5: "holds what is not allowed there",
    7: "goes on where it must end",
}
_MISMATCH_TEXTS = {
    22: (
        "payload: made for another layout (digest {where:016x}; like has {detail:016x}): names,"
        " shapes or dtypes of the tensors differ"
    ),
    20: (
        "payload: made for another layout (digest {where:016x}; the reference has {detail:016x}):"
        " names, shapes or dtypes of the tensors differ; decode with the reference that the"
        " encoder used"
    ),
    23: "payload: names tensor {where} of {detail}: made for another layout",
    21: (
        "payload: made against another reference: the values it builds on differ (check"
        " {where:08x}, here {detail:08x}); decode with the reference that the encoder used"
    ),
}
