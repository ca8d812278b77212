"""Sections 5.2 to 5.6 of docs/format.md, and what section 8 says of them: nonzeros as lanes.

:func:`code_nonzero` codes a nonzero both ways. What differs is its coder: an :class:`Encoder`, a
:class:`Decoder`, or a :class:`Tracer`, which only notes what an encoder would code.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import TypeAlias

import numpy as np

from resfed_codec.errors import PayloadError
from resfed_codec.reference.bits import BitReader, BitWriter
from resfed_codec.reference.scan import Matrix, Scan, read_scans, scan, undo_scans
from resfed_codec.reference.symbols import MAX_LEVEL, Symbols, log2, part_sizes
from resfed_codec.reference.tables import (
    FAMILIES,
    FITTED,
    FREQUENCY_BITS,
    N_ROWS,
    N_SYMBOLS,
    N_TRAINED,
    Counts,
    FittedSet,
    Table,
    code_lengths,
    fit_set,
    read_set,
    trained,
    trained_costs,
    write_set,
)

LANE_LOG2 = 10
LANES_OF_SLICE = 32
MAX_BLOCK = 64

GAPS, LEVELS = 0, 1
"""The two kinds of symbols."""


# ---- 5.4 Symbols

GAP_ESCAPE, LEVEL_ESCAPE, SIGN_CHANGED = 31, 15, 16
FIRST_ESCAPED_GAP, FIRST_ESCAPED_LEVEL = 2**15, 96
HALF_OCTAVES = [part << (e - 1) for e in range(3, 15) for part in (2, 3)]
GAP_CLASSES = [*range(1, 8), *HALF_OCTAVES]
LEVEL_CLASSES = [*range(1, 9), *HALF_OCTAVES[:7]]
"""The first value of each class. Level 8 has a class of its own, and none begins at 9."""


def gap_symbol(gap: int) -> int:
    if gap >= FIRST_ESCAPED_GAP:
        return GAP_ESCAPE
    return bisect_right(GAP_CLASSES, gap) - 1


def level_symbol(level: int) -> int:
    if level >= FIRST_ESCAPED_LEVEL:
        return LEVEL_ESCAPE
    return level - 1 if level <= 8 else bisect_right(LEVEL_CLASSES, level) - 1


def class_bits(first: int) -> int:
    """Raw bits of half an octave."""
    return log2(first) - 1


# ---- 5.5 Contexts


def reached(number: int, thresholds: tuple[int, ...]) -> int:
    return sum(number >= threshold for threshold in thresholds)


@dataclass
class Block:
    """Blocks of a lane: their size (0: none) and the position of the lane's first nonzero."""

    size: int = 0
    position: int = 0


@dataclass
class Contexts:
    """What a lane's nonzeros so far say of the next one."""

    block: Block
    gap_log2: int = 0
    activity: int = 0
    level: int = 16
    changes: int = 0
    position: int | None = None  # of the last nonzero in its block
    crossed: bool = False
    whole: bool = False

    def gap_row(self) -> int:
        if not self.block.size:
            active = reached(self.activity, (4, 8, 16, 24, 40, 56, 72))
            return (min(self.gap_log2, 1) * 8 + active) * 2 + (self.level >= 24)
        left = 0 if self.position is None else self.block.size - 1 - self.position
        active = reached(self.activity, (8, 24, 56))
        return (min(left, 8) * 4 + active) * 2 + self.whole

    def add_gap(self, gap: int) -> None:
        self.gap_log2 = min(log2(gap), 15)
        self.activity += 2 * self.gap_log2 - self.activity // 8
        if not self.block.size:
            return
        if self.position is None:
            self.position = self.block.position
            self.whole = self.position == 0
            return
        self.crossed = self.position + gap >= self.block.size
        self.position = (self.position + gap) % self.block.size
        self.whole = self.position == 0 if self.crossed else self.whole and gap == 1

    def level_row(self) -> int:
        apart = self.crossed if self.block.size else self.gap_log2 > 0
        level = reached(self.level, (17, 18, 20, 24, 28, 32, 40, 56, 72, 96, 144))
        return (12 * apart + level) * 3 + reached(self.changes, (8, 80))

    def add_level(self, symbol: int) -> None:
        typical = (1, 2, 3, 4, 5, 6, 7, 8, 10, 13, 19, 27, 39, 55, 63, 63)[symbol % SIGN_CHANGED]
        self.level += 8 * typical - self.level // 2
        self.changes += (32 if symbol >= SIGN_CHANGED else 0) - self.changes // 8


# ---- 5.3 Interleaved rANS


