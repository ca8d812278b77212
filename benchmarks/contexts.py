"""What contexts of the entropy coder cost: the format's, the first draft's, ideas not taken.

    python -m benchmarks.contexts --snapshots fedavg_cnn.npz

Takes, per pair of models, the float32 tensors of two or more dimensions, exact top-k, and levels
with step = threshold / 0.55 (docs/format.md, section 8). Every variant pays -log2(p) bits for each
binary decision, with p from the integer arithmetic of section 5.2. Only what stands earlier in a
slice serves as context, in the row above too: rows are those of (shape[0], everything else).
"""

from __future__ import annotations

import argparse
import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

import resfed_codec as rfc
from benchmarks.common import RESULTS, Model, is_matrix, load_snapshots, write_results
from resfed_codec.initial_states import SLICE_STATES

STEP_RATIO = 0.55
ONE_SLICE = 62  # slice_log2 of a slice that no model fills
RATES = (4, 8, 16)  # of activity, as 1/rate; the format's is 8
COST = [math.inf] + [14 - math.log2(p) for p in range(1, 2**14)]  # bits, by p in 1/2^14
Key: TypeAlias = int | tuple[int, ...]
State: TypeAlias = tuple[int, int, int]  # fast, slow, count


class Nonzero(NamedTuple):
    """A nonzero and the history before it, section 5.3, with more than the format uses."""

    gap: int
    e: int  # log2(gap)
    level: int  # with the sign
    last_e: int
    e_before: int  # e of the last nonzero but one
    activities: tuple[int, ...]  # at RATES
    last_sign: int  # 0 none, 1 negative, 2 positive
    last_level: int
    kernel: int  # position in its kernel of the element after the last nonzero
    above_gap: int  # what the gap is if the row above repeats itself from there on; 0: unknown
    above_sign: int  # of the element above this one; 0 if not sent

    def format_gap(self, i: int, rate: int = 8) -> int:
        a = bisect_right((4, 8, 16, 24, 40, 56, 80), self.activities[RATES.index(rate)])
        return (min(self.last_e, 2) * 8 + a) * 16 + min(i, 15)

    def format_mantissa(self, bit: int) -> Key | None:
        return 384 + min(self.e, 24) - 1 if bit == self.e - 1 else None

    def format_sign(self) -> int:
        return 408 + self.last_sign * 3 + min(self.e, 2)

    def format_level(self, i: int, cap: int = 7) -> int:
        return 417 + ((min(self.last_level, cap) - 1) * 3 + min(self.e, 2)) * 14 + i

    def above(self, i: int) -> int:
        """What the gap that the row above suggests says about the decision "e > i"."""
        e = self.above_gap.bit_length() - 1
        if e == i:
            return 1 if self.above_gap == 1 << e else 2
        return 5 if e < 0 else 0 if e < i else 3 if e == i + 1 else 4

    def above_mantissa(self, bit: int) -> Key | None:
        """The bit that the row above suggests, as long as it was right before."""
        if self.above_gap and self.above_gap >> (bit + 1) == self.gap >> (bit + 1):
            return (4, int(bit == self.e - 1), self.above_gap >> bit & 1, min(bit, 3))
        return self.format_mantissa(bit)


@dataclass(frozen=True)
class Variant:
    """A way to code nonzeros. The defaults are the format's, but for its initial states."""

    slice_log2: int = 11
    gap: Callable[[Nonzero, int], Key] = Nonzero.format_gap
    mantissa: Callable[[Nonzero, int], Key | None] = Nonzero.format_mantissa
    sign: Callable[[Nonzero], Key] = Nonzero.format_sign
    level: Callable[[Nonzero, int], Key] = Nonzero.format_level
    rates: tuple[int, int] = (16, 128)
    trained: bool = False


