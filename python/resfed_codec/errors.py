"""Exceptions of this package, and the texts of the native code's errors."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from resfed_codec import _native
from resfed_codec._native import Code, NativeError

if TYPE_CHECKING:
    from resfed_codec.tensors.layout import TensorSpec


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


@contextmanager
def native_errors(specs: Sequence[TensorSpec] = (), n_bytes: int = 0) -> Iterator[None]:
    """A context in which the errors of native code become public exceptions.

    Args:
        specs: The tensors, in the order in which native code sees them.
        n_bytes: Length of the payload, if there is one.
    """
    try:
        yield
    except NativeError as error:
        code, where, detail = error.code, error.where, error.detail
        kind, text = next((kind, texts[code]) for kind, texts in _TEXTS.items() if code in texts)
        if code == Code.SUM_TOO_LARGE and n_bytes:
            kind, text = PayloadError, "payload: with this " + text
        elif code == Code.DEVICE_MEMORY and detail:
            text = text.replace(";", ", where {detail:,} bytes were asked for;", 1)
        raise kind(
            text.format(
                where=where,
                detail=detail,
                n_bytes=n_bytes,
                name=specs[where].name if code in _NAMES_A_TENSOR else "",
                problem=_LINK_PROBLEMS.get(detail, ""),
                ratio=struct.unpack("<d", struct.pack("<Q", detail))[0],
                cuda=_native.cuda_error_text(where) if code == Code.CUDA else "",
            )
        ) from None


_NAMES_A_TENSOR = {
    Code.NON_FINITE,
    Code.SUM_TOO_LARGE,
    Code.TOO_SMALL_CHANGE,
    Code.LOSSLESS_CHANGE,
}
"""Codes of which ``where`` is a tensor's place in the call."""

_LINK_PROBLEMS: dict[int, str] = {
    Code.TRUNCATED: "is truncated",
    Code.BAD_FIELD: "holds what is not allowed there",
    Code.TRAILING_BYTES: "goes on where it must end",
}
"""By the ``detail`` of BAD_LINK."""

_TEXTS: dict[type[Exception], dict[Code, str]] = {
    PayloadError: {
        Code.TRUNCATED: "payload: truncated: {n_bytes} bytes end where more must follow, at byte"
        " {where}",
        Code.BAD_MAGIC: "payload: not a payload of this codec: wrong magic at byte {where}",
        Code.BAD_VERSION: "payload: format version {detail} is not known to this version of"
        " resfed_codec",
        Code.BAD_CHECKSUM: "payload: damaged: the checksum at byte {where} does not match the"
        " {n_bytes} bytes",
        Code.BAD_FIELD: "payload: the field at byte {where} holds {detail}, which is not allowed"
        " there",
        Code.BAD_SLICE: "payload: slice {where} is damaged",
        Code.BAD_TABLES: "payload: byte {where} of its tables is damaged",
        Code.TRAILING_BYTES: "payload: unexpected bytes from byte {where} on",
        Code.BAD_LINK: "payload: the link {problem}, before its byte {where}",
    },
    StateMismatchError: {
        Code.WRONG_LAYOUT: "payload: made for another layout (digest {where:016x}; the reference"
        " has {detail:016x}): names, shapes or dtypes of the tensors differ; decode with the"
        " reference that the encoder used",
        Code.WRONG_REFERENCE: "payload: made against another reference: the values it builds on"
        " differ (check {where:08x}, here {detail:08x}); decode with the reference that the"
        " encoder used",
        Code.WRONG_KEYFRAME_LAYOUT: "payload: made for another layout (digest {where:016x}; like"
        " has {detail:016x}): names, shapes or dtypes of the tensors differ",
        Code.NO_SUCH_TENSOR: "payload: names tensor {where} of {detail}: made for another layout",
    },
    ValueError: {
        Code.NON_FINITE: "state: the residual of tensor {name!r} at flat index {detail} is not"
        " finite: there is a NaN or an infinity in the state or the reference, or their difference"
        " overflows float32",
        Code.BUDGET_TOO_SMALL: "max_bytes: too small; the smallest payload of this update takes"
        " {detail} bytes (lossless and dense tensors are in it whole; by default running"
        " statistics are dense)",
        Code.ERROR_UNREACHABLE: "max_error: the bound cannot be reached; the least relative error"
        " found is {ratio:.3g} (exclude tensors to carry them losslessly)",
        Code.SUM_TOO_LARGE: "weight: the change of tensor {name!r} is too large to be summed"
        " exactly (2**45 and more), or not finite; scale all weights down, or look at the tensor",
        Code.MODEL_TOO_LARGE: "state: {detail} elements of float tensors are more than 2**39,"
        " which is the most",
        Code.TOO_SMALL_CHANGE: "max_error: the changes of tensor {name!r} are so small that"
        " residuals of float32 cannot keep the bound (float64 changes below about 1e-38 are"
        " rounded, below 1e-45 to nothing); exclude it to carry it losslessly",
        Code.LOSSLESS_CHANGE: "max_norm: tensor {name!r} is carried losslessly and has changed, so"
        " its change has no bound; leave it out of the model, keep it as it is, or, if it is"
        " excluded, do not exclude it",
    },
    RuntimeError: {
        Code.CHANGED_DURING_CALL: "state: another thread wrote to the arrays during the call;"
        " nothing has changed. Give it a copy, or wait for the other thread",
        Code.CUDA: "CUDA: {cuda} (error {where})",
        Code.CAPTURING: "the stream on cuda:{where} is being captured into a graph; the codec's"
        " calls wait for the device, so they cannot be part of one: call them outside of the"
        " capture. Nothing has changed",
    },
    MemoryError: {
        Code.DEVICE_MEMORY: "out of memory on cuda:{where}; nothing has changed."
        " resfed_codec.release_workspace() frees what the codec keeps",
    },
}
