"""Section 5 of docs/format.md as plain Python: slices of adaptively coded binary decisions."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import ClassVar

from resfed_codec.errors import PayloadError
from resfed_codec.reference.contexts import (
    AGREE,
    BLOCK,
    BLOCK_GAP,
    CHANGE_GAP,
    CHANGE_REPEAT,
    CHANGE_SIZE,
    ESCAPE,
    GAP,
    GAP_FIRST,
    GAP_SECOND,
    LEVEL,
    LEVEL_ABOVE,
    LOSSLESS,
    PERIOD,
    REPEAT,
    SIGN,
    SLICE,
    State,
)

SLICE_LOG2 = 11
MAX_LEVEL = 2**23


# ---- 5.1 Binary rANS and 5.2 Adaptive probabilities


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
Symbols = list[tuple[int, int]]  # (index, level) or (index, change)
Rows = list[tuple[int, int, int]]  # first element, length of rows and of blocks from there on


def log2(n: int) -> int:
    return n.bit_length() - 1


def rows_at(rows: Rows, index: int) -> tuple[int, int, int]:
    return next((entry for entry in reversed(rows) if entry[0] <= index), (0, 0, 0))


def code_unary(coder: Coder, value: int, context: Callable[[int], int], most: int) -> int:
    position = 0
    while coder.code_bit(context(position), int(position < value)):
        position += 1
        if position > most:
            raise PayloadError("payload: a number in a slice is too large")
    return position


def code_mantissa(coder: Coder, value: int, n_bits: int, leading: int = 1) -> int:
    while n_bits:
        n = min(n_bits, 14)
        n_bits -= n
        leading = leading << n | coder.code_bypass(value >> n_bits & (2**n - 1), n)
    return leading


# ---- 5.3 A nonzero


class Period:
    """The nonzeros of a slice so far, and what they predict one period later."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.levels: dict[int, int] = {}
        self.indices: list[int] = []
        self.next = 0  # the first of `indices` that can still matter

    def add(self, index: int, level: int) -> None:
        self.levels[index] = level
        self.indices.append(index)

    def gap(self, last: int) -> int:
        """The gap that the period before suggests after the nonzero at `last`; 0: none."""
        if not self.length or not self.indices or last + 1 < self.indices[0] + self.length:
            return 0
        while self.indices[self.next] + self.length <= last:
            self.next += 1
        return self.indices[self.next] + self.length - last

    def level(self, index: int) -> int:
        """The level one period before an element; 0 if that was not sent in this slice."""
        return self.levels.get(index - self.length, 0) if self.length else 0

    def pays(self, symbols: Symbols) -> bool:
        """Section 8: whether an encoder signals this period for a slice of these symbols."""
        if not 2 <= self.length < 2**32:
            return False
        advantage, agreed, levels = 0, None, dict(symbols)
        for (_, before), (index, level) in pairwise(symbols):
            above = levels.get(index - self.length)
            if above is not None:
                agrees = (above > 0) == (level > 0)
                advantage += int(agrees == agreed) - int((before > 0) == (level > 0))
                agreed = agrees
        return 64 * advantage > len(symbols)


class Block:
    """The position of elements in their blocks: that of ``origin`` is given. No blocks: size 0."""

    def __init__(self, size: int, position: int, origin: int) -> None:
        self.size, self.position, self.origin = size, position, origin

    def left(self, index: int) -> int:
        """Elements from this one to the end of its block; 0: all of them."""
        return -(self.position + index - self.origin) % self.size

    def pays(self, symbols: Symbols) -> bool:
        """Section 8: whether an encoder signals these blocks for a slice of these symbols."""
        if not 2 <= self.size <= 64:
            return False
        n, direct = [0, 0], [0, 0]  # across the end of a block, inside
        for (before, _), (index, _) in pairwise(symbols):
            inside = int(self.left(before + 1) > 0)
            n[inside] += 1
            direct[inside] += int(index == before + 1)
        return 8 * (direct[1] * n[0] - direct[0] * n[1]) > n[1] * (n[0] + 64)