class Encoder:
    """Collects decisions as (lane, f, s, m); `finish` codes them backwards."""

    def __init__(self, tables: list[tuple[Table, Table]]) -> None:
        self.tables = tables
        self.decisions: list[tuple[int, int, int, int]] = []

    def symbol(self, lane: int, kind: int, row: int, symbol: int) -> int:
        frequencies = self.tables[lane][kind][row]
        start = sum(frequencies[:symbol])
        self.decisions.append((lane, frequencies[symbol], start, FREQUENCY_BITS))
        return symbol

    def raw(self, lane: int, number: int, n_bits: int) -> int:
        self.decisions.append((lane, 1, number, n_bits))
        return number

    def finish(self) -> bytes:
        states, words = [2**16] * len(self.tables), []
        for lane, f, s, m in reversed(self.decisions):
            if states[lane] >= f << (32 - m):
                words.append(states[lane] % 2**16)
                states[lane] >>= 16
            states[lane] = (states[lane] // f << m) + states[lane] % f + s
        return b"".join(state.to_bytes(4, "little") for state in states) + b"".join(
            word.to_bytes(2, "little") for word in reversed(words)
        )


class Decoder:
    def __init__(self, tables: list[tuple[Table, Table]], data: bytes) -> None:
        n = 4 * len(tables)
        if len(data) < n or len(data) % 2:
            raise PayloadError("payload: a slice of an impossible length")
        self.tables = tables
        self.states = [int.from_bytes(data[i : i + 4], "little") for i in range(0, n, 4)]
        self.words = [int.from_bytes(data[i : i + 2], "little") for i in range(n, len(data), 2)]
        self.words.reverse()
        if min(self.states) < 2**16:
            raise PayloadError("payload: a lane in an impossible state")

    def symbol(self, lane: int, kind: int, row: int, _: int) -> int:
        frequencies = self.tables[lane][kind][row]
        slot = self.states[lane] % 2**FREQUENCY_BITS
        ends = list(accumulate(frequencies))
        symbol = bisect_right(ends, slot)
        f = frequencies[symbol]
        self.take(lane, f, ends[symbol] - f, FREQUENCY_BITS)
        return symbol

    def raw(self, lane: int, _: int, n_bits: int) -> int:
        number = self.states[lane] & ((1 << n_bits) - 1)
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
        if self.words or any(state != 2**16 for state in self.states):
            raise PayloadError("payload: a slice does not end where it should")


class Tracer:
    """Notes rows and symbols of one lane."""

    def __init__(self) -> None:
        self.noted: tuple[list[int], list[int]] = ([], [])

    def symbol(self, _lane: int, kind: int, row: int, symbol: int) -> int:
        self.noted[kind].append(row * N_SYMBOLS + symbol)
        return symbol

    def raw(self, _lane: int, number: int, _n_bits: int) -> int:
        return number


Coder: TypeAlias = "Encoder | Decoder | Tracer"


# ---- A nonzero and a slice


@dataclass
class Lane:
    """How a lane is coded, and its nonzeros as (gap, level)."""

    block: Block = field(default_factory=Block)
    sets: tuple[int, int] = (FITTED, FITTED)
    nonzeros: list[tuple[int, int]] = field(default_factory=list)

    @property
    def families(self) -> tuple[str, str]:
        return ("block_gaps", "block_levels") if self.block.size else ("gaps", "levels")


def code_mantissa(coder: Coder, lane: int, value: int, n_bits: int) -> int:
    """The bits below the leading one, highest first, 16 at a time."""
    result = 1
    while n_bits:
        n = min(n_bits, 16)
        n_bits -= n
        result = result << n | coder.raw(lane, value >> n_bits & (2**n - 1), n)
    return result


def code_nonzero(
    coder: Coder, lane: int, contexts: Contexts, gap: int, level: int, before: int
) -> Iterator[tuple[int, int]]:
    """Codes one nonzero in six steps, after each of which the other lanes have their turn.

    Args:
        coder: What codes it.
        lane: Which lane of its slice it belongs to.
        contexts: Those of the lane.
        gap: To the nonzero before; decoders pass 1.
        level: With its sign; decoders pass 1.
        before: The level of the nonzero before.

    Yields:
        Gap and level as far as they are known; at last, those of the nonzero.
    """
    symbol = coder.symbol(lane, GAPS, contexts.gap_row(), gap_symbol(gap))
    yield 0, 0
    if symbol == GAP_ESCAPE:
        size = coder.raw(lane, log2(gap), 6)
        if not 15 <= size <= 62:
            raise PayloadError("payload: a gap that cannot be")
    elif symbol >= 7:
        first = GAP_CLASSES[symbol]
        gap = first + coder.raw(lane, gap - first, class_bits(first))
    else:
        gap = symbol + 1
    yield 0, 0
    if symbol == GAP_ESCAPE:
        gap = code_mantissa(coder, lane, gap, size)
    contexts.add_gap(gap)
    yield gap, 0

    value, changed = abs(level), (level > 0) != (before > 0)
    symbol = level_symbol(value) + SIGN_CHANGED * changed
    symbol = coder.symbol(lane, LEVELS, contexts.level_row(), symbol)
    contexts.add_level(symbol)
    sign = 1 if (before > 0) != (symbol >= SIGN_CHANGED) else -1
    symbol %= SIGN_CHANGED
    yield gap, 0
    if symbol == LEVEL_ESCAPE:
        size = coder.raw(lane, log2(value), 5)
        if not 6 <= size <= 23:
            raise PayloadError("payload: a level that cannot be")
    elif symbol >= 8:
        first = LEVEL_CLASSES[symbol]
        value = first + coder.raw(lane, value - first, class_bits(first))
        if value == 8:
            raise PayloadError("payload: a level in a class that is not its own")
    else:
        value = symbol + 1
    yield gap, 0
    if symbol == LEVEL_ESCAPE:
        value = code_mantissa(coder, lane, value, size)
        if not FIRST_ESCAPED_LEVEL <= value <= MAX_LEVEL:
            raise PayloadError("payload: a level that cannot be")
    yield gap, sign * value


def code_slice(coder: Coder, lanes: list[Lane], sizes: list[int]) -> list[list[tuple[int, int]]]:
    """Codes the nonzeros of all lanes of a slice; returns those of each, as (gap, level)."""
    contexts = [Contexts(lane.block) for lane in lanes]
    coded: list[list[tuple[int, int]]] = [[] for _ in lanes]
    for step in range(max(sizes)):
        running = [i for i, size in enumerate(sizes) if step < size]
        turns = []
        for i in running:
            given = lanes[i].nonzeros[step] if lanes[i].nonzeros else (1, 1)
            before = coded[i][-1][1] if coded[i] else 1
            turns.append(code_nonzero(coder, i, contexts[i], *given, before))
        *_, done = zip(*turns, strict=True)  # one step of each lane after the other
        for i, nonzero in zip(running, done, strict=True):
            coded[i].append(nonzero)
    return coded


# ---- Blocks, section 8


def pays(block: Block, symbols: Symbols) -> bool:
    """Whether nonzeros follow each other directly more often inside a block than across its end."""
    n, direct = [0, 0], [0, 0]  # across the end of a block, inside
    first = symbols[0][0]
    for (before, _), (index, _) in pairwise(symbols):
        inside = (block.position + before - first) % block.size < block.size - 1
        n[inside] += 1
        direct[inside] += index == before + 1
    return 8 * (direct[1] * n[0] - direct[0] * n[1]) > n[1] * (n[0] + 16)


def choose_block(symbols: Symbols, matrices: list[Matrix]) -> Block:
    """The blocks of the matrix where a lane's middle nonzero lies, if they pay."""
    middle = symbols[len(symbols) // 2][0]
    for m in matrices:
        if 0 <= middle - m.begin < m.size and 2 <= m.block <= MAX_BLOCK:
            block = Block(m.block, (symbols[0][0] - m.begin) % m.block)
            return block if pays(block, symbols) else Block()
    return Block()


# ---- 5.6 The lanes in the tables


@dataclass
class LastLane:
    """What a lane is written as the difference to."""

    block_size: int = 0
    sets: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FAMILIES, FITTED))


