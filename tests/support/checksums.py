"""Valid checksums for forged bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterator


def crc32c(data: bytes) -> int:
    """The CRC-32C, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def with_flipped_bits(data: bytes) -> Iterator[bytes]:
    """The data with each of its bits flipped in turn."""
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        yield bytes(damaged)


def sealed(body: bytes) -> bytes:
    return body + struct.pack("<I", crc32c(body))
