"""Section 5.3 of docs/format.md: interleaved rANS, of lanes that share one stream of words."""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from typing import TypeAlias

from resfed_codec.errors import PayloadError

FREQUENCY_BITS = 12
START = 2**16
"""The state of a lane before its first decision is encoded; states are never below it."""

Row: TypeAlias = "tuple[int, ...]"
"""The frequencies of all symbols, whose sum is 2**12."""


@lru_cache(2**12)
def slot_ends(row: Row) -> list[int]:
    return list(accumulate(row))


class Encoder:
    """Collects decisions as (lane, f, s, m); `finish` codes them backwards."""

    def __init__(self, n_lanes: int) -> None:
        self.n_lanes = n_lanes
        self.decisions: list[tuple[int, int, int, int]] = []

    def symbol(self, lane: int, row: Row, symbol: int) -> int:
        f = row[symbol]
        self.decisions.append((lane, f, slot_ends(row)[symbol] - f, FREQUENCY_BITS))
        return symbol

    def raw(self, lane: int, number: int, n_bits: int) -> int:
        self.decisions.append((lane, 1, number, n_bits))
        return number

    def finish(self) -> bytes:
        states, words = [START] * self.n_lanes, []
        for lane, f, s, m in reversed(self.decisions):
            if states[lane] >= f << (32 - m):
                words.append(states[lane] % 2**16)
                states[lane] >>= 16
            states[lane] = (states[lane] // f << m) + states[lane] % f + s
        return b"".join(state.to_bytes(4, "little") for state in states) + b"".join(
            word.to_bytes(2, "little") for word in reversed(words)
        )


class Decoder:
    """The counterpart: what its methods are given as a symbol or number is of no meaning."""

    def __init__(self, n_lanes: int, data: bytes) -> None:
        n = 4 * n_lanes
        if len(data) < n or len(data) % 2:
            raise PayloadError("payload: a slice of an impossible length")
        self.states = [int.from_bytes(data[i : i + 4], "little") for i in range(0, n, 4)]
        self.words = [int.from_bytes(data[i : i + 2], "little") for i in range(n, len(data), 2)]
        self.words.reverse()
        if min(self.states) < START:
            raise PayloadError("payload: a lane in an impossible state")

    def symbol(self, lane: int, row: Row, _: int) -> int:
        ends = slot_ends(row)
        symbol = bisect_right(ends, self.states[lane] % 2**FREQUENCY_BITS)
        f = row[symbol]
        self.take(lane, f, ends[symbol] - f, FREQUENCY_BITS)
        return symbol

    def raw(self, lane: int, _: int, n_bits: int) -> int:
        number = self.states[lane] % (1 << n_bits)
        self.take(lane, 1, number, n_bits)
        return number

    def take(self, lane: int, f: int, s: int, m: int) -> None:
        high, slot = divmod(self.states[lane], 1 << m)
        state = f * high + slot - s
        if state < 2**16:
            if not self.words:
                raise PayloadError("payload: a slice ends too early")
            state = state << 16 | self.words.pop()
        self.states[lane] = state

    def finish(self) -> None:
        if self.words or any(state != START for state in self.states):
            raise PayloadError("payload: a slice does not end where it should")


Coder: TypeAlias = "Encoder | Decoder"


def code_pieces(coder: Coder, lane: int, known: int, number: int, n_bits: int) -> int:
    """Codes the lowest bits of a number, the highest of them first, 16 at a time.

    Returns:
        The number whose higher bits are ``known``.
    """
    while n_bits:
        n = min(n_bits, 16)
        n_bits -= n
        known = known << n | coder.raw(lane, number >> n_bits & (1 << n) - 1, n)
    return known