def position_bits(block_size: int) -> int:
    return (block_size - 1).bit_length()


def write_lane(out: BitWriter, lane: Lane, last: LastLane) -> None:
    size = lane.block.size
    out.put(int(size == last.block_size))
    if size != last.block_size:
        out.put(size, 7)
    if size:
        out.put(lane.block.position, position_bits(size))
    last.block_size = size
    for family, number in zip(lane.families, lane.sets, strict=True):
        before = last.sets[family]
        out.put(int(number == before))
        if number != before:
            out.put(number - (number > before), 4)
        last.sets[family] = number


def read_lane(reader: BitReader, last: LastLane, fitted: dict[str, FittedSet]) -> Lane:
    if not reader.get():
        last.block_size = reader.get(7)
        if last.block_size == 1 or last.block_size > MAX_BLOCK:
            raise PayloadError("payload: blocks of an impossible size")
    lane = Lane(Block(last.block_size))
    if last.block_size:
        lane.block.position = reader.get(position_bits(last.block_size))
        if lane.block.position >= last.block_size:
            raise PayloadError("payload: a position beyond its block")
    for family in lane.families:
        if not reader.get():
            number = reader.get(4)
            last.sets[family] = number + (number >= last.sets[family])
        if last.sets[family] == FITTED and family not in fitted:
            raise PayloadError("payload: a lane with a set that is not there")
    gaps, levels = lane.families
    lane.sets = (last.sets[gaps], last.sets[levels])
    return lane


def tables_of(lane: Lane, fitted: dict[str, Table]) -> tuple[Table, Table]:
    gaps, levels = (
        fitted[family] if number == FITTED else trained(family)[number]
        for family, number in zip(lane.families, lane.sets, strict=True)
    )
    return gaps, levels


