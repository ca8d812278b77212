"""Large levels on a device: lanes with a shift, and raw numbers of more than 16 bits.

See test_device_codec.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_device_codec import assert_same_everywhere

import resfed_codec as rfc
from device_cases import Case, Result, bytes_of, random_pair
from resfed_codec import _native
from resfed_codec import reference as slow
from resfed_codec.reference import lanes as lanes_module
from resfed_codec.reference.contexts import Block
from resfed_codec.reference.frame import read_frame, write_frame
from resfed_codec.reference.scan import Matrix
from resfed_codec.reference.symbols import level_symbol
from two_codecs import tables_in

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not rfc.cuda_available(), reason=_native.cuda_unavailable_reason()),
]


def shifts_in(payload: bytes, case: Case) -> set[int]:
    return {lane.shift for lane in tables_in(payload, case.base).lanes}


@pytest.mark.parametrize("bits", range(2, 13))
def test_dense_tensors(bits: int) -> None:
    """Of the nonzeros of a payload, those of dense tensors come last."""
    shapes = {"w": (60, 70), "big": (30, 100), "small": (9,)}
    config: dict[str, Any] = {"dense": ("big", "small"), "dense_bits": bits, "sparsity": 0.9}
    case = Case(*random_pair(shapes), **config)
    case.options.lane_log2 = 6
    shifts = shifts_in(assert_same_everywhere(case).payload, case)
    assert max(shifts) >= bits - 6


@pytest.mark.parametrize("bits", [10, 16])
def test_many_magnitudes(bits: int) -> None:
    case = Case(*random_pair({"a": (70, 100), "conv": (20, 6, 3, 3)}), bits=bits, sparsity=0.5)
    case.options.lane_log2 = 7
    shifts = shifts_in(assert_same_everywhere(case).payload, case)
    assert max(shifts) > bits - 10


@pytest.mark.parametrize("n_lanes", [3, 45])
def test_large_shifts(n_lanes: int) -> None:
    """Raw numbers of more than 16 bits in some lanes of a slice, and lanes of other shifts."""
    rng = np.random.default_rng(8)
    n = 64 * n_lanes
    size = 2 ** (rng.random(n) + np.linspace(0, 21, n) - 3 * (rng.random(n) < 0.3))
    state = {"a": np.float32(size * rng.choice([-1, 1], n)).reshape(n_lanes, 64)}
    case = Case(state, {"a": np.zeros((n_lanes, 64), np.float32)}, sparsity=0, step=1.0)
    case.options.lane_log2 = 6
    shifts = shifts_in(assert_same_everywhere(case).payload, case)
    assert max(shifts) > 11
    assert len(shifts) > min(n_lanes, 12) - 1


def test_damage(rng: np.random.Generator) -> None:
    case = Case(*random_pair({"a": (40, 50)}), bits=16, sparsity=0.3)
    case.options.lane_log2 = 6
    payload = case.encode(on_device=False).payload
    n_refused = 0
    for at in rng.integers(30, len(payload) - 4, 60):
        forged = bytearray(payload)
        forged[at] ^= 1 << rng.integers(8)
        n_refused += bool(decode_everywhere(case, bytes(forged[:-4])).error)
    assert n_refused > 40


def decode_everywhere(case: Case, body: bytes) -> Result:
    """Decode what a forger made on host and device."""
    payload = body + _native.crc32c(body).to_bytes(4, "little")
    expected = case.decode(payload, on_device=False)
    result = case.decode(payload, on_device=True)
    assert result.error[:1] == expected.error[:1]
    assert result.model == expected.model
    return expected


@pytest.mark.parametrize("seed", range(3))
def test_lanes_that_no_encoder_makes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes of any shift, up to 57, with any blocks."""
    rng = np.random.default_rng(seed)

    def any_block(_: Any, matrices: Any) -> Block:
        size = int(rng.choice([0, 2, 5, 64]))
        return Block(size, int(rng.integers(size)) if size else 0)

    size = np.ldexp(rng.standard_normal((30, 40)), rng.integers(0, 20, (30, 40)))
    state, reference = {"w": size.astype("f4")}, {"w": np.zeros((30, 40), "f4")}
    config: dict[str, Any] = {"sparsity": 0.2, "step": 30.0}
    case = Case(state, reference, **config)
    recovered = case.encode(on_device=False).model
    monkeypatch.setattr(lanes_module, "choose_shift", lambda _: int(rng.integers(58)))
    monkeypatch.setattr(lanes_module, "choose_block", any_block)
    forged = slow.encode(state, reference, lane_log2=6, **config)
    assert max(shifts_in(forged, case)) > 45
    assert decode_everywhere(case, forged[:-4]) == Result(model=recovered)