class NonzeroCode:
    states: ClassVar = SLICE.states

    def __init__(self, coder: Coder, start: int, symbols: Symbols, rows: Rows) -> None:
        self.gap_class = self.activity = self.sign = self.repeats = self.agreed = 0
        self.level = 1
        self.last = start
        first, middle = (symbols[0][0], symbols[len(symbols) // 2][0]) if symbols else (0, 0)
        begin, length, size = rows_at(rows, middle)
        if not Period(length).pays(symbols):
            length = 0
        if coder.code_bit(PERIOD(), int(length > 0)):
            n_bits = code_mantissa(coder, log2(max(length, 1)), 5, 0)
            length = code_mantissa(coder, length, n_bits)
        self.period = Period(length)

        block = Block(size, middle - begin, middle)
        pays = size and not length and block.pays(symbols)
        position = -block.left(first) % size if pays else -1
        self.block_size = 0
        self.block: Block | None = None  # until there is a nonzero
        if not length and coder.code_bit(BLOCK(), int(position >= 0)):
            self.block_size = 1 + coder.code_bypass((size - 1) % 64, 6)
            n_bits = max(1, (self.block_size - 1).bit_length())
            self.position = coder.code_bypass(max(position, 0), n_bits) % self.block_size

    def code(self, coder: Coder, gap: int, level: int) -> tuple[int, int]:
        likely, repeat = self.period.gap(self.last), 0
        if likely:
            often = sum(self.repeats >= limit for limit in (1, 3, 8))
            context = REPEAT(often, min(log2(likely), 5), self.agreed)
            repeat = coder.code_bit(context, int(gap == likely))
            self.repeats = min(self.repeats + 1, 15) if repeat else self.repeats // 2
        if repeat:
            gap, e = likely, log2(likely)
        else:
            gap, e = self.code_gap(coder, gap)
        self.last += gap

        above = self.period.level(self.last)
        if above:
            agrees = coder.code_bit(AGREE(self.agreed), int((level > 0) == (above > 0)))
            self.agreed = min(self.agreed + 1, 3) if agrees else 0
            positive = int((above > 0) == bool(agrees))
            base = LEVEL_ABOVE(min(abs(above), 7) - 1, 0)
        else:
            positive = coder.code_bit(SIGN(self.sign, min(e, 2)), int(level > 0))
            base = LEVEL(min(self.level, 7) - 1, min(e, 2), 0)

        wanted, reached = abs(level), 1
        while reached <= 14 and coder.code_bit(base + reached - 1, int(reached < wanted)):
            reached += 1
        if reached > 14:
            rest = max(wanted - 14, 1)
            size = code_unary(coder, log2(rest), lambda i: ESCAPE(min(i, 23)), 23)
            reached = 14 + code_mantissa(coder, rest, size)
        if reached > MAX_LEVEL:
            raise PayloadError("payload: a level is too large")

        self.period.add(self.last, reached if positive else -reached)
        if self.block_size and self.block is None:
            self.block = Block(self.block_size, self.position, self.last)
        self.gap_class = e
        self.activity += 2 * min(e, 15) - self.activity // 8
        self.sign = 2 if positive else 1
        self.level = reached
        return gap, reached if positive else -reached

    def code_gap(self, coder: Coder, gap: int) -> tuple[int, int]:
        """The gap without a prediction, and its log2."""
        a = sum(self.activity >= limit for limit in (8, 24, 56))
        left = min(self.block.left(self.last + 1), 8) if self.block is not None else None

        def context(position: int) -> int:
            if left is not None and position < 3:
                return BLOCK_GAP(a, left, position)
            return GAP(min(self.gap_class, 2), a, min(position, 15))

        e = code_unary(coder, log2(gap), context, 62)
        if e == 0:
            return 1, 0
        top = 2 | coder.code_bit(GAP_FIRST(min(e, 24) - 1), gap >> (e - 1) & 1)
        if e == 1:
            return top, 1
        top = 2 * top + coder.code_bit(GAP_SECOND(min(e, 24) - 2, top % 2), gap >> (e - 2) & 1)
        return code_mantissa(coder, gap, e - 2, top), e


# ---- 5.4 A changed element of the lossless group


class ChangeCode:
    states: ClassVar = LOSSLESS.states

    def __init__(self, _coder: Coder, _start: int, _symbols: Symbols, _rows: Rows) -> None:
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


# ---- 5. Slices

Code = type[NonzeroCode] | type[ChangeCode]


def slice_sizes(k: int, slice_log2: int) -> list[int]:
    n = max(1, (k + 2 ** (slice_log2 - 1)) >> slice_log2) if k else 0
    return [k // n + (i < k % n) for i in range(n)]


def encode_slices(kind: Code, symbols: Symbols, rows: Rows) -> list[bytes]:
    slices, previous, done = [], -1, 0
    for size in slice_sizes(len(symbols), SLICE_LOG2):
        own = symbols[done : done + size]
        done += size
        coder = Encoder(Contexts(kind.states))
        code = kind(coder, previous, own, rows)
        for index, value in own:
            code.code(coder, index - previous, value)
            previous = index
        slices.append(coder.finish())
    return slices


def decode_slices(kind: Code, slices: list[bytes], sizes: list[int], n_elems: int) -> Symbols:
    symbols, index = [], -1
    for data, size in zip(slices, sizes, strict=True):
        coder = Decoder(Contexts(kind.states), data)
        code = kind(coder, index, [], [])
        for _ in range(size):
            gap, value = code.code(coder, 1, 1)
            index += gap
            if index >= n_elems:
                raise PayloadError("payload: an index is past the end")
            symbols.append((index, value))
        coder.finish()
    return symbols