# ---- All nonzeros


def traced(lane: Lane) -> tuple[list[int], list[int]]:
    tracer = Tracer()
    code_slice(tracer, [lane], [len(lane.nonzeros)])
    return tracer.noted


def choose_set(family: str, codes: list[int], fitted: dict[str, Table], last: int) -> int:
    """The cheapest set with what naming it costs; of equal ones the first."""
    lengths = trained_costs(family).reshape(N_TRAINED, -1)[:, codes].sum(axis=1).tolist()
    if family in fitted:
        lengths.append(int(code_lengths()[np.ravel(fitted[family])[codes]].sum()))
    costs = [length + 32 * (1 if i == last else 5) for i, length in enumerate(lengths)]
    return costs.index(min(costs))


def lanes_of(symbols: Symbols, sizes: list[int], matrices: list[Matrix]) -> list[Lane]:
    lanes, previous, done = [], -1, 0
    for size in sizes:
        own = symbols[done : done + size]
        done += size
        lane = Lane(choose_block(own, matrices))
        for index, level in own:
            lane.nonzeros.append((index - previous, level))
            previous = index
        lanes.append(lane)
    return lanes


def encode_nonzeros(
    symbols: Symbols, matrices: list[Matrix], lane_log2: int = LANE_LOG2
) -> tuple[bytes, list[bytes]]:
    """The field ``tables`` and the slices of the lossy groups' nonzeros."""
    if not symbols:
        return b"", []
    out = BitWriter()
    matrices = [replace(m) for m in matrices]
    symbols = scan(symbols, matrices, out)
    sizes = part_sizes(len(symbols), lane_log2)
    lanes = lanes_of(symbols, sizes, matrices)
    traces = [traced(lane) for lane in lanes]

    counts: dict[str, Counts] = {f: np.zeros((N_ROWS[f], N_SYMBOLS), int) for f in FAMILIES}
    for lane, codes in zip(lanes, traces, strict=True):
        for family, own in zip(lane.families, codes, strict=True):
            np.add.at(counts[family].reshape(-1), own, 1)
    fitted: dict[str, Table] = {}
    for family in FAMILIES:
        chosen = fit_set(family, counts[family])
        write_set(out, chosen)
        if chosen:
            fitted[family] = chosen.table(family)

    last = LastLane()
    for lane, codes in zip(lanes, traces, strict=True):
        gaps, levels = (
            choose_set(family, own, fitted, last.sets[family])
            for family, own in zip(lane.families, codes, strict=True)
        )
        lane.sets = (gaps, levels)
        write_lane(out, lane, last)

    slices = []
    for i in range(0, len(lanes), LANES_OF_SLICE):
        some = lanes[i : i + LANES_OF_SLICE]
        encoder = Encoder([tables_of(lane, fitted) for lane in some])
        code_slice(encoder, some, [len(lane.nonzeros) for lane in some])
        slices.append(encoder.finish())
    return out.finish(), slices


@dataclass
class Tables:
    """What the field ``tables`` says: the scan order of matrices, fitted sets, lanes."""

    scans: list[Scan]
    fitted: dict[str, FittedSet]
    lanes: list[Lane]


def read_tables(data: bytes, matrices: list[Matrix], n_lanes: int) -> Tables:
    reader = BitReader(data)
    tables = Tables(read_scans(reader, matrices), {}, [])
    for family in FAMILIES:
        fitted = read_set(reader, family)
        if fitted:
            tables.fitted[family] = fitted
    last = LastLane()
    for _ in range(n_lanes):
        tables.lanes.append(read_lane(reader, last, tables.fitted))
    reader.finish()
    return tables


def decode_nonzeros(
    data: bytes, slices: list[bytes], sizes: list[int], matrices: list[Matrix], n_elems: int
) -> Symbols:
    """The nonzeros of a payload whose lanes have these sizes; ``data`` is the field ``tables``."""
    if not sizes:
        return []
    tables = read_tables(data, matrices, len(sizes))
    fitted = {family: chosen.table(family) for family, chosen in tables.fitted.items()}
    symbols: Symbols = []
    index = -1
    for i, coded_slice in enumerate(slices):
        which = slice(i * LANES_OF_SLICE, (i + 1) * LANES_OF_SLICE)
        lanes = tables.lanes[which]
        decoder = Decoder([tables_of(lane, fitted) for lane in lanes], coded_slice)
        for nonzeros in code_slice(decoder, lanes, sizes[which]):
            for gap, level in nonzeros:
                index += gap
                if index >= n_elems:
                    raise PayloadError("payload: an index is past the end")
                symbols.append((index, level))
        decoder.finish()
    return undo_scans(symbols, matrices, tables.scans)
