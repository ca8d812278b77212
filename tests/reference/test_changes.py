"""Lossless tensors: both implementations code changes of any bits alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import resfed_codec as rfc
from marks import slow_except
from models import FLOATS, INTEGERS, assert_same
from resfed_codec import _native
from resfed_codec import reference as slow
from resfed_codec.reference import lanes as lanes_module
from resfed_codec.reference.bits import BitWriter
from resfed_codec.reference.changes import (
    coding_order,
    find_changes,
    levels_between,
    moved_by,
)
from resfed_codec.reference.contexts import Block
from resfed_codec.reference.frame import read_frame, write_frame
from resfed_codec.reference.lanes import (
    LOSSLESS,
    LastLane,
    codes_of,
    encode_changes,
    lane_sizes,
    lanes_of,
    read_tables,
    write_lane,
)
from resfed_codec.reference.scan import Matrix
from resfed_codec.reference.symbols import level_symbol
from resfed_codec.reference.tables import FITTED, write_set
from resfed_codec.reference.values import tensors_of
from two_codecs import assert_agree, n_refused

DTYPES = [
    *(np.dtype(name) for name in (*FLOATS, *INTEGERS, "complex64", "complex128")),
    *(np.dtype(getattr(ml_dtypes, name)) for name in ("bfloat16", "float8_e4m3fn", "int4")),
]


def edges(dtype: np.dtype[Any]) -> np.ndarray:
    """Patterns of zeros, of infinities, NaN and the largest numbers of floats, of extremes."""
    width = 8 * dtype.itemsize // (2 if dtype.kind == "c" else 1)
    top = 1 << (width - 1)
    numbers = [0, 1, top - 1, top, top + 1, 2 * top - 1]
    if dtype.kind in "fc" and dtype.isbuiltin == 1:
        part = np.zeros(0, dtype).real.dtype
        numbers += [
            int(np.array(x, part).view(f"u{part.itemsize}"))
            for x in (np.inf, -np.inf, np.nan, 1, -1, np.finfo(part).max, np.finfo(part).tiny)
        ]
    bits = np.array(numbers, f"u{width // 8}")
    return np.repeat(bits, 2 if dtype.kind == "c" else 1).view(dtype)


def any_bits(dtype: np.dtype[Any], n: int, rng: np.random.Generator) -> np.ndarray:
    return np.frombuffer(rng.bytes(n * dtype.itemsize), dtype).copy()


def agree(state: Any, reference: Any, lane_log2: int = 10) -> bytes:
    payload = assert_agree(state, reference, {"exclude": "*"}, lane_log2)
    assert_same(slow.decode(payload, reference), state)
    return payload


def lanes_in(payload: bytes) -> list[Any]:
    f = read_frame(payload)
    return read_tables(LOSSLESS, f.change_tables, [], f.n_lossless_lanes).lanes


# ---- Levels and the order of exponents


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_positive_levels_move_away_from_zero(dtype: str) -> None:
    old = np.array([1, 1, -1, -1, 0.0, -0.0, 0.0], dtype)
    new = np.array([1, 1, -1, -1, -0.0, 0.0, 0.0], dtype)
    new[:4] = np.nextafter(old[:4], np.array([2, 0, -2, 0], dtype))
    bits = (a.view(f"u{old.itemsize}") for a in (old, new))
    assert levels_between(*bits, is_float=True).tolist() == [1, -1, 1, -1, -1, -1, 0]


def test_levels_of_integers_are_differences() -> None:
    old = np.array([0, 255, 1, 0, 200], np.uint8)
    new = np.array([255, 0, 128, 128, 200], np.uint8)
    assert levels_between(old, new, is_float=False).tolist() == [-1, 1, 127, -128, 0]


@given(st.sampled_from([1, 2, 4, 8]), st.booleans(), st.integers(0, 999))
def test_any_pattern_moves_to_any_other(n_bytes: int, is_float: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    old, new = (any_bits(np.dtype(f"u{n_bytes}"), 300, rng) for _ in range(2))
    levels = levels_between(old, new, is_float)
    np.testing.assert_array_equal(levels == 0, old == new)
    np.testing.assert_array_equal(moved_by(old, levels, is_float), new)


def test_coding_order() -> None:
    reference = {
        "a": np.array([4, 1, -2, 1.5, np.inf, 0, -np.nan, 1e-42], np.float32),
        "b": np.array([7, 3], np.int8),
        "c": np.array([1e-300, 1e300, -1.25, 2.0**-126, 2.0**-127], np.float64),
        "d": np.array([0.5 - 2j], np.complex64),
    }
    classes = [129, 127, 128, 127, 255, 0, 255, 0, 0, 0, 0, 255, 127, 1, 0, 126, 128]
    order = coding_order(tensors_of(reference)).tolist()
    assert order == sorted(range(len(classes)), key=lambda i: (classes[i], i))


# ---- Agreement


@given(
    dtype=st.sampled_from(DTYPES),
    n=st.integers(1, 300),
    kind=st.sampled_from(["any", "few", "near", "edges"]),
    lane_log2=st.integers(6, 8),
    seed=st.integers(0, 999),
)
def test_any_changes(dtype: np.dtype[Any], n: int, kind: str, lane_log2: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    old, new = any_bits(dtype, n, rng), any_bits(dtype, n, rng)
    if kind == "edges":
        old, new = (rng.choice(edges(dtype), n) for _ in range(2))
    elif kind == "near":
        new = (old.view("u1") + rng.integers(0, 2, n * dtype.itemsize).astype("u1")).view(dtype)
    elif kind == "few":
        new = np.where(rng.random(n) < 0.1, new, old)
    other = rng.integers(0, 9, 40).astype(np.int16)
    agree({"a": other, "b": new}, {"a": np.roll(other, 1), "b": old}, lane_log2)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint64", "float64"])
def test_the_farthest_changes(dtype: str) -> None:
    """The change of -2^(w-1) has no positive counterpart."""
    width = 8 * np.dtype(dtype).itemsize
    bits = np.array([0, 1, 2 ** (width - 1), 2 ** (width - 1) - 1, 2**width - 1], f"u{width // 8}")
    old, new = (a.ravel().view(dtype) for a in np.meshgrid(bits, bits))
    payload = agree([new], [old])
    assert rfc.inspect(payload).n_changed == 20
    levels = [level for _, level in find_changes(tensors_of([old], [new]))]
    if dtype != "float64":
        assert -(2 ** (width - 1)) in levels
    agree([old[:1] + 0, new], [old[:1] + 0, old], 6)


def test_many_runs(rng: np.random.Generator) -> None:
    reference = {
        "a": (0.02 * rng.standard_normal(100_000)).astype(np.float16),
        "b": rng.integers(0, 9, 50_000).astype(np.int8),
        "c": 0.02 * rng.standard_normal((40, 500)),
    }
    state = {name: a.copy() for name, a in reference.items()}
    for a in state.values():
        at = rng.integers(0, a.size, 800)
        a.flat[at] += np.ones(800, a.dtype)
    agree(state, reference, 7)


@pytest.mark.parametrize("n", [2015, 2016, 4127, 4128])
def test_many_slices(n: int, rng: np.random.Generator) -> None:
    """Up to 32 lanes make a slice of changes, too; lossy slices precede them."""
    reference = {"n": rng.integers(0, 99, 9000), "w": np.zeros((30, 30), np.float32)}
    state = {"n": reference["n"].copy(), "w": rng.standard_normal((30, 30)).astype(np.float32)}
    state["n"][rng.permutation(9000)[:n]] += 1
    payload = assert_agree(state, reference, {"sparsity": 0.5}, 6)
    info = rfc.inspect(payload)
    assert info.n_changed == n
    assert len(info.lossless_slices) == {2015: 1, 2016: 1, 4127: 2, 4128: 3}[n]
    assert len(info.lossy_slices) == 1


# ---- Rows, shifts and tables


@given(
    mean=st.floats(0.5, 15),
    n=st.integers(1, 200),
    shift=st.integers(0, 40),
    lane_log2=st.integers(6, 7),
    seed=st.integers(0, 99),
)
def test_rows_and_symbols(mean: float, n: int, shift: int, lane_log2: int, seed: int) -> None:
    """Both find the same symbols in the same rows."""
    rng = np.random.default_rng(seed)
    indices = np.cumsum(np.ceil(2 ** rng.normal(mean, 1, n)).astype(np.int64)) - 1
    levels = np.ceil(2 ** rng.normal(0, mean, n).clip(0, 20)).astype(np.int64) << shift
    levels *= rng.choice([-1, 1], n)
    changes = [(int(i), int(v)) for i, v in zip(indices, levels, strict=True)]
    native = _native.trace_changes(indices.tolist(), levels.tolist(), lane_log2)
    lanes = lanes_of(LOSSLESS, changes, lane_sizes(n, lane_log2), [])
    expected = [(False, *(np.array(c, np.uint16).tobytes() for c in codes_of(x))) for x in lanes]
    assert native == expected


def test_fitted_sets(rng: np.random.Generator) -> None:
    """Changes unlike those of any training: a set of their own for gaps and for levels."""
    gaps = rng.choice([3, 11, 700], 3000)
    reference = [np.zeros(int(gaps.sum()), np.int16)]
    state = [reference[0].copy()]
    state[0][np.cumsum(gaps) - 1] = rng.choice([-12, -1, 1, 12], 3000)
    f = read_frame(agree(state, reference, 6))
    tables = read_tables(LOSSLESS, f.change_tables, [], f.n_lossless_lanes)
    assert {*tables.fitted} == {*LOSSLESS.families}
    assert any(FITTED in lane.sets for lane in tables.lanes)


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint64", "int32"])
def test_large_shifts(dtype: str, rng: np.random.Generator) -> None:
    """Raw numbers of more than 16 bits: all elements change by a lot."""
    old = rng.standard_normal(700) * 2.0 ** rng.integers(0, 25, 700)
    new = old * (1 + 0.1 * rng.standard_normal(700))
    payload = agree([new.astype(dtype)], [old.astype(dtype)], 6) if dtype[0] == "f" else None
    payload = payload or agree(
        [any_bits(np.dtype(dtype), 700, rng)], [any_bits(np.dtype(dtype), 700, rng)], 6
    )
    shifts = {lane.shift for lane in lanes_in(payload)}
    assert min(shifts) > 11
    assert all(lane.block.size == 0 for lane in lanes_in(payload))


@pytest.mark.parametrize("dtype", ["int64", "uint8"])
def test_counters(dtype: str) -> None:
    """Changes of integers that repeat the last one are levels of 1 or -1, whatever they are."""
    old = np.zeros(5000, dtype)
    sizes = []
    for change in (1, 100, -100):
        new = old + np.array(change).astype(dtype)
        new[2500:] -= np.array(7).astype(dtype)
        sizes.append(len(agree([new], [old])))
    assert max(sizes) < 200


def test_the_largest_shift() -> None:
    old = np.zeros(100, np.int64)
    payload = agree([old + np.iinfo(np.int64).min + np.arange(100)], [old])
    assert [lane.shift for lane in lanes_in(payload)] == [57]


def test_shifts_differ_between_lanes(rng: np.random.Generator) -> None:
    old = np.zeros(2000, np.int64)
    new = rng.integers(-9, 9, 2000) * 4 ** (np.arange(2000) // 100)
    payload = agree([new], [old], 6)
    assert len({lane.shift for lane in lanes_in(payload)}) > 15


@pytest.mark.parametrize("seed", slow_except([0, 1], range(8)))
def test_lanes_that_no_encoder_makes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both decoders read lanes of any shift, and lossy ones with any blocks."""
    rng = np.random.default_rng(seed)

    def any_block(_: Any, matrices: Any) -> Block:
        size = int(rng.choice([0, 2, 5, 64])) if matrices else 0
        return Block(size, int(rng.integers(size)) if size else 0)

    state = {
        "n": rng.integers(-9, 9, 900) * 9 ** rng.integers(0, 19, 900),
        "w": np.ldexp(rng.standard_normal((30, 40)), rng.integers(0, 20, (30, 40))).astype("f4"),
    }
    reference = {name: np.zeros_like(a) for name, a in state.items()}
    usual = slow.encode(state, reference, sparsity=0.2, step=30.0, lane_log2=6)
    monkeypatch.setattr(lanes_module, "choose_shift", lambda _: int(rng.integers(58)))
    monkeypatch.setattr(lanes_module, "choose_block", any_block)
    forged = slow.encode(state, reference, sparsity=0.2, step=30.0, lane_log2=6)
    assert forged != usual
    recovered = rfc.decode(usual, reference)
    assert_same(rfc.decode(forged, reference), recovered)
    assert_same(slow.decode(forged, reference), recovered)


