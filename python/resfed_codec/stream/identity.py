"""The run and the layout that messages belong to, and errors that name a difference in them.

Each message carries 32 bits of the run digest. Until the other end is known to have the same
digest, messages also carry what is digested: the run's name and the tensors. The first error can
then name the difference. docs/format.md has the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from resfed_codec.errors import StateMismatchError
from resfed_codec.stream.message import Message
from resfed_codec.stream.wire import WireReader, varint
from resfed_codec.tensors.layout import TensorSpec

_SHOWN = 200
"""An error shows at most this many characters of a received text."""

Texts = tuple[bytes, bytes, bytes]


class Identity:
    """A run's name, its digest and the layout of its models."""

    def __init__(self, run: str, run_digest: int, specs: Sequence[TensorSpec]) -> None:
        self.run, self.specs = run, specs
        self.check = run_digest & 0xFFFFFFFF
        """What messages carry."""

    @cached_property
    def data(self) -> bytes:
        """The run's name; then name, dtype and shape of each tensor.

        Each text is coded as the length of the prefix that it shares with the tensor before, and
        the rest.
        """
        run = self.run.encode("utf-8", "surrogatepass")
        out = bytearray(varint(len(run)) + run)
        before: Texts = (b"", b"", b"")
        for spec in self.specs:
            texts = _texts(spec)
            for text, last in zip(texts, before, strict=True):
                n = _n_common(text, last)
                out += varint(n) + varint(len(text) - n) + text[n:]
            before = texts
        return bytes(out)

    def require_same(self, m: Message) -> None:
        """Raise StateMismatchError, without a request, for a message of another run.

        If the message carries its identity, the error names both runs, or both sides of the first
        tensor that differs.
        """
        if m.run != self.check:
            raise StateMismatchError(f"payload: {self._difference(m.identity)}")

    def _difference(self, data: bytes) -> str:
        """Describe the first difference from another end's ``data``; read no further than it."""
        if not data:
            return f"of another run or layout than that of this end, {self.run!r}"
        reader = WireReader(data, "identity")
        run = reader.take(reader.varint())
        if run != self.run.encode("utf-8", "surrogatepass"):
            return f"of another run: {_shown(run)!r} there, {self.run!r} here"
        before: Texts = (b"", b"", b"")
        for i, spec in enumerate(self.specs):
            ours = _texts(spec)
            theirs = _next(reader, before)
            if theirs != ours:
                return _tensors(i, theirs, spec)
            before = ours
        return _tensors(len(self.specs), _next(reader, before), None)


def _n_common(a: bytes, b: bytes) -> int:
    if a == b:
        return len(a)
    differ = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differ, min(len(a), len(b)))


def _texts(spec: TensorSpec) -> Texts:
    shape = ",".join(map(str, spec.shape)).encode()
    return spec.name.encode("utf-8", "surrogatepass"), spec.dtype.encode(), shape


def _next(reader: WireReader, before: Texts) -> Texts | None:
    if reader.at_end:
        return None
    name, dtype, shape = (
        last[: reader.varint(len(last))] + reader.take(reader.varint()) for last in before
    )
    return name, dtype, shape


def _tensors(ordinal: int, theirs: Texts | None, ours: TensorSpec | None) -> str:
    there = "nothing"
    if theirs is not None:
        name, dtype, shape = map(_shown, theirs)
        there = f"{name!r} {dtype} [{shape.replace(',', ', ')}]"
    here = "nothing" if ours is None else str(ours)
    return f"made for another layout: tensor {ordinal} is {there} there and {here} here"


def _shown(text: bytes) -> str:
    return text[:_SHOWN].decode("utf-8", "replace")