LEVEL_3 = partial(Nonzero.format_level, cap=3)
DRAFT = Variant(gap=lambda x, i: (0, min(x.last_e, 6), min(x.e_before, 6), i), level=LEVEL_3)
BASE, TRAINED = "format", "format, trained initial states"
PAYLOAD = "the payload's slices: that by rANS"
VARIANTS = {
    "first draft, one slice": replace(DRAFT, slice_log2=ONE_SLICE),
    "first draft": DRAFT,
    "first draft, slices of 512": replace(DRAFT, slice_log2=9),
    "format, one slice": Variant(ONE_SLICE),
    BASE: Variant(),
    "+ kernel position": Variant(gap=lambda x, i: (1, x.format_gap(i), x.kernel if i < 4 else 0)),
    "+ gap in the row above": Variant(
        gap=lambda x, i: (2, x.format_gap(i), x.above(i)), mantissa=Nonzero.above_mantissa
    ),
    "gap in the row above, no activity": Variant(
        gap=lambda x, i: (3, min(x.last_e, 3), min(x.e_before, 1), i, x.above(i)),
        mantissa=Nonzero.above_mantissa,
    ),
    "+ sign of the element above": Variant(sign=lambda x: (5, x.format_sign(), x.above_sign)),
    "last level capped at 3, not 7": Variant(level=LEVEL_3),
    "activity at rate 1/4, not 1/8": Variant(gap=partial(Nonzero.format_gap, rate=4)),
    "activity at rate 1/16, not 1/8": Variant(gap=partial(Nonzero.format_gap, rate=16)),
    "probabilities at rate 1/16 alone": Variant(rates=(16, 16)),
    "probabilities at rate 1/32 alone": Variant(rates=(32, 32)),
    "probabilities at rate 1/128 alone": Variant(rates=(128, 128)),
    TRAINED: Variant(trained=True),
}
NOTE = f"""Bytes of ideal code and, in brackets, the gain in per cent against "{BASE}": the
contexts of docs/format.md 5.3, slices of about 2,048 nonzeros, all contexts from probability 1/2
and count 0; what follows is a change to that. "First draft" has the classes of the last two gaps,
up to 6, in place of one up to 2 and the activity, and the last level up to 3. The position in a
kernel counts for the first four decisions of a gap. For kernels and rows a slice would have to say
where it begins: some 3 bytes, not counted. The last line is the length in a real payload."""


