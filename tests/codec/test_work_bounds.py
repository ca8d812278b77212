"""Bounds of docs/security.md: steps for each element, and memory while decoding."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import resfed_codec as rfc
from resfed_codec import _native
from resfed_codec.reference.changes import ChangeCode
from resfed_codec.reference.lanes import MAX_LEVEL, Block, Contexts, code_nonzero

# ---- steps of decoding


class Counting:
    """Counts what a decoder takes off a state: symbols of lanes and their raw bits, decisions."""

    def __init__(self) -> None:
        self.count = 0
        self.codes: list[int] = []

    def symbol(self, _lane: int, _kind: int, row: int, symbol: int) -> int:
        self.count += 1
        self.codes.append(32 * row + symbol)
        return symbol

    def raw(self, _lane: int, number: int, _n_bits: int) -> int:
        self.count += 1
        return number

    def code_bit(self, _context: int, bit: int) -> int:
        self.count += 1
        return bit

    def code_bypass(self, number: int, _n_bits: int) -> int:
        self.count += 1
        return number


def values(most: int) -> Iterator[int]:
    """Values around which the number of steps changes."""
    power = 1
    while power <= most:
        yield from {max(power + d, 1) for d in (-1, 0, 1, 14) if power + d <= most}
        power *= 2
    yield most


def code(coder: Counting, contexts: Contexts, gap: int, level: int) -> None:
    *_, coded = code_nonzero(coder, 0, contexts, gap, level, 1)  # type: ignore[arg-type]
    assert coded == (gap, level)


def test_steps_of_a_nonzero() -> None:
    """At most 5 for an element, for any distance between nonzeros."""
    most = 0.0
    for gap in sorted(set(values(2**39))):
        for level in sorted(set(values(MAX_LEVEL))) if gap < 20 else [MAX_LEVEL]:
            coder = Counting()
            code(coder, Contexts(Block()), gap, level)
            most = max(most, coder.count / gap)
    assert most == 5


@pytest.mark.parametrize("level", [1, 8, 9, 95, 96, 2**13, MAX_LEVEL])
def test_symbols_of_the_native_coder(level: int) -> None:
    """The same, in the same rows; the trace omits raw bits."""
    coder, contexts = Counting(), Contexts(Block())
    for _ in range(1000):
        code(coder, contexts, 1, level)
    ((blocks, *codes),) = _native.trace(list(range(1000)), [level] * 1000, [], 10)
    assert not blocks
    for kind in (0, 1):
        assert np.frombuffer(codes[kind], np.uint16).tolist() == coder.codes[kind::2]


def test_decisions_of_a_change() -> None:
    """At most 13 for an element."""
    most = 0.0
    for gap in sorted(set(values(2**39))):
        for change in sorted(set(values(2**64 - 1))) if gap < 20 else [2**64 - 1]:
            coder = Counting()
            changes = ChangeCode()
            changes.code(coder, 1, 5)  # type: ignore[arg-type]
            before = coder.count
            changes.code(coder, gap, change)  # type: ignore[arg-type]
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
    """The signs make an encoder scan floats by columns."""
    width = np.dtype(dtype).itemsize
    n = 20_000_000 // max(width, 4) if call == "decode" else 1_000_000
    reference = {"w": np.full((n // 1000, 1000), 1, dtype)}
    state = {"w": np.tile(np.array([3, -1], dtype), (n // 1000, 500))}
    (tmp_path / "payload").write_bytes(rfc.encode(state, reference, sparsity=0))
    if call == "decode":
        bound = symbol + width + width  # the decoded values, the model
    else:
        adds = 8 if symbol == 20 else width
        bound = symbol + adds + 16 + width  # the sums, the reference
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, call, dtype, str(n), str(tmp_path / "payload")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(run.stdout) < bound * n + SLACK


SCANNED = """
import sys
import numpy as np
import resfed_codec as rfc

def peak():
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))

rfc.set_num_threads(1)
shape = tuple(map(int, sys.argv[1:]))
state, reference = np.zeros(shape, np.float16), np.zeros(shape, np.float16)
n_sent = 1000
state.reshape(-1)[5000 : 5000 + n_sent] = 1
small = [np.eye(8, dtype=np.float32)]
rfc.decode(rfc.encode(small, [0 * small[0]]), [0 * small[0]])
before = peak()
payload = rfc.encode([state], [reference], sparsity=1 - n_sent / state.size)
encoded = peak()
rfc.decode(payload, [reference], out=[reference])
assert np.count_nonzero(reference.reshape(-1)[:10000]) == n_sent
print(len(payload), encoded - before, peak() - encoded)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("shape", [(1 << 26, 1), (1, 1 << 26), (2, 1 << 25), (1 << 25, 2)])
def test_memory_of_a_scan_follows_what_is_sent(shape: tuple[int, int]) -> None:
    """A matrix of 2^26 elements in very long rows or columns, of which 1000 are sent.

    Zero pages that are only read are not resident.
    """
    command = [sys.executable, "-c", SCANNED, *map(str, shape)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    n_bytes, encoding, decoding = map(int, run.stdout.split())
    assert n_bytes < 1000
    assert encoding < 2 * SLACK
    assert decoding < 2 * SLACK
