"""Bytes with different contexts of the entropy coder: the format's, earlier and rejected ones.

    python -m benchmarks.contexts fedavg_cnn.npz snapshots/*.npz

``benchmarks.snapshots`` makes the snapshots other than ``fedavg_cnn.npz``. The input of an update
is its float32 tensors of two or more dimensions, with exact top-k and levels with step =
threshold / 0.55 (docs/format.md, section 8). A binary decision costs -log2(p) bits, with p from the
integer arithmetic of section 5.2. Contexts depend only on earlier symbols of the slice.
"""

from __future__ import annotations

import argparse
import math
import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from tqdm import tqdm

import resfed_codec as rfc
from benchmarks.common import Model, is_matrix, load_snapshots, updates_in, write_results
from resfed_codec.reference import contexts
from resfed_codec.reference.slices import Block, Period
from resfed_codec.tensors.layout import block_sizes

STEP_RATIO = 0.55
ONE_SLICE = 62  # slice_log2 that puts a model into one slice
RATES = (4, 8, 16)  # adaptation rates of activity, as 1/rate; the format has 8
CLASSES = (8, 24, 56)  # lower bounds of the classes of activity
FORMER_CLASSES = (4, 8, 16, 24, 40, 56, 80)
COST = [math.inf] + [14 - math.log2(p) for p in range(1, 2**14)]  # bits, by p in 1/2^14
Key: TypeAlias = int | tuple[int, ...]
State: TypeAlias = tuple[int, int, int]  # fast, slow, count


class Nonzero(NamedTuple):
    """A nonzero and its history (section 5.3), with more fields than the format uses."""

    gap: int
    e: int  # log2(gap)
    level: int  # with the sign
    last_e: int
    e_before: int  # e of the last nonzero but one
    activities: tuple[int, ...]  # at RATES
    last_sign: int  # 0 none, 1 negative, 2 positive
    sign_before: int  # of the last nonzero but one
    last_level: int
    level_before: int
    left: int | None  # elements from the last nonzero to the end of its block; 0: a new block
    likely: int  # the gap that the period predicts; 0: none
    above: int  # level of the nonzero above, with the sign; 0: none
    repeats: int
    agreed: int

    def gap_key(self, i: int, rate: int = 8, classes: tuple[int, ...] = CLASSES) -> Key:
        a = bisect_right(classes, self.activities[RATES.index(rate)])
        if i < 3 and self.left is not None:
            return contexts.BLOCK_GAP(a, min(self.left, 8), i)
        if classes == CLASSES:
            return contexts.GAP(min(self.last_e, 2), a, min(i, 15))
        return (1, min(self.last_e, 2), a, min(i, 15))

    def gap_key_in_block(self, i: int) -> Key:
        """Also uses the size class of the last gap in blocks."""
        if self.left is None or i >= 3:
            return self.gap_key(i)
        a = bisect_right(CLASSES, self.activities[RATES.index(8)])
        return (9, min(self.last_e, 2), a, min(self.left, 8), i)

    def gap_key_at_begin(self, i: int) -> Key:
        """Uses only whether a block begins."""
        if self.left is None or i >= 3:
            return self.gap_key(i)
        a = bisect_right(CLASSES, self.activities[RATES.index(8)])
        return (10, a, int(self.left == 0), i)

    def suggested(self, i: int) -> Key:
        """Predicts the decision "e > i" from the likely gap, if that was right recently."""
        often = bisect_right((1, 3, 8), self.repeats)
        if not self.likely or not often:
            return self.gap_key(i)
        e = self.likely.bit_length() - 1
        how = max(-2, min(e - i, 2))
        return (2, how, int(self.likely == 1 << e), often)

    def mantissa_key(self, bit: int) -> Key | None:
        if bit == self.e - 2:
            return contexts.GAP_SECOND(min(self.e, 24) - 2, self.gap >> (bit + 1) & 1)
        return self.first_mantissa_bit(bit)

    def suggested_mantissa(self, bit: int) -> Key | None:
        often = bisect_right((1, 3, 8), self.repeats)
        if self.likely and often and self.likely >> (bit + 1) == self.gap >> (bit + 1):
            return (3, int(bit == self.e - 1), self.likely >> bit & 1, often)
        return self.mantissa_key(bit)

    def first_mantissa_bit(self, bit: int) -> Key | None:
        return contexts.GAP_FIRST(min(self.e, 24) - 1) if bit == self.e - 1 else None

    def sign_key(self) -> Key:
        if self.above:
            return contexts.AGREE(self.agreed)
        return contexts.SIGN(self.last_sign, min(self.e, 2))

    def sign_key_of_two(self) -> Key:
        if self.above:
            return self.sign_key()
        return (5, self.last_sign, self.sign_before, min(self.e, 2))

    def level_key(self, i: int) -> Key:
        if self.above:
            return contexts.LEVEL_ABOVE(min(abs(self.above), 7) - 1, i)
        return self.level_key_alone(i)

    def level_key_alone(self, i: int, cap: int = 7) -> Key:
        return contexts.LEVEL(min(self.last_level, cap) - 1, min(self.e, 2), i)

    def level_key_of_two(self, i: int) -> Key:
        if self.above:
            return self.level_key(i)
        mean = (self.last_level + self.level_before) // 2
        return contexts.LEVEL(min(mean, 7) - 1, min(self.e, 2), i)

    def level_key_capped(self, i: int) -> Key:
        return self.level_key(i) if self.above else self.level_key_alone(i, cap=3)

    def repeat_key(self) -> Key:
        often = bisect_right((1, 3, 8), self.repeats)
        return contexts.REPEAT(often, min(self.likely.bit_length() - 1, 5), self.agreed)


