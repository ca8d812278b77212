"""Section 5.1 of docs/format.md, and what section 8 says of it: the scan order of matrices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from resfed_codec.errors import PayloadError
from resfed_codec.reference.bits import BitReader, BitWriter
from resfed_codec.reference.symbols import Nonzeros, log2
from resfed_codec.reference.tables import log2_in_32nds as lg


@dataclass
class Matrix:
    """A tensor of the matrix group that is not empty.

    Attributes:
        begin: Index of its first element.
        size: How many elements it has.
        row_length: Of a tensor of two dimensions; 0 of others, which have no scan order.
        block: Elements that tend to be sent together, for encoders; 0: none.
    """

    begin: int
    size: int
    row_length: int = 0
    block: int = 0


Cells: TypeAlias = "dict[tuple[int, int], int]"
"""The nonzeros of a matrix, in any order: (row, column) and level; or (line, place) and level."""


@dataclass
class Scan:
    """The scan order of a matrix.

    Attributes:
        shape: Rows and columns of the matrix.
        columns: Lines are columns.
        rows: Numbers of the kept rows; None: all are.
        cols: The same of columns.
        flips: Whether signs are flipped, by place in a line; None: nowhere.
    """

    shape: tuple[int, int]
    columns: bool = False
    rows: list[int] | None = None
    cols: list[int] | None = None
    flips: list[bool] | None = None

    def kept(self) -> tuple[list[int], list[int]]:
        n_rows, n_cols = self.shape
        return (
            list(range(n_rows)) if self.rows is None else self.rows,
            list(range(n_cols)) if self.cols is None else self.cols,
        )

    @property
    def lines(self) -> tuple[int, int]:
        """How many lines there are, and how many places each has."""
        rows, cols = self.kept()
        return (len(cols), len(rows)) if self.columns else (len(rows), len(cols))

    def sign(self, place: int) -> int:
        return -1 if self.flips is not None and self.flips[place] else 1

    def apply(self, cells: Cells) -> Cells:
        rows, cols = ({number: i for i, number in enumerate(kept)} for kept in self.kept())
        out = {}
        for (row, col), level in cells.items():
            line, place = rows[row], cols[col]
            if self.columns:
                line, place = place, line
            out[line, place] = level * self.sign(place)
        return out

    def undo(self, cells: Cells) -> Cells:
        rows, cols = self.kept()
        out = {}
        for (line, place), level in cells.items():
            row, col = (place, line) if self.columns else (line, place)
            out[rows[row], cols[col]] = level * self.sign(place)
        return out


# ---- Choosing


def kept_numbers(numbers: set[int], n: int, n_nonzeros: int) -> list[int] | None:
    """The rows or columns in which something is sent, if leaving out the others pays."""
    saved = n_nonzeros * (lg(n) - lg(len(numbers)))
    return sorted(numbers) if saved > 32 * n and n <= 2**32 else None


def gap_bits(cells: Cells, order: Scan) -> int:
    """The sum of log2 of the gaps between nonzeros."""
    length = order.lines[1]
    indices = sorted(line * length + place for line, place in order.apply(cells))
    return sum(log2(after - before) for before, after in pairwise(indices))


def rows_shorten_gaps(cells: Cells, scan: Scan) -> bool:
    """Whether leaving out the scan's rows saves more bits of gaps along rows than it costs."""
    plain, left = Scan(scan.shape), Scan(scan.shape, rows=scan.rows)
    return gap_bits(cells, plain) - gap_bits(cells, left) > scan.shape[0]


def cols_shorten_gaps(cells: Cells, scan: Scan) -> bool:
    """The same of its columns, among its rows."""
    plain, left = (Scan(scan.shape, rows=scan.rows, cols=cols) for cols in (None, scan.cols))
    return gap_bits(cells, plain) - gap_bits(cells, left) > scan.shape[1]


def agreement(cells: Cells) -> dict[int, list[int]]:
    """By place in a line, how many nonzeros have the sign of the one before and how many not."""
    out: dict[int, list[int]] = {}
    for (line, place), level in cells.items():
        before = cells.get((line, place - 1))
        if before is not None:
            out.setdefault(place, [0, 0])[(before > 0) != (level > 0)] += 1
    return out


def same_sign(cells: Cells, down: int, right: int) -> int:
    """Nonzeros that have the sign of such a neighbour."""
    return sum(
        1
        for (row, col), level in cells.items()
        if cells.get((row - down, col - right), 0) * level > 0
    )


