"""Sections 5.2 to 5.6 of docs/format.md as Python: nonzeros as lanes, in slices.

:func:`code_nonzero` codes a nonzero both ways. What differs is its coder, of rans.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from resfed_codec.errors import PayloadError
from resfed_codec.reference.bits import BitReader, BitWriter
from resfed_codec.reference.choices import MAX_BLOCK, choose_block, choose_set, choose_shift
from resfed_codec.reference.contexts import Block, ChangeContexts, Contexts
from resfed_codec.reference.rans import Coder, Decoder, Encoder, code_pieces
from resfed_codec.reference.scan import Matrix, Scan, read_scans, scan, undo_scans
from resfed_codec.reference.symbols import (
    EXPONENT_BITS,
    GAP_ESCAPE,
    LEVEL_ESCAPE,
    MAX_CHANGE,
    MAX_LEVEL,
    MAX_SHIFT,
    SIGN_CHANGED,
    Nonzeros,
    gap_class,
    gap_symbol,
    level_class,
    level_symbol,
    log2,
)
from resfed_codec.reference.tables import (
    FAMILIES,
    FITTED,
    N_ROWS,
    N_SYMBOLS,
    Counts,
    FittedSet,
    Table,
    fit_set,
    read_set,
    trained,
    write_set,
)

LANE_LOG2 = 10
LANES_OF_SLICE = 32


@dataclass(frozen=True)
class Part:
    """What differs between lossy and lossless slices: families of tables and the largest level."""

    families: tuple[str, ...]
    most: int


LOSSY = Part(("gaps", "block_gaps", "levels", "block_levels"), MAX_LEVEL)
LOSSLESS = Part(("levels", "change_gaps"), MAX_CHANGE)


# ---- 5.2 Lanes and slices


def count_lanes(n_nonzeros: int, lane_log2: int) -> int:
    return max(1, (n_nonzeros + 2 ** (lane_log2 - 1)) >> lane_log2) if n_nonzeros else 0


def lane_sizes(n_nonzeros: int, lane_log2: int) -> list[int]:
    n = count_lanes(n_nonzeros, lane_log2)
    return [n_nonzeros // n + (i < n_nonzeros % n) for i in range(n)]


def count_slices(n_lanes: int) -> int:
    return -(-n_lanes // LANES_OF_SLICE)


@dataclass
class Lane:
    """How a lane is coded, and its nonzeros as (gap, level)."""

    part: Part
    block: Block = field(default_factory=Block)
    shift: int = 0
    sets: tuple[int, int] = (FITTED, FITTED)
    nonzeros: list[tuple[int, int]] = field(default_factory=list)

    @property
    def families(self) -> tuple[str, str]:
        """Of gaps and of levels."""
        if self.part is LOSSLESS:
            return "change_gaps", "levels"
        return ("block_gaps", "block_levels") if self.block.size else ("gaps", "levels")

    def contexts(self) -> Contexts:
        return ChangeContexts() if self.part is LOSSLESS else Contexts(self.block)

    def tables(self, fitted: dict[str, Table]) -> tuple[Table, Table]:
        gaps, levels = (
            fitted[family] if number == FITTED else trained(family)[number]
            for family, number in zip(self.families, self.sets, strict=True)
        )
        return gaps, levels


def lanes_of(
    part: Part, nonzeros: Nonzeros, sizes: list[int], matrices: list[Matrix]
) -> list[Lane]:
    lanes, previous, done = [], -1, 0
    for size in sizes:
        own = nonzeros[done : done + size]
        done += size
        lane = Lane(part, choose_block(own, matrices), choose_shift(own))
        for index, level in own:
            lane.nonzeros.append((index - previous, level))
            previous = index
        lanes.append(lane)
    return lanes


# ---- 5.3 to 5.5 A nonzero and a slice


def signed_symbol(level: int, before: int, shift: int) -> int:
    changed = (level > 0) != (before > 0)
    return level_symbol(abs(level), shift) + SIGN_CHANGED * changed


def codes_of(lane: Lane) -> tuple[list[int], list[int]]:
    """Of gaps and of levels: the symbols with their rows, as row * 32 + symbol."""
    gaps, levels = [], []
    contexts, before = lane.contexts(), 1
    for gap, level in lane.nonzeros:
        gaps.append(contexts.gap_row() * N_SYMBOLS + gap_symbol(gap))
        contexts.add_gap(gap)
        symbol = signed_symbol(level, before, lane.shift)
        levels.append(contexts.level_row() * N_SYMBOLS + symbol)
        contexts.add_level(symbol)
        before = level
    return gaps, levels


@dataclass
class Coding:
    """A lane of a slice in the middle of being coded."""

    coder: Coder
    number: int
    tables: tuple[Table, Table]
    shift: int
    most: int
    contexts: Contexts
    done: list[tuple[int, int]] = field(default_factory=list)

    def raw(self, number: int, n_bits: int) -> int:
        return self.coder.raw(self.number, number, n_bits)

    def pieces(self, known: int, number: int, n_bits: int) -> int:
        return code_pieces(self.coder, self.number, known, number, n_bits)


def code_nonzero(lane: Coding, gap: int, level: int) -> Iterator[None]:
    """Codes one nonzero in six passes, between which the other lanes have theirs.

    Decoders pass a gap and a level of 1.
    """
    contexts = lane.contexts
    row = lane.tables[0][contexts.gap_row()]
    symbol = lane.coder.symbol(lane.number, row, gap_symbol(gap))
    yield
    if symbol == GAP_ESCAPE:
        size = lane.raw(log2(gap), EXPONENT_BITS)
        if not 15 <= size <= 62:
            raise PayloadError("payload: a gap that cannot be")
    else:
        first, n_bits = gap_class(symbol)
        gap = first + lane.raw(gap - first, n_bits)
    yield
    if symbol == GAP_ESCAPE:
        gap = lane.pieces(1, gap, size)
    contexts.add_gap(gap)
    yield

    before = lane.done[-1][1] if lane.done else 1
    row = lane.tables[1][contexts.level_row()]
    symbol = lane.coder.symbol(lane.number, row, signed_symbol(level, before, lane.shift))
    contexts.add_level(symbol)
    sign = 1 if (before > 0) != (symbol >= SIGN_CHANGED) else -1
    symbol %= SIGN_CHANGED
    value = abs(level)
    yield
    if symbol == LEVEL_ESCAPE:
        size = lane.raw(log2(value), EXPONENT_BITS)
    else:
        first, n_bits = level_class(symbol, lane.shift)
        rest = max(n_bits - 16, 0)
        top = lane.raw(value - first >> rest, n_bits - rest)
    yield
    if symbol == LEVEL_ESCAPE:
        value = lane.pieces(1, value, size)
    else:
        value = first + lane.pieces(top, value - first, rest)
    if value > lane.most or level_symbol(value, lane.shift) != symbol:
        raise PayloadError("payload: a level that cannot be")
    lane.done.append((gap, sign * value))


def code_slice(
    coder: Coder, lanes: list[Lane], sizes: list[int], fitted: dict[str, Table]
) -> list[list[tuple[int, int]]]:
    """Codes the nonzeros of all lanes of a slice; returns those of each, as (gap, level)."""
    coding = [
        Coding(coder, i, lane.tables(fitted), lane.shift, lane.part.most, lane.contexts())
        for i, lane in enumerate(lanes)
    ]
    for step in range(max(sizes)):
        passes = []
        for own, lane, size in zip(coding, lanes, sizes, strict=True):
            if step < size:
                gap, level = lane.nonzeros[step] if lane.nonzeros else (1, 1)
                passes.append(code_nonzero(own, gap, level))
        for _ in range(6):
            for one in passes:
                next(one, None)
    return [own.done for own in coding]


# ---- 5.6 Lanes in the tables


@dataclass
class LastLane:
    """What a lane is written as the difference to."""

    block_size: int = 0
    shift: int = 0
    sets: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FAMILIES, FITTED))


def position_bits(block_size: int) -> int:
    return (block_size - 1).bit_length()


def write_lane(out: BitWriter, lane: Lane, last: LastLane) -> None:
    size = lane.block.size
    same = (size, lane.shift) == (last.block_size, last.shift)
    out.put(int(same))
    if not same:
        out.put(size, 7)
        out.put(lane.shift, 6)
        last.block_size, last.shift = size, lane.shift
    if size:
        out.put(lane.block.position, position_bits(size))
    for family, number in zip(lane.families, lane.sets, strict=True):
        before = last.sets[family]
        out.put(int(number == before))
        if number != before:
            out.put(number - (number > before), 4)
        last.sets[family] = number


def read_lane(part: Part, reader: BitReader, last: LastLane, fitted: dict[str, FittedSet]) -> Lane:
    if not reader.get():
        last.block_size, last.shift = reader.get(7), reader.get(6)
        most = MAX_BLOCK if part is LOSSY else 0
        if last.block_size == 1 or last.block_size > most or last.shift > MAX_SHIFT:
            raise PayloadError("payload: blocks of an impossible size, or an impossible shift")
    lane = Lane(part, Block(last.block_size), last.shift)
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


@dataclass
class Tables:
    """What a field of tables says: the scan order of matrices, fitted sets, lanes."""

    scans: list[Scan]
    fitted: dict[str, FittedSet]
    lanes: list[Lane]


def read_tables(part: Part, data: bytes, matrices: list[Matrix], n_lanes: int) -> Tables:
    reader = BitReader(data)
    tables = Tables(read_scans(reader, matrices), {}, [])
    for family in part.families:
        fitted = read_set(reader, family)
        if fitted:
            tables.fitted[family] = fitted
    last = LastLane()
    for _ in range(n_lanes):
        tables.lanes.append(read_lane(part, reader, last, tables.fitted))
    reader.finish()
    return tables


# ---- All nonzeros, of the lossy groups and of the lossless one


def fit_sets(
    part: Part, out: BitWriter, lanes: list[Lane], codes: list[tuple[list[int], list[int]]]
) -> dict[str, Table]:
    """Writes a fitted set of each family that is better off with one; returns their tables."""
    counts: dict[str, Counts] = {f: np.zeros((N_ROWS[f], N_SYMBOLS), int) for f in part.families}
    for lane, of_lane in zip(lanes, codes, strict=True):
        for family, own in zip(lane.families, of_lane, strict=True):
            np.add.at(counts[family].reshape(-1), own, 1)
    fitted: dict[str, Table] = {}
    for family in part.families:
        chosen = fit_set(family, counts[family])
        write_set(out, chosen)
        if chosen:
            fitted[family] = chosen.table(family)
    return fitted


def encode_lanes(
    part: Part, out: BitWriter, nonzeros: Nonzeros, matrices: list[Matrix], lane_log2: int
) -> tuple[bytes, list[bytes]]:
    """The tables, of which ``out`` has what precedes the fitted sets, and the slices."""
    lanes = lanes_of(part, nonzeros, lane_sizes(len(nonzeros), lane_log2), matrices)
    codes = [codes_of(lane) for lane in lanes]
    fitted = fit_sets(part, out, lanes, codes)
    last = LastLane()
    for lane, of_lane in zip(lanes, codes, strict=True):
        gaps, levels = (
            choose_set(family, own, fitted, last.sets[family])
            for family, own in zip(lane.families, of_lane, strict=True)
        )
        lane.sets = (gaps, levels)
        write_lane(out, lane, last)

    slices = []
    for i in range(0, len(lanes), LANES_OF_SLICE):
        some = lanes[i : i + LANES_OF_SLICE]
        encoder = Encoder(len(some))
        code_slice(encoder, some, [len(lane.nonzeros) for lane in some], fitted)
        slices.append(encoder.finish())
    return out.finish(), slices


def decode_lanes(tables: Tables, slices: list[bytes], sizes: list[int], n_elems: int) -> Nonzeros:
    fitted = {family: chosen.table(family) for family, chosen in tables.fitted.items()}
    nonzeros: Nonzeros = []
    index = -1
    for i, coded_slice in enumerate(slices):
        which = slice(i * LANES_OF_SLICE, (i + 1) * LANES_OF_SLICE)
        lanes = tables.lanes[which]
        decoder = Decoder(len(lanes), coded_slice)
        for decoded in code_slice(decoder, lanes, sizes[which], fitted):
            for gap, level in decoded:
                index += gap
                if index >= n_elems:
                    raise PayloadError("payload: an index is past the end")
                nonzeros.append((index, level))
        decoder.finish()
    return nonzeros


def encode_nonzeros(
    nonzeros: Nonzeros, matrices: list[Matrix], lane_log2: int = LANE_LOG2
) -> tuple[bytes, list[bytes]]:
    """The field ``tables`` and the slices of the lossy groups' nonzeros."""
    if not nonzeros:
        return b"", []
    out = BitWriter()
    matrices = [replace(m) for m in matrices]
    nonzeros = scan(nonzeros, matrices, out)
    return encode_lanes(LOSSY, out, nonzeros, matrices, lane_log2)


def decode_nonzeros(
    data: bytes, slices: list[bytes], sizes: list[int], matrices: list[Matrix], n_elems: int
) -> Nonzeros:
    """The nonzeros of a payload whose lanes have these sizes; ``data`` is the field ``tables``."""
    if not sizes:
        return []
    tables = read_tables(LOSSY, data, matrices, len(sizes))
    nonzeros = decode_lanes(tables, slices, sizes, n_elems)
    return undo_scans(nonzeros, matrices, tables.scans)


def encode_changes(changes: Nonzeros, lane_log2: int) -> tuple[bytes, list[bytes]]:
    """The field ``change_tables`` and the slices of the lossless group's changes."""
    return encode_lanes(LOSSLESS, BitWriter(), changes, [], lane_log2) if changes else (b"", [])


def decode_changes(data: bytes, slices: list[bytes], sizes: list[int], n_elems: int) -> Nonzeros:
    if not sizes:
        return []
    return decode_lanes(read_tables(LOSSLESS, data, [], len(sizes)), slices, sizes, n_elems)
