"""Section 5.7 of docs/format.md as plain Python: slices of adaptively coded binary decisions.

They code the changed elements of the lossless group; keyframes use the same coder.
"""

from __future__ import annotations

from collections.abc import Callable

from resfed_codec.errors import PayloadError
from resfed_codec.reference.contexts import (
    CHANGE_GAP,
    CHANGE_REPEAT,
    CHANGE_SIZE,
    LOSSLESS,
    State,
)
from resfed_codec.reference.symbols import Symbols, log2, part_sizes

SLICE_LOG2 = 11


# ---- Binary rANS and adaptive probabilities


class Contexts:
    """The adaptive probabilities of one slice."""

    def __init__(self, states: list[State]) -> None:
        self.table = [[256 * p, 256 * p, count] for p, count in states]

    def probability(self, context: int) -> int:
        fast, slow, _ = self.table[context]
        return min(max((fast + slow) // 8, 1), 2**14 - 1)

    def update(self, context: int, bit: int) -> None:
        entry = self.table[context]
        for i, floor in ((0, 4096), (1, 512)):
            rate = max(131072 // (2 * entry[2] + 3), floor)
            if bit:
                entry[i] += (65535 - entry[i]) * rate // 65536
            else:
                entry[i] -= entry[i] * rate // 65536
        entry[2] = min(entry[2] + 1, 127)


class Encoder:
    """Collects decisions as (f, s); `finish` codes them backwards."""

    def __init__(self, contexts: Contexts) -> None:
        self.contexts = contexts
        self.decisions: list[tuple[int, int]] = []

    def code_bit(self, context: int, bit: int) -> int:
        p = self.contexts.probability(context)
        self.decisions.append((p, 0) if bit else (2**14 - p, p))
        self.contexts.update(context, bit)
        return bit

    def code_bypass(self, number: int, n_bits: int) -> int:
        self.decisions.append((2 ** (14 - n_bits), number << (14 - n_bits)))
        return number

    def finish(self) -> bytes:
        state, words = 2**16, []
        for f, s in reversed(self.decisions):
            if state >= f << 18:
                words.append(state & 0xFFFF)
                state >>= 16
            state = (state // f << 14) + state % f + s
        return state.to_bytes(4, "little") + b"".join(
            word.to_bytes(2, "little") for word in reversed(words)
        )


class Decoder:
    def __init__(self, contexts: Contexts, data: bytes) -> None:
        if len(data) < 4 or len(data) % 2:
            raise PayloadError("payload: a slice of an impossible length")
        self.contexts = contexts
        self.state = int.from_bytes(data[:4], "little")
        self.words = [int.from_bytes(data[i : i + 2], "little") for i in range(4, len(data), 2)]
        self.words.reverse()
        if self.state < 2**16:
            raise PayloadError("payload: a slice in an impossible state")

    def code_bit(self, context: int, _: int) -> int:
        p = self.contexts.probability(context)
        bit = int(self.state % 2**14 < p)
        self.take(*((p, 0) if bit else (2**14 - p, p)))
        self.contexts.update(context, bit)
        return bit

    def code_bypass(self, _: int, n_bits: int) -> int:
        number = self.state % 2**14 >> (14 - n_bits)
        self.take(2 ** (14 - n_bits), number << (14 - n_bits))
        return number

    def take(self, f: int, s: int) -> None:
        self.state = f * (self.state >> 14) + self.state % 2**14 - s
        if self.state < 2**16:
            if not self.words:
                raise PayloadError("payload: a slice ends too early")
            self.state = self.state << 16 | self.words.pop()

    def finish(self) -> None:
        if self.words or self.state != 2**16:
            raise PayloadError("payload: a slice does not end where it should")


Coder = Encoder | Decoder


def code_unary(coder: Coder, value: int, context: Callable[[int], int], most: int) -> int:
    position = 0
    while coder.code_bit(context(position), int(position < value)):
        position += 1
        if position > most:
            raise PayloadError("payload: a number in a slice is too large")
    return position


def code_mantissa(coder: Coder, value: int, n_bits: int) -> int:
    leading = 1
    while n_bits:
        n = min(n_bits, 14)
        n_bits -= n
        leading = leading << n | coder.code_bypass(value >> n_bits & (2**n - 1), n)
    return leading


# ---- A changed element


class ChangeCode:
    def __init__(self) -> None:
        self.scattered = self.repeated = self.last = 0

    def code(self, coder: Coder, gap: int, change: int) -> tuple[int, int]:
        e = code_unary(coder, log2(gap), lambda i: CHANGE_GAP(self.scattered, min(i, 15)), 62)
        gap = code_mantissa(coder, gap, e)
        repeats = 0
        if self.last:
            repeats = coder.code_bit(CHANGE_REPEAT(self.repeated), int(change == self.last))
        if repeats:
            change = self.last
        else:
            size, node = log2(max(change, 1)), 1
            for i in reversed(range(6)):
                node = 2 * node + coder.code_bit(CHANGE_SIZE(node), size >> i & 1)
            change = code_mantissa(coder, change, node - 64)
        self.scattered, self.repeated, self.last = int(gap > 1), repeats, change
        return gap, change


def encode_changes(changes: Symbols) -> list[bytes]:
    slices, previous, done = [], -1, 0
    for size in part_sizes(len(changes), SLICE_LOG2):
        coder, code = Encoder(Contexts(LOSSLESS.states)), ChangeCode()
        for index, change in changes[done : done + size]:
            code.code(coder, index - previous, change)
            previous = index
        done += size
        slices.append(coder.finish())
    return slices


def decode_changes(slices: list[bytes], n_changed: int, n_elems: int) -> Symbols:
    changes, index = [], -1
    for data, size in zip(slices, part_sizes(n_changed, SLICE_LOG2), strict=True):
        coder, code = Decoder(Contexts(LOSSLESS.states), data), ChangeCode()
        for _ in range(size):
            gap, change = code.code(coder, 1, 1)
            index += gap
            if index >= n_elems:
                raise PayloadError("payload: an index is past the end")
            changes.append((index, change))
        coder.finish()
    return changes