def choose_flips(cells: Cells, length: int) -> list[bool] | None:
    """Flips that make the signs of neighbours in a line agree, if they pay."""
    agree = agreement(cells)
    sums = {place: same - other for place, (same, other) in agree.items()}
    more = sum(a for a in sums.values() if a > 0)
    less = sum(-a for a in sums.values() if a < 0)
    pairs = sum(map(sum, agree.values()))
    if not more * less or lg(more) + lg(less) + 64 <= lg(pairs) + lg(length):
        return None
    flips = [False] * length
    for place in range(1, length):
        flips[place] = flips[place - 1] != (sums.get(place, 0) < 0)
    return flips


def choose_scan(cells: Cells, shape: tuple[int, int]) -> Scan:
    scan = Scan(shape)
    if not cells:
        return scan
    scan.rows = kept_numbers({row for row, _ in cells}, shape[0], len(cells))
    scan.cols = kept_numbers({col for _, col in cells}, shape[1], len(cells))
    if scan.cols is not None and not cols_shorten_gaps(cells, scan):
        scan.cols = None
    left = same_sign(scan.apply(cells), 0, 1)
    above = same_sign(scan.apply(cells), 1, 0)
    scan.columns = 16 * (above - left) > len(cells)
    if scan.rows is not None and not scan.columns and not rows_shorten_gaps(cells, scan):
        scan.rows = None
    scan.flips = choose_flips(scan.apply(cells), scan.lines[1])
    return scan


# ---- Writing and reading


def write_kept(out: BitWriter, kept: list[int] | None, n: int) -> None:
    out.put(int(kept is not None))
    if kept is not None:
        numbers = set(kept)
        out.put_all(i in numbers for i in range(n))


def read_kept(reader: BitReader, n: int) -> list[int] | None:
    if not reader.get():
        return None
    kept = [i for i, here in enumerate(reader.get_all(n)) if here]
    if not kept:
        raise PayloadError("payload: a matrix of which nothing is kept")
    return kept


def write_scan(out: BitWriter, scan: Scan) -> None:
    plain = scan == Scan(scan.shape)
    out.put(int(not plain))
    if plain:
        return
    out.put(int(scan.columns))
    write_kept(out, scan.rows, scan.shape[0])
    write_kept(out, scan.cols, scan.shape[1])
    out.put(int(scan.flips is not None))
    out.put_all(scan.flips or [])


def read_scan(reader: BitReader, shape: tuple[int, int]) -> Scan:
    scan = Scan(shape)
    if not reader.get():
        return scan
    scan.columns = reader.get() == 1
    scan.rows = read_kept(reader, shape[0])
    scan.cols = read_kept(reader, shape[1])
    if reader.get():
        scan.flips = reader.get_all(scan.lines[1])
    return scan


# ---- All matrices


def of_two_dimensions(matrices: list[Matrix]) -> Iterator[tuple[Matrix, tuple[int, int]]]:
    for m in matrices:
        if m.row_length:
            yield m, (m.size // m.row_length, m.row_length)


def cells_of(nonzeros: Nonzeros, m: Matrix, width: int) -> Cells:
    """The nonzeros between the matrix's first and last element, by lines of this width."""
    return {
        divmod(index - m.begin, width): level
        for index, level in nonzeros
        if 0 <= index - m.begin < m.size
    }


def replaced(nonzeros: Nonzeros, m: Matrix, cells: Cells, width: int) -> Nonzeros:
    """Nonzeros with those of one matrix replaced, in ascending order."""
    others = [(index, level) for index, level in nonzeros if not 0 <= index - m.begin < m.size]
    own = [(m.begin + line * width + place, level) for (line, place), level in cells.items()]
    return sorted(others + own)


def scan(nonzeros: Nonzeros, matrices: list[Matrix], out: BitWriter) -> Nonzeros:
    """Brings nonzeros into scan order, and writes which it is.

    Takes the blocks away from matrices where they do not lie along a line any more.
    """
    for m, shape in of_two_dimensions(matrices):
        cells = cells_of(nonzeros, m, m.row_length)
        chosen = choose_scan(cells, shape)
        write_scan(out, chosen)
        nonzeros = replaced(nonzeros, m, chosen.apply(cells), chosen.lines[1])
        if chosen.columns or chosen.cols is not None:
            m.block = 0
    return nonzeros


def read_scans(reader: BitReader, matrices: list[Matrix]) -> list[Scan]:
    return [read_scan(reader, shape) for _, shape in of_two_dimensions(matrices)]


def undo_scans(nonzeros: Nonzeros, matrices: list[Matrix], scans: list[Scan]) -> Nonzeros:
    """Brings nonzeros back into ascending order of their elements."""
    for (m, _), own in zip(of_two_dimensions(matrices), scans, strict=True):
        n_lines, length = own.lines
        cells = cells_of(nonzeros, m, length)
        if any(line >= n_lines for line, _ in cells):
            raise PayloadError("payload: a nonzero in a row or column that is left out")
        nonzeros = replaced(nonzeros, m, own.undo(cells), m.row_length)
    return nonzeros
