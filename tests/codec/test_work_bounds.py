"""Bounds of docs/security.md: binary decisions for each element, and memory while decoding."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import resfed_codec as rfc
from resfed_codec import _native
from resfed_codec.reference.contexts import REPEAT
from resfed_codec.reference.slices import MAX_LEVEL, ChangeCode, NonzeroCode

# ---- decisions


class Counting:
    """A coder that counts decisions. A wrong period costs one more, so every guess is wrong."""

    def __init__(self) -> None:
        self.n_adaptive = self.n_raw = 0

    def code_bit(self, context: int, bit: int) -> int:
        self.n_adaptive += 1
        return 0 if 0 <= context - REPEAT.first < REPEAT.size else bit

    def code_bypass(self, number: int, _: int) -> int:
        self.n_raw += 1
        return number

    @property
    def count(self) -> int:
        return self.n_adaptive + self.n_raw


def values(most: int) -> Iterator[int]:
    """Values around which the number of decisions changes."""
    power = 1
    while power <= most:
        yield from {max(power + d, 1) for d in (-1, 0, 1, 14) if power + d <= most}
        power *= 2
    yield most


def slice_code(coder: Counting, period: int) -> NonzeroCode:
    """The start of a forged slice with rows of this length."""
    code = NonzeroCode(coder, -1, [], [])  # type: ignore[arg-type]
    code.period.length = period
    return code


def test_decisions_of_a_nonzero() -> None:
    """At most 42 for an element, for any distance between nonzeros."""
    most = 0.0
    for gap in sorted(set(values(2**39))):
        for level in sorted(set(values(MAX_LEVEL))) if gap < 20 else [MAX_LEVEL]:
            coder = Counting()
            code = slice_code(coder, 1)
            code.code(coder, 1, 1)  # type: ignore[arg-type]
            before = coder.count
            code.code(coder, gap, level)  # type: ignore[arg-type]
            most = max(most, (coder.count - before) / gap)
    assert most == 42


def test_decisions_of_the_native_coder() -> None:
    """The same, except for bypass bits, which the trace omits, and for wrong guesses."""
    for level in (1, 14, 15, 2**13, MAX_LEVEL):
        coder = Counting()
        code = slice_code(coder, 0)
        for _ in range(1000):
            code.code(coder, 1, level)  # type: ignore[arg-type]
        trace, ends = _native.trace(list(range(1000)), [level] * 1000, [], 10)
        assert len(trace) // 2 == ends[-1] == coder.n_adaptive


def test_decisions_of_a_change() -> None:
    """At most 13 for an element."""
    most = 0.0
    for gap in sorted(set(values(2**39))):
        for change in sorted(set(values(2**64 - 1))) if gap < 20 else [2**64 - 1]:
            coder = Counting()
            code = ChangeCode(coder, -1, [], [])  # type: ignore[arg-type]
            code.code(coder, 1, 5)  # type: ignore[arg-type]
            before = coder.count
            code.code(coder, gap, change)  # type: ignore[arg-type]
            most = max(most, (coder.count - before) / gap)
    assert most == 13


# ---- memory

MEASURED = """
import sys
import numpy as np
import resfed_codec as rfc

def held(field):
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(field))

call, dtype, n, path = sys.argv[1:]
rfc.set_num_threads(1)
reference = {"w": np.full((int(n) // 1000, 1000), 1, dtype)}
small = {"w": np.full((1, 1), 1, dtype)}
rfc.Aggregator(small).add(rfc.encode(small, small))
payload = open(path, "rb").read()
before = held("VmRSS")
if call == "decode":
    model = rfc.decode(payload, reference)
else:
    aggregator = rfc.Aggregator(reference)
    aggregator.add(payload)
print(held("VmHWM") - before)
"""

SLACK = 2 << 20
"""Bytes for memory that does not depend on the model's size."""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("call", ["decode", "add"])
@pytest.mark.parametrize(
    ("dtype", "symbol"),
    [("float16", 8), ("float32", 8), ("float64", 8), ("int8", 16), ("int64", 16)],
)
def test_memory_of_a_full_payload(call: str, dtype: str, symbol: int, tmp_path: Path) -> None:
    width = np.dtype(dtype).itemsize
    n = 20_000_000 // max(width, 4) if call == "decode" else 1_000_000
    reference = {"w": np.full((n // 1000, 1000), 1, dtype)}
    state = {"w": np.full((n // 1000, 1000), 3, dtype)}
    (tmp_path / "payload").write_bytes(rfc.encode(state, reference, sparsity=0))
    if call == "decode":
        bound = symbol + width + width  # the decoded values, the model
    else:
        adds = 8 if symbol == 8 else width
        bound = symbol + adds + 16 + width  # the sums, the reference
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, call, dtype, str(n), str(tmp_path / "payload")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(run.stdout) < bound * n + SLACK
