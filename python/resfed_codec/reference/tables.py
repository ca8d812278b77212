"""Section 5.6 of docs/format.md, and what section 8 says of it: tables of frequencies."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from resfed_codec.reference.bits import BitReader, BitWriter
from resfed_codec.reference.rans import FREQUENCY_BITS, Row
from resfed_codec.reference.symbols import log2
from resfed_codec.reference.trained_tables import TRAINED

N_SYMBOLS = 32
N_TRAINED = 16
FITTED = 16
"""The number of the payload's own set."""

N_ROWS = {"gaps": 32, "block_gaps": 72, "levels": 72, "block_levels": 72, "change_gaps": 32}
FAMILIES = tuple(N_ROWS)
DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijkl"
QUARTER_OCTAVES = (65536, 77936, 92682, 110218)
MOST_RATIO = 14

Table: TypeAlias = "list[Row]"
"""The rows of one set."""

Counts: TypeAlias = "NDArray[np.int64]"
"""How often each symbol occurs in each row of a family: shape (n_rows, 32)."""


# ---- Integers that stand for logarithms and code lengths


def log2_in_32nds(number: int) -> int:
    """32 times the logarithm of a number of at least 1, rounded."""
    result = log2(number)
    x = number << 31 >> result
    for _ in range(6):
        x = x * x >> 31
        bit = x >> 32
        x >>= bit
        result = 2 * result + bit
    return (result + 1) // 2


@cache
def code_lengths() -> NDArray[np.int64]:
    """By frequency, what a symbol costs, in 1/32 bit; shape (4097,)."""
    return np.array(
        [0] + [32 * FREQUENCY_BITS - log2_in_32nds(f) for f in range(1, 2**FREQUENCY_BITS + 1)]
    )


def normalized(weights: list[int]) -> Row:
    """Frequencies in proportion to weights."""
    row = [max(1, (w << FREQUENCY_BITS) // sum(weights)) for w in weights]
    row[row.index(max(row))] += 2**FREQUENCY_BITS - sum(row)
    return tuple(row)


# ---- Trained sets


def trained_row(digits: str) -> Row:
    quarters = [DIGITS.index(digit) for digit in digits]
    return normalized([QUARTER_OCTAVES[q % 4] << (q // 4) for q in quarters])


@cache
def trained(family: str) -> list[Table]:
    return [[trained_row(row) for row in rows] for rows in TRAINED[family]]


@cache
def trained_costs(family: str) -> NDArray[np.int64]:
    """Code lengths of all symbols under all sets: shape (16, n_rows, 32)."""
    costs: NDArray[np.int64] = code_lengths()[np.array(trained(family))]
    return costs


# ---- Fitted sets


@dataclass
class FittedRow:
    """The row of set ``source``, with weights multiplied by 2**(ratio / 2)."""

    source: int
    ratios: list[int] = field(default_factory=list)


@dataclass
class FittedSet:
    base: int
    rows: list[FittedRow]

    def table(self, family: str) -> Table:
        return [
            scaled(trained(family)[row.source][i], row.ratios) for i, row in enumerate(self.rows)
        ]


def weight_at(ratio: int) -> int:
    """2**(ratio / 2) in 2**-23."""
    steps = ratio + MOST_RATIO
    return QUARTER_OCTAVES[2 * (steps % 2)] << (steps // 2)


def weights_of(source: Row, ratios: list[int]) -> list[int]:
    padded = ratios + [0] * (N_SYMBOLS - len(ratios))
    return [f * weight_at(ratio) for f, ratio in zip(source, padded, strict=True)]


def scaled(source: Row, ratios: list[int]) -> Row:
    return normalized(weights_of(source, ratios)) if ratios else source


def write_set(out: BitWriter, fitted: FittedSet | None) -> None:
    out.put(int(fitted is not None))
    if fitted is None:
        return
    out.put(fitted.base, 4)
    for row in fitted.rows:
        same = row.source == fitted.base
        out.put(int(not same or bool(row.ratios)))
        if same and not row.ratios:
            continue
        out.put(int(same))
        if not same:
            out.put(row.source, 4)
            out.put(int(bool(row.ratios)))
        if row.ratios:
            out.put(len(row.ratios) - 1, 5)
        for ratio in row.ratios:
            out.put(int(ratio != 0))
            if ratio:
                out.put(int(ratio < 0))
                out.put_gamma(abs(ratio))


def read_set(reader: BitReader, family: str) -> FittedSet | None:
    if not reader.get():
        return None
    fitted = FittedSet(reader.get(4), [])
    for _ in range(N_ROWS[family]):
        row = FittedRow(fitted.base)
        fitted.rows.append(row)
        if not reader.get():
            continue
        if not reader.get():
            row.source = reader.get(4)
            if not reader.get():
                continue
        for _ in range(reader.get(5) + 1):
            sign = 0 if not reader.get() else -1 if reader.get() else 1
            row.ratios.append(sign * reader.get_gamma(MOST_RATIO) if sign else 0)
    return fitted


# ---- Fitting, section 8


def ratio_bits(ratio: int) -> int:
    return 3 + 2 * log2(abs(ratio)) if ratio else 1


def fit_ratios(counts: list[int], source: Row) -> list[int]:
    """Ratios to a trained row, each of which must pay; without the zeros at the end."""
    n = sum(counts)
    shift = max(0, n.bit_length() - 20)
    wanted = [
        (log2_in_32nds(c) if c else -64) - log2_in_32nds(n) + int(code_lengths()[f])
        for c, f in zip(counts, source, strict=True)
    ]
    ratios = [0] * N_SYMBOLS
    for _ in range(2):
        total = sum(weights_of(source, ratios))
        log_total = log2_in_32nds(total) - 32 * (23 + FREQUENCY_BITS)
        for s, (count, f) in enumerate(zip(counts, source, strict=True)):
            ratio = min(max((wanted[s] + log_total + 8) // 16, -MOST_RATIO), MOST_RATIO)
            share = (f << 35) // total
            growth = (weight_at(ratio) - 2**23) * 11819 >> 23
            gain = (count >> shift) * 16 * ratio - ((n >> shift) * share * growth >> 20)
            pays = ratio != 0 and gain << shift > 32 * (ratio_bits(ratio) - 1) + 16
            ratios[s] = ratio if pays else 0
    while ratios and ratios[-1] == 0:
        ratios.pop()
    return ratios


def fit_set(family: str, counts: Counts) -> FittedSet | None:
    """The set that is cheapest with what it costs itself; None if it does not pay."""
    costs = (trained_costs(family) * counts).sum(axis=2)  # by set and row
    base = int(costs.sum(axis=1).argmin())
    fitted = FittedSet(base, [])
    gain = -32 * (5 + N_ROWS[family])
    for r in range(N_ROWS[family]):
        best, least = FittedRow(base), int(costs[base, r])
        if costs[base, r] > 0:
            own = counts[r].tolist()
            for source in dict.fromkeys([base, int(costs[:, r].argmin())]):
                trained_row = trained(family)[source][r]
                ratios = fit_ratios(own, trained_row) if sum(own) >= 16 else []
                for row in (FittedRow(source), FittedRow(source, ratios)):
                    n_bits = (2 if source == base else 6) + sum(map(ratio_bits, row.ratios))
                    n_bits += 5 if row.ratios else 0
                    frequencies = scaled(trained_row, row.ratios)
                    cost = int((counts[r] * code_lengths()[list(frequencies)]).sum()) + 32 * n_bits
                    if cost < least:
                        best, least = row, cost
        fitted.rows.append(best)
        gain += int(costs[base, r]) - least
    return fitted if gain > 0 else None
