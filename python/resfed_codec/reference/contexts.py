"""Section 5.5 of docs/format.md: what a lane's nonzeros so far say of the next one."""

from __future__ import annotations

from dataclasses import dataclass, field

from resfed_codec.reference.symbols import SIGN_CHANGED, log2

TYPICAL_LEVELS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 13, 19, 27, 39, 55, 63, 63)


def reached(number: int, thresholds: tuple[int, ...]) -> int:
    return sum(number >= threshold for threshold in thresholds)


@dataclass
class Block:
    """Blocks of a lane: their size (0: none) and the position of the lane's first nonzero."""

    size: int = 0
    position: int = 0


@dataclass
class Contexts:
    """Of a lossy lane."""

    block: Block = field(default_factory=Block)
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
        self.level += 8 * TYPICAL_LEVELS[symbol % SIGN_CHANGED] - self.level // 2
        self.changes += (32 if symbol >= SIGN_CHANGED else 0) - self.changes // 8


@dataclass
class ChangeContexts(Contexts):
    """Of a lossless lane, which has no blocks."""

    n_gaps: int = 0
    average: int = 0  # of gap_log2, over about 32 gaps, in 1/512

    def gap_row(self) -> int:
        steps = (*range(2, 17, 2), *range(20, 81, 4), *range(88, 129, 8), 144)
        return reached(self.average // 32, steps)

    def add_gap(self, gap: int) -> None:
        self.gap_log2 = min(log2(gap), 15)
        self.n_gaps = min(self.n_gaps + 1, 32)
        self.average += 512 * self.gap_log2 - self.average >> max(log2(self.n_gaps), 1)