# ---- Damage


def refuse(payload: bytes, reference: Any) -> None:
    for decode in (slow.decode, rfc.decode):
        with pytest.raises(rfc.PayloadError):
            decode(payload, reference)


def mismatch(payload: bytes, reference: Any) -> None:
    """All is legal, but the reference check is another payload's."""
    for decode in (slow.decode, rfc.decode):
        with pytest.raises(rfc.StateMismatchError, match="another reference"):
            decode(payload, reference)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "int64"])
def test_changes_that_do_not_fit(dtype: str) -> None:
    reference = [np.zeros(5, dtype)]
    f = read_frame(slow.encode([reference[0] + 1], reference, exclude="*"))
    most = 2 ** (8 * reference[0].itemsize - 1)

    def forged(level: int) -> bytes:
        tables, slices = encode_changes([(i, level) for i in range(5)], 10)
        return write_frame(replace(f, change_tables=tables, slices=slices))

    mismatch(forged(most - 1), reference)
    mismatch(forged(-most), reference)
    refuse(forged(most), reference)
    if dtype != "int64":
        refuse(forged(-most - 1), reference)


@pytest.mark.parametrize("dtype", ["int64", "float32"])
def test_levels_beyond_the_largest(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """-2^63 and 2^23 are the last ones."""
    reference = [np.zeros((2, 3), dtype)]
    f = read_frame(slow.encode([reference[0] + 1], reference, sparsity=0))

    def forged(level: int) -> bytes:
        nonzeros = [(i, level) for i in range(6)]
        if dtype == "int64":
            tables, slices = encode_changes(nonzeros, 10)
            return write_frame(replace(f, change_tables=tables, slices=slices))
        tables, slices = lanes_module.encode_nonzeros(nonzeros, [Matrix(0, 6, 3)])
        return write_frame(replace(f, tables=tables, slices=slices))

    name, last = ("LOSSLESS", -(2**63)) if dtype == "int64" else ("LOSSY", 2**23)
    part = getattr(lanes_module, name)
    with monkeypatch.context() as patched:
        patched.setattr(lanes_module, name, replace(part, most=2**64))
        legal, beyond = forged(last), forged(last + (1 if last > 0 else -1))
    mismatch(legal, reference)
    refuse(beyond, reference)


@pytest.mark.parametrize("kind", ["int16", "float32"])
@pytest.mark.parametrize("shift", [0, 1, 5])
@pytest.mark.parametrize("forged_symbol", [8, 15])
def test_levels_with_the_symbol_of_others(
    forged_symbol: int, shift: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Level 8 as one of 8 to 11, or any level as an escape."""
    reference = [np.zeros((2, 3), kind)]
    state = [np.full((2, 3), 8 << shift, kind)]
    state[0][0, 0] = 1  # from which levels of floats are counted, in steps of 1
    options: dict[str, Any] = {"sparsity": 0, "step": 1.0}

    def other_symbol(level: int, shift: int) -> int:
        return forged_symbol if (level - 1 >> shift) == 7 else level_symbol(level, shift)

    monkeypatch.setattr(lanes_module, "choose_shift", lambda _: shift)
    legal = slow.encode(state, reference, **options)
    assert_same(rfc.decode(legal, reference), slow.decode(legal, reference))
    monkeypatch.setattr(lanes_module, "level_symbol", other_symbol)
    forged = slow.encode(state, reference, **options)
    monkeypatch.undo()
    refuse(forged, reference)


@pytest.mark.parametrize(("shift", "block"), [(57, 0), (58, 0), (63, 0), (0, 2), (0, 64)])
def test_lanes_beyond_their_limits(shift: int, block: int) -> None:
    """Shifts above 57, and blocks in a lossless lane."""
    reference = [np.zeros(5, np.int32)]
    f = read_frame(slow.encode([reference[0] + 1], reference))
    (lane,) = lanes_in(write_frame(f))
    out = BitWriter()
    for _ in LOSSLESS.families:
        write_set(out, None)
    last = LastLane()
    write_lane(out, replace(lane, shift=shift, block=Block(block)), last)
    forged = write_frame(replace(f, change_tables=out.finish()))
    legal = (shift, block) == (57, 0)  # only the slice does not fit
    wrong = ("slice", "slice 0 is") if legal else ("an impossible", "of its tables is")
    for decode, what in zip((slow.decode, rfc.decode), wrong, strict=True):
        with pytest.raises(rfc.PayloadError, match=what):
            decode(forged, reference)


@pytest.mark.parametrize("n", slow_except([20], [20, 400]))
@pytest.mark.parametrize("where", ["tables", "slices"])
def test_both_see_the_same_in_forged_payloads(where: str, n: int, rng: np.random.Generator) -> None:
    reference = {
        "h": rng.standard_normal(400).astype(np.float16),
        "n": rng.integers(0, 99, 500),
        "d": rng.standard_normal(60),
    }
    state = {name: (a * 1.3).astype(a.dtype) for name, a in reference.items()}
    payload = slow.encode(state, reference, exclude="*", lane_log2=6)
    f = read_frame(payload)
    part = f.change_tables if where == "tables" else b"".join(f.slices)
    assert n_refused(payload, part, reference, n, rng) > n / 4  # others are bits of a level


@pytest.mark.parametrize("n_bytes", [-1, 1, 2])
def test_tables_of_another_length(n_bytes: int, rng: np.random.Generator) -> None:
    reference = [rng.integers(0, 99, 300)]
    f = read_frame(rfc.encode([reference[0] + rng.integers(0, 2, 300)], reference))
    tables = (f.change_tables + bytes(2))[: len(f.change_tables) + n_bytes]
    refuse(write_frame(replace(f, change_tables=tables)), reference)