# ---- levels with several codes


@pytest.mark.parametrize("shift", [0, 1, 5, 14])
@pytest.mark.parametrize("forged_symbol", [8, 15])
def test_levels_with_the_symbol_of_others(
    forged_symbol: int, shift: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Level 8 as one of 8 to 11, or any level as an escape."""
    reference = {"a": np.zeros((2, 3), np.float32)}
    state = {"a": np.full((2, 3), 8 << shift, np.float32)}
    state["a"][0, 0] = 1  # from which levels are counted, in steps of 1
    case = Case(state, reference)

    def other_symbol(level: int, shift: int) -> int:
        return forged_symbol if (level - 1 >> shift) == 7 else level_symbol(level, shift)

    monkeypatch.setattr(lanes_module, "choose_shift", lambda _: shift)
    legal = slow.encode(state, reference, sparsity=0, step=1.0)
    assert not decode_everywhere(case, legal[:-4]).error
    monkeypatch.setattr(lanes_module, "level_symbol", other_symbol)
    forged = slow.encode(state, reference, sparsity=0, step=1.0)
    assert decode_everywhere(case, forged[:-4]).error[0] == _native.Code.BAD_SLICE


@pytest.mark.parametrize("shift", [0, 16, 20, 57])
def test_levels_beyond_the_largest(shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As escapes or as other symbols."""
    reference = {"a": np.zeros((2, 3), np.float32)}
    case = Case({"a": reference["a"] + 1}, reference)
    f = read_frame(slow.encode({"a": reference["a"] + 1}, reference, sparsity=0))
    monkeypatch.setattr(lanes_module, "LOSSY", replace(lanes_module.LOSSY, most=2**64))
    monkeypatch.setattr(lanes_module, "choose_shift", lambda _: shift)

    def error_of(level: int) -> int:
        nonzeros = [(i, level) for i in range(6)]
        tables, slices = lanes_module.encode_nonzeros(nonzeros, [Matrix(0, 6, 3)])
        forged = write_frame(replace(f, tables=tables, slices=slices))
        return decode_everywhere(case, forged[:-4]).error[0]

    most = 2**23
    assert error_of(most) == error_of(-most) == _native.Code.WRONG_REFERENCE
    for level in (most + 1, -most - 1, 2**24, 2**25 + 1, 2**32 + 1, 2**63 + 1):
        assert error_of(level) == _native.Code.BAD_SLICE


def test_zero_as_an_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exponent of 0 is that of level 1, which no escape has, whatever the shift."""
    reference = {"a": np.zeros((2, 3), np.float32)}
    case = Case({"a": reference["a"] + 1}, reference)
    before = bytes_of([np.zeros_like(array) for array in case.base])
    monkeypatch.setattr(lanes_module, "choose_shift", lambda _: 57)
    monkeypatch.setattr(lanes_module, "level_symbol", lambda *_: 15)
    forged = slow.encode({"a": reference["a"] + 1}, reference, sparsity=0)
    result = decode_everywhere(case, forged[:-4])
    assert (result.error[0], result.model) == (_native.Code.BAD_SLICE, before)
