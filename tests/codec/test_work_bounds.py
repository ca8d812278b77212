"""Bounds of docs/security.md: binary decisions for each element, and memory while decoding."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import resfed_codec as rfc
from resfed_codec.reference.changes import ChangeCode
from resfed_codec.reference.lanes import Block, Contexts, code_nonzero
from resfed_codec.reference.symbols import MAX_LEVEL
from two_codecs import tables_in

# ---- decisions


class Counting:
    """A coder that counts decisions."""

    def __init__(self) -> None:
        self.count = 0

    def code_bit(self, _context: int, bit: int) -> int:
        self.count += 1
        return bit

    def code_bypass(self, number: int, _n_bits: int) -> int:
        self.count += 1
        return number

    def symbol(self, _lane: int, _kind: int, _row: int, symbol: int) -> int:
        self.count += 1
        return symbol

    def raw(self, _lane: int, number: int, _n_bits: int) -> int:
        self.count += 1
        return number


def values(most: int) -> Iterator[int]:
    """Values around which the number of decisions changes."""
    power = 1
    while power <= most:
        yield from {max(power + d, 1) for d in (-1, 0, 1, 14) if power + d <= most}
        power *= 2
    yield most


def test_decisions_of_a_nonzero() -> None:
    """At most 5 for an element, for any distance between nonzeros; at most 10 for a nonzero."""
    most, most_of_element = 0, 0.0
    for gap in sorted(set(values(2**62))):
        for level in sorted(set(values(MAX_LEVEL))) if gap < 20 else [MAX_LEVEL]:
            coder = Counting()
            nonzero = code_nonzero(coder, 0, Contexts(Block()), gap, level, 1)  # type: ignore[arg-type]
            assert list(nonzero)[-1] == (gap, level)
            most_of_element = max(most_of_element, coder.count / gap)
            most = max(most, coder.count)
    assert (most_of_element, most) == (5, 10)


def test_decisions_of_a_change() -> None:
    """At most 13 for an element."""
    most = 0.0
    for gap in sorted(set(values(2**39))):
        for change in sorted(set(values(2**64 - 1))) if gap < 20 else [2**64 - 1]:
            coder = Counting()
            code = ChangeCode()
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
    [("float16", 20), ("float32", 20), ("float64", 20), ("int8", 16), ("int64", 16)],
)
def test_memory_of_a_full_payload(call: str, dtype: str, symbol: int, tmp_path: Path) -> None:
    """Of a matrix that is scanned by columns."""
    width = np.dtype(dtype).itemsize
    n = 20_000_000 // max(width, 4) if call == "decode" else 1_000_000
    reference = {"w": np.full((n // 1000, 1000), 1, dtype)}
    state = {"w": np.tile(np.array([3, -1], dtype), (n // 1000, 500))}
    payload = rfc.encode(state, reference, sparsity=0)
    if "float" in dtype:
        small = {"w": reference["w"][:9]}
        scans = tables_in(rfc.encode({"w": state["w"][:9]}, small, sparsity=0), small).scans
        assert scans[0].columns
    (tmp_path / "payload").write_bytes(payload)
    if call == "decode":
        bound = symbol + width + width  # the decoded values, the model
    else:
        adds = 8 if "float" in dtype else width
        bound = symbol + adds + 16 + width  # the sums, the reference
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, call, dtype, str(n), str(tmp_path / "payload")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(run.stdout) < bound * n + SLACK