@dataclass(frozen=True)
class Variant:
    """A way to code nonzeros. The defaults are the format's, except for its initial states."""

    slice_log2: int = 11
    period: str = "if it pays"  # or "never", "always"
    blocks: str = "if it pays"  # or "never", "always", "of kernels"
    asks: bool = True  # codes whether the likely gap is right as a separate decision
    gap: Callable[[Nonzero, int], Key] = Nonzero.gap_key
    mantissa: Callable[[Nonzero, int], Key | None] = Nonzero.mantissa_key
    sign: Callable[[Nonzero], Key] = Nonzero.sign_key
    level: Callable[[Nonzero, int], Key] = Nonzero.level_key
    rates: tuple[int, int] = (16, 128)
    trained: bool = False


FORMER = Variant(
    period="never",
    blocks="never",
    gap=partial(Nonzero.gap_key, classes=FORMER_CLASSES),
    mantissa=Nonzero.first_mantissa_bit,
)
DRAFT = replace(
    FORMER,
    gap=lambda x, i: (6, min(x.last_e, 6), min(x.e_before, 6), i),
    level=Nonzero.level_key_capped,
)
BASE, TRAINED = "format", "format, trained initial states"
PAYLOAD = "the payload's slices: that by rANS"
VARIANTS = {
    BASE: Variant(),
    "before periods and blocks, 8 classes of activity, one mantissa bit": FORMER,
    "first draft: the last two gaps, no activity": DRAFT,
    "no period": Variant(period="never"),
    "the period always told": Variant(period="always"),
    "likely gap as context, not as a question": Variant(
        asks=False, gap=Nonzero.suggested, mantissa=Nonzero.suggested_mantissa
    ),
    "level without the one above": Variant(level=Nonzero.level_key_alone),
    "no blocks": Variant(blocks="never"),
    "blocks always told": Variant(blocks="always"),
    "blocks in kernels, not in the layer behind": Variant(blocks="of kernels"),
    "place in the block: whether it begins": Variant(gap=Nonzero.gap_key_at_begin),
    "place in the block and the last gap": Variant(gap=Nonzero.gap_key_in_block),
    "8 classes of activity, not 4": Variant(gap=partial(Nonzero.gap_key, classes=FORMER_CLASSES)),
    "3 classes of activity, not 4": Variant(gap=partial(Nonzero.gap_key, classes=(12, 40))),
    "activity at rate 1/4, not 1/8": Variant(gap=partial(Nonzero.gap_key, rate=4)),
    "activity at rate 1/16, not 1/8": Variant(gap=partial(Nonzero.gap_key, rate=16)),
    "+ the gap before the last": Variant(
        gap=lambda x, i: (7, x.gap_key(i), min(x.e_before, 1))  # type: ignore[arg-type,return-value]
    ),
    "second bit of the gap's mantissa raw": Variant(mantissa=Nonzero.first_mantissa_bit),
    "+ the sign before the last": Variant(sign=Nonzero.sign_key_of_two),
    "mean of the last two levels, not the last": Variant(level=Nonzero.level_key_of_two),
    "last level capped at 3, not 7": Variant(level=Nonzero.level_key_capped),
    "probabilities at rates 1/12 and 1/128": Variant(rates=(12, 128)),
    "probabilities at rates 1/16 and 1/64": Variant(rates=(16, 64)),
    "probabilities at rates 1/32 and 1/256": Variant(rates=(32, 256)),
    "probabilities at rate 1/32 alone": Variant(rates=(32, 32)),
    "slices of 512": Variant(9),
    "slices of 4,096": Variant(12),
    "one slice": Variant(ONE_SLICE),
    TRAINED: Variant(trained=True),
}
NOTE = f"""Gain in per cent of bytes of ideal code against "{BASE}": the contexts of docs/format.md
5.3, slices of about 2,048 nonzeros, all contexts from probability 1/2 and count 0; what follows is
a change to that. Each column is the mean over a file's updates, one up and one down, and over
sparsities 0.95, 0.99 and 0.9975; of "loop" files, where the codec was in the loop with
error feedback up, over the updates at the loop's own sparsity. The last
line is the length in a real payload."""


