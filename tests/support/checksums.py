"""Valid checksums for forged bytes."""

from __future__ import annotations

import struct


def crc32c(data: bytes) -> int:
    """The CRC-32C, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def sealed(body: bytes) -> bytes:
    return body + struct.pack("<I", crc32c(body))
