"""Bounds of docs/security.md: steps for each element, and memory while decoding."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import resfed_codec as rfc
from resfed_codec.reference.lanes import LOSSLESS, LOSSY, Coding, Lane, Part, code_nonzero
from resfed_codec.reference.symbols import LEVEL_CLASSES

# ---- steps of decoding


class Counting:
    """Counts what a decoder takes off a state: symbols of lanes and their raw bits."""

    def __init__(self) -> None:
        self.count = 0

    def symbol(self, _lane: int, _row: tuple[int, ...], symbol: int) -> int:
        self.count += 1
        return symbol

    def raw(self, _lane: int, number: int, n_bits: int) -> int:
        self.count += n_bits > 0
        return number


def values(most: int) -> Iterator[int]:
    """Values around which the number of steps changes."""
    power = 1
    while power <= most:
        yield from {max(power + d, 1) for d in (-1, 0, 1, 14) if power + d <= most}
        power *= 2
    yield most


def steps(part: Part, gap: int, level: int, shift: int = 0) -> int:
    coder, lane = Counting(), Lane(part, shift=shift, sets=(0, 0))
    coding = Coding(
        coder,  # type: ignore[arg-type]
        0,
        lane.tables({}),
        shift,
        part.most,
        lane.contexts(),
    )
    assert len(list(code_nonzero(coding, gap, level))) == 5
    assert coding.done == [(gap, level)]
    return coder.count


@pytest.mark.parametrize(("part", "most"), [(LOSSY, 6), (LOSSLESS, 7)], ids=["lossy", "lossless"])
def test_steps_of_a_nonzero(part: Part, most: int) -> None:
    """The most for an element, for any distance between nonzeros, any level and any shift."""
    counts = [steps(part, gap, 1) / gap for gap in {*values(2**39)}]
    counts += [steps(part, 1, level) for level in {*values(part.most)}]
    counts += [
        steps(part, 1, (first - 1 << shift) + 1, shift)
        for shift in range(58)
        for first in LEVEL_CLASSES
        if (first - 1 << shift) < part.most and first != 8
    ]
    assert max(counts) == most


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
rfc.Aggregator(small).add(rfc.encode({"w": small["w"] + np.array(1, dtype)}, small))
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


def measured(call: str, dtype: str, n: int, payload: Path) -> int:
    """How much more memory a process has at most during a call than before."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, call, dtype, str(n), str(payload)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(run.stdout)


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
    assert measured(call, dtype, n, tmp_path / "payload") < bound * n + SLACK


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_memory_of_excluded_floats(dtype: str, tmp_path: Path) -> None:
    """Changes are put into the order of elements: 16 bytes each, twice."""
    n = 4_000_000
    reference = {"w": np.full((n // 1000, 1000), 1, dtype)}
    state = {"w": np.tile(np.array([3, -1], dtype), (n // 1000, 500))}
    (tmp_path / "payload").write_bytes(rfc.encode(state, reference, exclude="*"))
    assert measured("decode", dtype, n, tmp_path / "payload") < 32 * n + SLACK


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