def pay(table: dict[Key, State], rates: tuple[int, int], key: Key, bit: int) -> float:
    """Bits of one adaptively coded decision; fresh contexts are not in the table yet."""
    fast, slow, count = table.get(key, (2**15, 2**15, 0))
    p = min(max((fast + slow) // 8, 1), 2**14 - 1)
    r_fast, r_slow = (max(131072 // (2 * count + 3), 65536 // r) for r in rates)
    fast += (65535 - fast) * r_fast // 65536 if bit else -(fast * r_fast // 65536)
    slow += (65535 - slow) * r_slow // 65536 if bit else -(slow * r_slow // 65536)
    table[key] = fast, slow, min(count + 1, 127)
    return COST[p if bit else 2**14 - p]


def code_length(slices: list[list[Nonzero]], variant: Variant) -> dict[str, float]:
    """Bytes for gaps, signs and levels."""
    gaps = signs = levels = 0.0
    states = SLICE_STATES if variant.trained else ()
    for nonzeros in slices:
        table: dict[Key, State] = {i: (256 * p, 256 * p, n) for i, (p, n) in enumerate(states)}
        decide = partial(pay, table, variant.rates)
        for x in nonzeros:
            for i in range(x.e + 1):
                gaps += decide(variant.gap(x, i), int(i < x.e))
            for i in reversed(range(x.e)):
                key = variant.mantissa(x, i)
                gaps += 1 if key is None else decide(key, x.gap >> i & 1)
            signs += decide(variant.sign(x), int(x.level > 0))
            level = abs(x.level)
            for i in range(min(level, 14)):
                levels += decide(variant.level(x, i), int(level > i + 1))
            if level > 14:
                size = (level - 14).bit_length() - 1
                levels += size + sum(decide(711 + i, int(i < size)) for i in range(size + 1))
    total = gaps + signs + levels
    return {"bytes": total / 8, "gap": gaps / 8, "sign": signs / 8, "level": levels / 8}


def choose(state: Model, reference: Model, sparsity: float) -> tuple[list[int], list[int]]:
    """Indices and signed levels of what is sent, section 8."""
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


def deal(index: list[int], level: list[int], model: Model, log2: int) -> list[list[Nonzero]]:
    """Slices of about 2^log2 nonzeros, section 5."""
    shapes = [value.shape for value in model.values()]
    starts = np.cumsum([0, *map(math.prod, shapes)]).tolist()

    def around(element: int, begin: int, end: int) -> tuple[int, int, int]:
        """Position in the kernel; first nonzero from the element above on; how far from it."""
        tensor = bisect_right(starts, element) - 1
        kernel = (element - starts[tensor]) % math.prod(shapes[tensor][2:])
        target = element - math.prod(shapes[tensor][1:])
        n = bisect_left(index, target, begin, end) if target >= starts[tensor] else end
        return (kernel, n, index[n] - target) if n < end else (kernel, -1, -1)

    n_slices = max(1, len(index) + (1 << log2 - 1) >> log2)
    slices: list[list[Nonzero]] = []
    last = -1
    for part in np.array_split(np.arange(len(index)), n_slices):
        slices.append([])
        begin, history = int(part[0]), (0, 0, (0,) * len(RATES), 0, 1)
        for n in part.tolist():
            gap, e = index[n] - last, (index[n] - last).bit_length() - 1
            kernel, _, distance = around(last + 1, begin, n)
            _, same, exact = around(index[n], begin, n)
            up = 0 if exact else 1 + int(level[same] > 0)
            slices[-1].append(Nonzero(gap, e, level[n], *history, kernel, distance + 1, up))
            a = history[2]
            a = tuple(a[i] - a[i] // r + 16 // r * min(e, 15) for i, r in enumerate(RATES))
            history = (e, history[0], a, 1 + int(level[n] > 0), abs(level[n]))
            last = index[n]
    return slices


def measure(state: Model, reference: Model, sparsity: float) -> dict[str, dict[str, float]]:
    """Bytes of every variant, by its name, and of the slices of a real payload."""
    index, level = choose(state, reference, sparsity)
    dealt = {n: deal(index, level, reference, n) for n in {v.slice_log2 for v in VARIANTS.values()}}
    found = {name: code_length(dealt[v.slice_log2], v) for name, v in VARIANTS.items()}
    info = rfc.inspect(rfc.encode(state, reference, sparsity=sparsity, step=STEP_RATIO))
    if info.n_nonzero != len(index) or info.lossy_bytes < found[TRAINED]["bytes"]:
        raise AssertionError("the payload does not hold what was counted here")
    found[PAYLOAD] = {"bytes": info.lossy_bytes, "nonzeros": len(index), "slices": len(dealt[11])}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--snapshots", type=Path, required=True, help=".npz of prefix|name arrays")
    parser.add_argument("--pairs", nargs="+", default=["g6:l0_7", "g4:l0_5", "g6:g7"])
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.95, 0.99, 0.9975])
    args = parser.parse_args()
    snapshots = load_snapshots(args.snapshots)
    details = {}
    for pair in args.pairs:
        state, reference = (
            {n: v for n, v in sorted(snapshots[prefix].items()) if is_matrix(v) and v.dtype == "f4"}
            for prefix in reversed(pair.split(":"))
        )
        for sparsity in args.sparsities:
            details[f"{pair} {sparsity:g}"] = measure(state, reference, sparsity)
    rows: list[dict[str, Any]] = []
    for name in [*VARIANTS, PAYLOAD]:
        gains = {c: 100 - 100 * d[name]["bytes"] / d[BASE]["bytes"] for c, d in details.items()}
        row = {c: f"{d[name]['bytes']:,.0f} ({gains[c]:+.2f})" for c, d in details.items()}
        row["mean gain %"] = f"{sum(gains.values()) / len(gains):+.2f}"
        rows.append({"contexts": name, **row})
    print(write_results("contexts", "Contexts of the entropy coder", rows, NOTE))
    path = RESULTS / "contexts.json"
    document = json.loads(path.read_text()) | {"details": details}
    path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
