"""Varints and a reader with bounds checks, for links, messages and identities."""

from __future__ import annotations

from resfed_codec.errors import PayloadError


def varint(value: int) -> bytes:
    """Unsigned LEB128, as docs/format.md defines it."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


class WireReader:
    """Reads one structure field by field; ``what`` names it in errors."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data, self._at, self._what = data, 0, what

    def error(self, problem: str) -> PayloadError:
        return PayloadError(f"payload: the {self._what} {problem}, before its byte {self._at}")

    def take(self, n_bytes: int) -> bytes:
        if n_bytes > len(self._data) - self._at:
            raise self.error("is truncated")
        self._at += n_bytes
        return self._data[self._at - n_bytes : self._at]

    def byte(self) -> int:
        return self.take(1)[0]

    def fixed64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def varint(self, limit: int = 2**63 - 1) -> int:
        value, shift = 0, 0
        while True:
            byte = self.byte()
            if shift >= 63 or (byte == 0 and shift > 0):
                raise self.error("holds a number that is not in its shortest form")
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        if value > limit:
            raise self.error(f"holds {value}, which is not allowed")
        return value

    @property
    def at_end(self) -> bool:
        return self._at == len(self._data)

    def end(self) -> None:
        if not self.at_end:
            raise self.error("goes on where it must end")