def pay(table: dict[Key, State], rates: tuple[int, int], key: Key, bit: int) -> float:
    """Bits of one adaptively coded decision. Adds new contexts to the table."""
    fast, slow, count = table.get(key, (2**15, 2**15, 0))
    p = min(max((fast + slow) // 8, 1), 2**14 - 1)
    r_fast, r_slow = (max(131072 // (2 * count + 3), 65536 // r) for r in rates)
    fast += (65535 - fast) * r_fast // 65536 if bit else -(fast * r_fast // 65536)
    slow += (65535 - slow) * r_slow // 65536 if bit else -(slow * r_slow // 65536)
    table[key] = fast, slow, min(count + 1, 127)
    return COST[p if bit else 2**14 - p]


class Slice(NamedTuple):
    period: int
    block: int
    nonzeros: list[Nonzero]


def code_length(slices: list[Slice], variant: Variant) -> dict[str, float]:
    """Bytes for gaps (periods included), signs and levels."""
    gaps = signs = levels = 0.0
    states = contexts.SLICE.states if variant.trained else []
    for period, block, nonzeros in slices:
        table: dict[Key, State] = {i: (256 * p, 256 * p, n) for i, (p, n) in enumerate(states)}
        code_bit = partial(pay, table, variant.rates)
        if variant.period != "never":
            gaps += code_bit(contexts.PERIOD(), int(period > 0)) + (
                4 + period.bit_length() if period else 0
            )
        if variant.blocks != "never" and not period:
            gaps += code_bit(contexts.BLOCK(), int(block > 0)) + (
                6 + (block - 1).bit_length() if block else 0
            )
        for x in nonzeros:
            repeats = variant.asks and x.likely == x.gap
            if variant.asks and x.likely:
                gaps += code_bit(x.repeat_key(), int(repeats))
            if not repeats:
                for i in range(x.e + 1):
                    gaps += code_bit(variant.gap(x, i), int(i < x.e))
                for i in reversed(range(x.e)):
                    key = variant.mantissa(x, i)
                    gaps += 1 if key is None else code_bit(key, x.gap >> i & 1)
            signs += code_bit(variant.sign(x), int((x.level > 0) == (x.above >= 0)))
            level = abs(x.level)
            for i in range(min(level, 14)):
                levels += code_bit(variant.level(x, i), int(level > i + 1))
            if level > 14:
                size = (level - 14).bit_length() - 1
                levels += size + sum(
                    code_bit(contexts.ESCAPE(min(i, 23)), int(i < size)) for i in range(size + 1)
                )
    total = gaps + signs + levels
    return {"bytes": total / 8, "gap": gaps / 8, "sign": signs / 8, "level": levels / 8}


def choose(state: Model, reference: Model, sparsity: float) -> tuple[list[int], list[int]]:
    """Indices and signed levels of the selected elements, section 8."""
    residual = np.concatenate([(state[name] - reference[name]).ravel() for name in reference])
    magnitude = np.abs(residual)
    k = math.ceil(residual.size * (1 - Fraction(repr(sparsity))))
    index = np.sort(np.argsort(-magnitude, kind="stable")[:k])
    index = index[magnitude[index] > 0]
    sent = magnitude[index]
    threshold, span = float(sent.min()), float(sent.max() - sent.min())
    step = np.float32(max(threshold / STEP_RATIO, span / 2**22))
    level = np.floor((sent - sent.min()) / step).astype(np.int64) + 1
    return index.tolist(), np.where(residual[index] > 0, level, -level).tolist()


def deal(
    index: list[int], level: list[int], model: Model, log2: int, period_when: str, blocks_when: str
) -> list[Slice]:
    """Slices of about 2^log2 nonzeros, section 5."""
    shapes = [value.shape for value in model.values()]
    starts = np.cumsum([0, *map(math.prod, shapes)]).tolist()
    blocks = block_sizes([value.shape for value in model.values()])
    n_slices = max(1, len(index) + (1 << log2 - 1) >> log2)
    slices: list[Slice] = []
    last = -1
    for part in np.array_split(np.arange(len(index)), n_slices):
        begin, end = int(part[0]), int(part[-1]) + 1
        middle = bisect_right(starts, index[begin + (end - begin) // 2]) - 1
        length = math.prod(shapes[middle][1:])
        own = list(zip(index[begin:end], level[begin:end], strict=True))
        tells = period_when == "always" or (period_when != "never" and Period(length).pays(own))
        above = Period(length if tells else 0)
        block = Block(blocks[middle], 0, starts[middle])
        block_pays = 2 <= block.size <= 64 if blocks_when == "always" else block.pays(own)
        if tells or blocks_when == "never" or not block_pays:
            block.size = 0
        if blocks_when == "of kernels" and len(shapes[middle]) == 2:
            block.size = 0
        slices.append(Slice(above.length, block.size, []))
        history = (0, 0, (0,) * len(RATES), 0, 0, 1, 1)
        repeats = agreed = 0
        for i, signed in own:
            gap, e = i - last, (i - last).bit_length() - 1
            left = block.left(last + 1) if block.size and slices[-1].nonzeros else None
            likely, up = above.gap(last), above.level(i)
            slices[-1].nonzeros.append(
                Nonzero(gap, e, signed, *history, left, likely, up, repeats, agreed)
            )
            if likely:
                repeats = min(repeats + 1, 15) if gap == likely else repeats // 2
            if up:
                agreed = min(agreed + 1, 3) if (up > 0) == (signed > 0) else 0
            above.add(i, signed)
            a = tuple(
                a - a // r + 16 // r * min(e, 15) for a, r in zip(history[2], RATES, strict=True)
            )
            sign = 1 + int(signed > 0)
            history = (e, history[0], a, sign, history[3], abs(signed), history[5])
            last = i
    return slices


def measure(state: Model, reference: Model, sparsity: float) -> dict[str, dict[str, float]]:
    """Bytes of every variant by name, and of the slices of a real payload."""
    index, level = choose(state, reference, sparsity)
    ways = {(v.slice_log2, v.period, v.blocks) for v in VARIANTS.values()}
    dealt = {way: deal(index, level, reference, *way) for way in ways}
    found = {
        name: code_length(dealt[v.slice_log2, v.period, v.blocks], v)
        for name, v in VARIANTS.items()
    }
    info = rfc.inspect(rfc.encode(state, reference, sparsity=sparsity, step=STEP_RATIO))
    if info.n_nonzero != len(index) or info.lossy_bytes < found[TRAINED]["bytes"]:
        raise AssertionError("the payload does not hold what was counted here")
    slices = dealt[11, "if it pays", "if it pays"]
    found[PAYLOAD] = {
        "bytes": info.lossy_bytes,
        "nonzeros": len(index),
        "slices": len(slices),
        "slices with a period": sum(s.period > 0 for s in slices),
        "slices with blocks": sum(s.block > 0 for s in slices),
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("snapshots", type=Path, nargs="+", help=".npz of prefix|name arrays")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.95, 0.99, 0.9975])
    args = parser.parse_args()
    details: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for path in tqdm(args.snapshots):
        models = load_snapshots(path)
        pairs = updates_in(models)
        up = [pair for pair in pairs if pair[1].startswith("l")]
        down = [pair for pair in pairs if not pair[1].startswith("l")]
        loop = re.search(r"_loop_([0-9.]+)$", path.stem)
        details[path.stem] = {}
        for base, new in (up[-2], down[-2]):
            names = [n for n, v in sorted(models[base].items()) if is_matrix(v) and v.dtype == "f4"]
            state, reference = ({n: models[p][n] for n in names} for p in (new, base))
            for sparsity in [float(loop[1])] if loop else args.sparsities:
                found = measure(state, reference, sparsity)
                details[path.stem][f"{base}:{new} {sparsity:g}"] = found
    rows: list[dict[str, Any]] = []
    for name in [*VARIANTS, PAYLOAD]:
        columns = {}
        for stem, updates in details.items():
            gains = [100 - 100 * d[name]["bytes"] / d[BASE]["bytes"] for d in updates.values()]
            columns[stem] = sum(gains) / len(gains)
        columns["mean"] = sum(columns.values()) / len(columns)
        rows.append({"contexts": name, **{stem: f"{x:+.2f}" for stem, x in columns.items()}})
    print(write_results("contexts", "Contexts of the entropy coder", rows, NOTE))


if __name__ == "__main__":
    main()
