"""Streams of bits, as those of tables: the lowest bit of each byte comes first."""

from __future__ import annotations

from collections.abc import Iterable

from resfed_codec.errors import PayloadError
from resfed_codec.reference.symbols import log2


class BitWriter:
    def __init__(self) -> None:
        self.bits: list[int] = []

    def put(self, number: int, n_bits: int = 1) -> None:
        self.bits += [number >> i & 1 for i in range(n_bits)]

    def put_all(self, bits: Iterable[bool]) -> None:
        self.bits += map(int, bits)

    def put_gamma(self, number: int) -> None:
        """A number of at least 1: how many bits it has below the leading one, and those bits."""
        size = log2(number)
        self.bits += [1] * size + [0]
        self.put(number - 2**size, size)

    def finish(self) -> bytes:
        self.bits += [0] * (-len(self.bits) % 8)
        bits = "".join(map(str, reversed(self.bits)))
        return int(bits or "0", 2).to_bytes(len(self.bits) // 8, "little")


class BitReader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def get(self, n_bits: int = 1) -> int:
        if n_bits > 8 * len(self.data) - self.at:
            raise PayloadError("payload: the tables end too early")
        number = 0
        for i in range(n_bits):
            number |= (self.data[self.at // 8] >> self.at % 8 & 1) << i
            self.at += 1
        return number

    def get_all(self, n: int) -> list[bool]:
        return [self.get() == 1 for _ in range(n)]

    def get_gamma(self, most: int) -> int:
        size = 0
        while self.get():
            size += 1
            if 2**size > most:
                raise PayloadError("payload: a number in the tables is too large")
        number = (1 << size) + self.get(size)
        if number > most:
            raise PayloadError("payload: a number in the tables is too large")
        return number

    def align(self) -> int:
        """Goes on to the next byte, over zeros; returns how many bytes lie behind."""
        if self.get(-self.at % 8):
            raise PayloadError("payload: the tables do not end where they should")
        return self.at // 8

    def finish(self) -> None:
        if self.align() != len(self.data):
            raise PayloadError("payload: the tables do not end where they should")
