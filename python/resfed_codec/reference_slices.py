"""Section 5 of docs/format.md as plain Python: slices of adaptively coded binary decisions."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from resfed_codec.errors import PayloadError
from resfed_codec.initial_states import LOSSLESS_STATE, SLICE_STATES

SLICE_LOG2 = 11
MAX_LEVEL = 2**23


# ---- 5.1 Binary rANS and 5.2 Adaptive probabilities


class Contexts:
    """The adaptive probabilities of one slice."""

    def __init__(self, states: list[tuple[int, int]]) -> None:
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

    def decide(self, context: int, bit: int) -> int:
        p = self.contexts.probability(context)
        self.decisions.append((p, 0) if bit else (2**14 - p, p))
        self.contexts.update(context, bit)
        return bit

    def decide_number(self, number: int, n_bits: int) -> int:
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

    def decide(self, context: int, _: int) -> int:
        p = self.contexts.probability(context)
        bit = int(self.state % 2**14 < p)
        self.take(*((p, 0) if bit else (2**14 - p, p)))
        self.contexts.update(context, bit)
        return bit

    def decide_number(self, _: int, n_bits: int) -> int:
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


def log2(n: int) -> int:
    return n.bit_length() - 1


def code_unary(coder: Coder, value: int, context: Callable[[int], int], most: int) -> int:
    position = 0
    while coder.decide(context(position), int(position < value)):
        position += 1
        if position > most:
            raise PayloadError("payload: a number in a slice is too large")
    return position


def code_mantissa(coder: Coder, value: int, n_bits: int, leading: int = 1) -> int:
    while n_bits:
        n = min(n_bits, 14)
        n_bits -= n
        leading = leading << n | coder.decide_number(value >> n_bits & (2**n - 1), n)
    return leading


# ---- 5.3 A nonzero


class NonzeroCode:
    states: ClassVar = list(SLICE_STATES)

    def __init__(self) -> None:
        self.gap_class = self.activity = self.sign = 0
        self.level = 1

    def code(self, coder: Coder, gap: int, level: int) -> tuple[int, int]:
        a = sum(self.activity >= limit for limit in (4, 8, 16, 24, 40, 56, 80))
        base = (min(self.gap_class, 2) * 8 + a) * 16
        e = code_unary(coder, log2(gap), lambda i: base + min(i, 15), 62)
        if e > 0:
            top = coder.decide(384 + min(e, 24) - 1, gap >> (e - 1) & 1)
            gap = code_mantissa(coder, gap, e - 1, 2 | top)
        else:
            gap = 1
        positive = coder.decide(408 + self.sign * 3 + min(e, 2), int(level > 0))

        wanted, reached = abs(level), 1
        base = 417 + ((min(self.level, 7) - 1) * 3 + min(e, 2)) * 14
        while reached <= 14 and coder.decide(base + reached - 1, int(reached < wanted)):
            reached += 1
        if reached > 14:
            rest = max(wanted - 14, 1)
            size = code_unary(coder, log2(rest), lambda i: 711 + min(i, 23), 23)
            reached = 14 + code_mantissa(coder, rest, size)
        if reached > MAX_LEVEL:
            raise PayloadError("payload: a level is too large")

        self.gap_class = e
        self.activity += 2 * min(e, 15) - self.activity // 8
        self.sign = 2 if positive else 1
        self.level = reached
        return gap, reached if positive else -reached


# ---- 5.4 A changed element of the lossless group


class ChangeCode:
    states: ClassVar = [LOSSLESS_STATE] * 98

    def __init__(self) -> None:
        self.scattered = self.repeated = self.last = 0

    def code(self, coder: Coder, gap: int, change: int) -> tuple[int, int]:
        base = self.scattered * 16
        e = code_unary(coder, log2(gap), lambda i: base + min(i, 15), 62)
        gap = code_mantissa(coder, gap, e)
        repeats = 0
        if self.last:
            repeats = coder.decide(32 + self.repeated, int(change == self.last))
        if repeats:
            change = self.last
        else:
            size, node = log2(max(change, 1)), 1
            for i in reversed(range(6)):
                node = 2 * node + coder.decide(34 + node, size >> i & 1)
            change = code_mantissa(coder, change, node - 64)
        self.scattered, self.repeated, self.last = int(gap > 1), repeats, change
        return gap, change


# ---- 5. Slices

Symbols = list[tuple[int, int]]  # (index, level) or (index, change)
Code = type[NonzeroCode] | type[ChangeCode]


def slice_sizes(k: int, slice_log2: int) -> list[int]:
    n = max(1, (k + 2 ** (slice_log2 - 1)) >> slice_log2) if k else 0
    return [k // n + (i < k % n) for i in range(n)]


def encode_slices(kind: Code, symbols: Symbols) -> list[bytes]:
    slices, previous, todo = [], -1, iter(symbols)
    for size in slice_sizes(len(symbols), SLICE_LOG2):
        code, coder = kind(), Encoder(Contexts(kind.states))
        for _ in range(size):
            index, value = next(todo)
            code.code(coder, index - previous, value)
            previous = index
        slices.append(coder.finish())
    return slices


def decode_slices(kind: Code, slices: list[bytes], sizes: list[int], n_elems: int) -> Symbols:
    symbols, index = [], -1
    for data, size in zip(slices, sizes, strict=True):
        code, coder = kind(), Decoder(Contexts(kind.states), data)
        for _ in range(size):
            gap, value = code.code(coder, 1, 1)
            index += gap
            if index >= n_elems:
                raise PayloadError("payload: an index is past the end")
            symbols.append((index, value))
        coder.finish()
    return symbols
