"""Nonzeros: both implementations choose the same scan orders, blocks and tables, and code alike."""

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
from models import State, assert_same, clustered, cnn_pair
from resfed_codec import _native
from resfed_codec import reference as slow
from resfed_codec.reference import lanes as lanes_module
from resfed_codec.reference import scan as scan_module
from resfed_codec.reference.bits import BitReader, BitWriter
from resfed_codec.reference.frame import read_frame, write_frame
from resfed_codec.reference.lanes import (
    LOSSY,
    LastLane,
    codes_of,
    lane_sizes,
    lanes_of,
    read_tables,
    write_lane,
)
from resfed_codec.reference.rans import Decoder, Encoder, code_pieces
from resfed_codec.reference.scan import Cells, Matrix, Scan, scan, write_scan
from resfed_codec.reference.symbols import gap_class, gap_symbol, level_class, level_symbol
from resfed_codec.reference.tables import (
    FITTED,
    N_ROWS,
    FittedRow,
    FittedSet,
    log2_in_32nds,
    normalized,
    trained,
    write_set,
)
from two_codecs import assert_agree, n_refused, native_lanes, tables_in


def pair_of(update: State, rng: np.random.Generator, dtype: Any = "float32") -> tuple[State, State]:
    reference = {n: rng.standard_normal(v.shape).astype(dtype) for n, v in update.items()}
    state = {n: (v + update[n].astype(dtype)).astype(dtype) for n, v in reference.items()}
    return state, reference


# ---- 5.1 Scan order


def outer(shape: tuple[int, int], rng: np.random.Generator, *, spread: tuple[int, int]) -> Any:
    """A noisy outer product; the larger the spread, the fewer rows and columns matter."""
    rows, cols = (rng.standard_normal(n) ** power for n, power in zip(shape, spread, strict=True))
    return np.outer(rows, cols) + 0.002 * rng.standard_normal(shape)


def scan_pair(rng: np.random.Generator, dtype: Any = "float32") -> tuple[State, State]:
    """Matrices of which each has a scan order of its own kind, between other tensors."""
    rows = np.zeros((300, 30))
    rows[::23] = rng.standard_normal((14, 30))
    everything = np.zeros((300, 30))  # signs alternate in a row, and some rows are flipped
    everything[5::23] = np.outer(rng.choice([-1.0, 1.0], 13), np.tile([1.0, -1.0], 15))
    update = {
        "a.bias": rng.standard_normal(30) * 0.1,
        "b.rows": rows,
        "c.conv": rng.standard_normal((5, 6, 3, 3)) ** 3,
        "d.cols": rows.T.copy(),
        "e.flips": np.outer(np.abs(rng.standard_normal(60)), rng.choice([-1.0, 1.0], 40)) ** 3,
        "f.columns": np.outer(rng.choice([-1.0, 1.0], 150), rng.standard_normal(40) ** 5),
        "g.line": rng.standard_normal((1, 200)) ** 3,
        "g.everything": everything,
        "h.empty": np.zeros((0, 4)),
        "i.column": rng.standard_normal((200, 1)) ** 3,
        "j.plain": rng.standard_normal((50, 30)),
        "k.unsent": 1e-6 * rng.standard_normal((8, 8)),
    }
    return pair_of(update, rng, dtype)


@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16, "float32", "float64"])
def test_all_kinds_of_scans(dtype: Any, rng: np.random.Generator) -> None:
    state, reference = scan_pair(rng, dtype)
    seen = set()
    for sparsity in (0.5, 0.8):
        payload = assert_agree(state, reference, {"sparsity": sparsity})
        for s in tables_in(payload, reference).scans:
            seen |= {"columns"} if s.columns else {"lines are rows"}
            seen |= {"rows"} if s.rows is not None else {"all rows"}
            seen |= {"cols"} if s.cols is not None else {"all cols"}
            seen |= {"flips"} if s.flips is not None else {"no flips"}
            seen |= {"plain"} if s == Scan(s.shape) else set()
            seen |= {"everything"} if s.columns and s.flips and (s.rows or s.cols) else set()
    assert seen == {
        *("columns", "lines are rows", "rows", "all rows", "cols", "all cols"),
        *("flips", "no flips", "plain", "everything"),
    }


@pytest.mark.parametrize("sparsity", [0.0, 0.7, 0.95, 0.99])
@pytest.mark.parametrize(
    "shape", [(120, 90), (700, 2), (2, 700), (40, 1), (1, 40), (1, 1), (3, 2000)]
)
@pytest.mark.parametrize("spread", [(1, 3), (3, 1), (5, 5)])
def test_outer_products(
    shape: tuple[int, int], sparsity: float, spread: tuple[int, int], rng: np.random.Generator
) -> None:
    update = {
        "a": clustered((4, 5), rng, 1.0),
        "b": outer(shape, rng, spread=spread),
        "c": rng.standard_normal((7, 3, 2)),
        "d": outer((20, 30), rng, spread=spread),
        "e": rng.standard_normal(30),
    }
    assert_agree(*pair_of(update, rng), {"sparsity": sparsity}, 8)


@pytest.mark.parametrize("together", [False, True])
def test_columns_are_left_out_if_gaps_become_shorter(
    together: bool, rng: np.random.Generator
) -> None:
    """Columns of kernels lie together, and so most gaps are 1 with all columns, too."""
    sent = np.repeat(rng.random(128) < 0.4, 16) if together else rng.random(2048) < 0.4
    state, reference = pair_of({"w": rng.standard_normal((5, 2048)) * sent}, rng)
    payload = assert_agree(state, reference, {"sparsity": 1 - sent.mean()})
    (found,) = tables_in(payload, reference).scans
    assert (found.cols is None) == together


def test_rows_stay_where_lines_are_rows(rng: np.random.Generator) -> None:
    """Leaving out all but a few rows makes only the gaps between rows shorter."""
    update = np.zeros((800, 64))
    update[::200] = rng.standard_normal((4, 64))
    state, reference = pair_of({"w": update}, rng)
    (found,) = tables_in(assert_agree(state, reference, {"sparsity": 0.995}), reference).scans
    assert found == Scan((800, 64))


def test_scans_save_bytes(rng: np.random.Generator) -> None:
    update = {"w": outer((300, 90), rng, spread=(1, 3))}
    state, reference = pair_of(update, rng)
    flat_state, flat = ({n: v.reshape(1, -1) for n, v in m.items()} for m in (state, reference))
    scanned = rfc.encode(state, reference, sparsity=0.9)
    assert len(scanned) < 0.85 * len(rfc.encode(flat_state, flat, sparsity=0.9))


@pytest.mark.parametrize("sparsity", [0.0, 0.9, 0.99])
def test_signs_without_a_pattern_are_not_flipped(sparsity: float, rng: np.random.Generator) -> None:
    update = {"w": rng.standard_normal((400, 50)), "x": rng.standard_normal((2000, 10))}
    state, reference = pair_of(update, rng)
    scans = tables_in(rfc.encode(state, reference, sparsity=sparsity), reference).scans
    assert [s.flips for s in scans] == [None, None]


# ---- Blocks


def blocks_pair(
    shape: tuple[int, ...], rng: np.random.Generator, *, outputs: int = 10, side: int = 4
) -> tuple[State, State]:
    """A convolution whose kernels differ in scale, followed by a flattened layer."""
    scale = rng.lognormal(0, 2, shape[:2] + (1,) * (len(shape) - 2))
    channels = rng.lognormal(0, 2, (outputs, shape[0], 1))
    update = {
        "a.bias": rng.standard_normal(7),
        "b.conv": scale * rng.standard_normal(shape),
        "c.head": (channels * rng.standard_normal((outputs, shape[0], side))).reshape(outputs, -1),
    }
    return pair_of(update, rng)


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.98])
@pytest.mark.parametrize(
    "shape", [(24, 32, 3, 3), (30, 5, 2, 5, 5), (16, 9, 64), (16, 9, 65), (40, 60, 1, 1), (0, 3, 3)]
)
def test_blocks(shape: tuple[int, ...], sparsity: float, rng: np.random.Generator) -> None:
    """Lanes of one tensor and of two; blocks up to the maximum size and beyond it."""
    assert_agree(*blocks_pair(shape, rng), {"sparsity": sparsity}, 8)


@pytest.mark.parametrize("side", [1, 2, 16, 49, 81])
def test_blocks_that_flattening_made(side: int, rng: np.random.Generator) -> None:
    pair = blocks_pair((12, 8, 3, 3), rng, outputs=60, side=side)
    assert_agree(*pair, {"sparsity": 0.9}, 7)


def test_lanes_with_and_without_blocks(rng: np.random.Generator) -> None:
    state, reference = blocks_pair((24, 32, 3, 3), rng, side=16)
    state["d.plain"] = clustered((90, 90), rng, 1.0)
    reference["d.plain"] = np.zeros((90, 90), np.float32)
    lanes = tables_in(assert_agree(state, reference, {"sparsity": 0.8}, 7), reference).lanes
    assert {lane.block.size for lane in lanes} == {0, 9, 16}
    assert len({lane.block.position for lane in lanes}) > 5


def test_blocks_save_bytes(rng: np.random.Generator) -> None:
    update = {
        "b.conv": rng.uniform(1, 2, (64, 32, 3, 3)) * (rng.random((64, 32, 1, 1)) < 0.1),
        "c.head": (rng.uniform(1, 2, (10, 64, 16)) * (rng.random((10, 64, 1)) < 0.1)).reshape(
            10, -1
        ),
    }
    state = {n: v.astype(np.float32) for n, v in update.items()}
    reference = {n: np.zeros_like(v) for n, v in state.items()}
    without = tuple(
        {n: v.reshape(v.shape[0], -1, 1, 1) for n, v in model.items()}
        for model in (state, reference)
    )
    ours = len(rfc.encode(state, reference, sparsity=0.85))
    assert ours < 0.95 * len(rfc.encode(*without, sparsity=0.85))


# ---- 5.2 to 5.4 Lanes, slices, escapes


@pytest.mark.parametrize("k", [1535, 1536, 1537, 7000])
def test_lanes(k: int, rng: np.random.Generator) -> None:
    """Two lanes from 1536 nonzeros on; gaps cross from one to the next."""
    reference = [np.zeros((100, 100), np.float32)]
    state = [clustered((100, 100), rng)]
    payload = assert_agree(state, reference, {"sparsity": 1 - k / 10_000})
    assert rfc.inspect(payload).n_nonzero == k
    assert read_frame(payload).n_lanes == {1535: 1, 1536: 2, 1537: 2, 7000: 7}[k]


@pytest.mark.parametrize("k", [2015, 2016, 2080, 4127, 4128])
def test_many_slices(k: int, rng: np.random.Generator) -> None:
    """Up to 32 lanes make a slice; the lanes of a slice may differ in length by one."""
    reference = [np.zeros((100, 100), np.float32)]
    state = [clustered((100, 100), rng)]
    payload = assert_agree(state, reference, {"sparsity": round(1 - k / 10_000, 4)}, 6)
    n_lanes = {2015: 31, 2016: 32, 2080: 33, 4127: 64, 4128: 65}[k]
    assert read_frame(payload).n_lanes == n_lanes
    assert len(rfc.inspect(payload).lossy_slices) == -(-n_lanes // 32)


@pytest.mark.parametrize("lane_log2", range(6, 13))
def test_lane_sizes(lane_log2: int, rng: np.random.Generator) -> None:
    assert_agree(*cnn_pair(rng), {"sparsity": 0.5}, lane_log2)


def test_gaps_beyond_the_escape() -> None:
    """Gaps of up to 2^19, around the first that is escaped and around 2^16."""
    state = np.zeros((2**20, 1, 1), np.float32)
    gaps = [1, 2**15 - 1, 2**15, 2**15 + 1, 2**16 - 1, 2**16, 3, 2**17 + 12345, 1, 2**19]
    state[np.cumsum(gaps) - 1] = np.arange(1, 11).reshape(-1, 1, 1)
    config = {"sparsity": 1 - 10 / 2**20}
    payload = assert_agree([state], [np.zeros_like(state)], config)
    assert rfc.inspect(payload).n_nonzero == len(gaps)


def test_levels_beyond_the_escape() -> None:
    state = [np.ldexp(np.float32(1), np.arange(400, dtype=np.int32).reshape(20, 20) % 41 - 20)]
    assert_agree(state, [np.zeros((20, 20), np.float32)], {"sparsity": 0.1, "step": 100.0}, 6)


def test_every_level(rng: np.random.Generator) -> None:
    """All levels up to twice the first one that is escaped."""
    state = [(1 + np.arange(200)).astype(np.float32)[rng.permutation(200)].reshape(10, 20)]
    payload = assert_agree(state, [np.zeros((10, 20), np.float32)], {"sparsity": 0, "step": 1.0})
    assert rfc.inspect(payload).n_nonzero == 200


def test_symbols() -> None:
    assert [gap_symbol(g) for g in (1, 7, 8, 11, 12, 15, 16, 23, 24, 2**15 - 1, 2**15)] == [
        *(0, 6, 7, 7, 8, 8, 9, 9, 10, 30, 31)
    ]
    assert [level_symbol(n) for n in (1, 8, 9, 11, 12, 15, 16, 63, 64, 95, 96, 2**23)] == [
        *(0, 7, 8, 8, 9, 9, 10, 13, 14, 14, 15, 15)
    ]
    assert [level_symbol(n, 3) for n in (1, 8, 9, 64, 65, 72, 73, 88, 89, 760, 761, 2**63)] == [
        *(0, 0, 1, 7, 8, 8, 8, 8, 9, 14, 15, 15)
    ]


@given(st.integers(1, 2**15 - 1), st.integers(1, 2**63), st.integers(0, 57))
def test_classes(gap: int, level: int, shift: int) -> None:
    """A value lies in the class of its symbol, and its raw bits are as many as the class needs."""
    first, n_bits = gap_class(gap_symbol(gap))
    assert 0 <= gap - first < 2**n_bits
    symbol = level_symbol(level, shift)
    if symbol == 15:
        assert level > 95 << shift
    else:
        first, n_bits = level_class(symbol, shift)
        assert 0 <= level - first < 2**n_bits
        assert level_symbol(first + 2**n_bits - 1, shift) == symbol


@given(
    gaps=st.lists(st.integers(1, 40), min_size=1, max_size=150),
    seed=st.integers(0, 99),
    row_length=st.sampled_from([0, 1, 7, 12]),
    block=st.sampled_from([0, 2, 3, 9, 64, 65]),
    lane_log2=st.integers(6, 7),
)
def test_rows_and_symbols(
    gaps: list[int], seed: int, row_length: int, block: int, lane_log2: int
) -> None:
    """What native code calls a trace: both find the same symbols in the same rows."""
    rng = np.random.default_rng(seed)
    levels = (np.ceil(rng.lognormal(0, 2, len(gaps))) * rng.choice([-1, 1], len(gaps))).astype(int)
    indices = np.cumsum(gaps) - 1
    size = 84 * 80  # beyond the largest index
    matrices = [Matrix(84, size - 84, row_length, block)]
    symbols = [(int(i), int(v)) for i, v in zip(indices, levels, strict=True)]
    native = _native.trace(
        indices.tolist(), levels.tolist(), [(84, size - 84, row_length, block)], lane_log2
    )
    scanned = scan(symbols, matrices, BitWriter())
    lanes = lanes_of(LOSSY, scanned, lane_sizes(len(symbols), lane_log2), matrices)
    expected = []
    for lane in lanes:
        codes = (np.array(c, np.uint16).tobytes() for c in codes_of(lane))
        expected.append((lane.block.size > 0, *codes))
    assert native == expected


# ---- 5.6 Tables


def odd_pair(n: int, rng: np.random.Generator) -> tuple[State, State]:
    """Nonzeros unlike those of any training: few gaps and few levels, with blocks and without."""
    kernels, scattered = np.zeros((n, 1, 3, 3)), np.zeros((9 * n, 1, 1))
    kernels[rng.random(n) < 0.5, :, 2] = 1
    scattered[np.cumsum(rng.choice([3, 11], 9 * n // 11))] = 1
    state = {
        name: (v * rng.choice([-12.0, -1.0, 1.0, 12.0], v.shape)).astype(np.float32)
        for name, v in {"kernels": kernels, "scattered": scattered}.items()
    }
    return state, {name: np.zeros_like(v) for name, v in state.items()}


def test_sets_trained_and_fitted(rng: np.random.Generator) -> None:
    """Every family is used with a set of its own and without."""
    few, many = (odd_pair(n, rng) for n in (60, 2000))
    for pair, expected in (few, set()), (many, {*LOSSY.families}):
        tables = tables_in(assert_agree(*pair, {"sparsity": 0}, 6), pair[1])
        assert {*tables.fitted} == expected
        used = {
            f: n for lane in tables.lanes for f, n in zip(lane.families, lane.sets, strict=True)
        }
        assert {*used} == {*LOSSY.families}
        assert (FITTED in used.values()) == bool(expected)


def test_lanes_change_between_sets(rng: np.random.Generator) -> None:
    state, reference = blocks_pair((48, 32, 3, 3), rng, side=9)
    state["d.plain"] = clustered((150, 60), rng, 1.0)
    reference["d.plain"] = np.zeros((150, 60), np.float32)
    tables = tables_in(assert_agree(state, reference, {"sparsity": 0.6}, 6), reference)
    assert len({lane.sets for lane in tables.lanes}) > 4
    rows = [(row.source == s.base, row.ratios) for s in tables.fitted.values() for row in s.rows]
    assert any(ratios for _, ratios in rows)
    assert not all(same for same, _ in rows)


@pytest.mark.parametrize("seed", slow_except([0], range(5)))
def test_sets_that_no_encoder_fits(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both decoders read rows of all kinds, with all ratios."""
    rng = np.random.default_rng(seed)

    def any_set(family: str, _: Any) -> FittedSet:
        rows = []
        for _ in range(N_ROWS[family]):
            ratios = rng.integers(-14, 15, rng.integers(33)) * (rng.random() < 0.5)
            rows.append(FittedRow(int(rng.choice([3, rng.integers(16)])), ratios.tolist()))
        return FittedSet(3, rows)

    state, reference = odd_pair(300, rng)
    state["more"], reference["more"] = clustered((30, 40), rng, 9.0), np.zeros((30, 40), np.float32)
    usual = slow.encode(state, reference, sparsity=0, lane_log2=6)
    monkeypatch.setattr(lanes_module, "fit_set", any_set)
    monkeypatch.setattr(lanes_module, "choose_set", lambda *_: int(rng.choice([16, 16, 0, 15])))
    forged = slow.encode(state, reference, sparsity=0, lane_log2=6)
    assert {*tables_in(forged, reference).fitted} == {*LOSSY.families}
    assert forged != usual
    recovered = rfc.decode(usual, reference)
    assert_same(rfc.decode(forged, reference), recovered)
    assert_same(slow.decode(forged, reference), recovered)


@pytest.mark.parametrize("seed", slow_except([0, 1], range(12)))
def test_scans_that_no_encoder_chooses(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both decoders undo any scan."""
    rng = np.random.default_rng(seed)

    def any_scan(cells: Cells, shape: tuple[int, int]) -> Scan:
        rows, cols = (
            sorted({*here, *rng.integers(0, n, 3).tolist()}) if rng.random() < 0.7 else None
            for here, n in zip(
                ({row for row, _ in cells}, {col for _, col in cells}), shape, strict=True
            )
        )
        scan = Scan(shape, bool(rng.random() < 0.5), rows, cols)
        return replace(scan, flips=(rng.random(scan.lines[1]) < 0.5).tolist())

    state, reference = scan_pair(rng)
    usual = slow.encode(state, reference, sparsity=0.9)
    monkeypatch.setattr(scan_module, "choose_scan", any_scan)
    forged = slow.encode(state, reference, sparsity=0.9)
    assert forged != usual
    recovered = rfc.decode(usual, reference)
    assert_same(rfc.decode(forged, reference), recovered)
    assert_same(slow.decode(forged, reference), recovered)


def test_nonzeros_outside_what_is_kept(rng: np.random.Generator) -> None:
    """Both refuse an index between the last kept element and the end of its matrix."""
    state = {"a": np.zeros((8, 8), np.float32), "b": np.ones((2, 1, 1), np.float32)}
    state["a"][[0, 7], 0] = 1
    reference = {name: np.zeros_like(v) for name, v in state.items()}
    f = read_frame(slow.encode(state, reference, sparsity=0))
    (lane,) = read_tables(LOSSY, f.tables, [Matrix(0, 64, 8), Matrix(64, 2)], 1).lanes

    def tables(scan: Scan) -> bytes:
        out = BitWriter()
        write_scan(out, scan)
        for _ in LOSSY.families:
            write_set(out, None)
        write_lane(out, lane, LastLane())
        return out.finish()

    assert tables(Scan((8, 8))) == f.tables
    forged = write_frame(replace(f, tables=tables(Scan((8, 8), rows=[0, 7]))))
    with pytest.raises(rfc.PayloadError, match="left out"):
        slow.decode(forged, reference)
    with pytest.raises(rfc.PayloadError):
        rfc.decode(forged, reference)


def test_integers_in_the_place_of_logarithms() -> None:
    for number in [*range(1, 5000), 2**20 - 1, 2**31 + 1, 2**38 + 12345, 2**46]:
        assert abs(log2_in_32nds(number) - 32 * np.log2(number)) < 0.52
    assert normalized([1] * 32) == (128,) * 32
    assert normalized([1, 0] * 16) == (256 - 15 - 1, 1, *(256, 1) * 15)


@given(st.lists(st.tuples(st.integers(0, 2**12 - 1), st.integers(12, 20)), max_size=20))
def test_bits(numbers: list[tuple[int, int]]) -> None:
    out = BitWriter()
    for number, n_bits in numbers:
        out.put(number, n_bits)
        out.put_gamma(number + 1)
    reader = BitReader(out.finish())
    for number, n_bits in numbers:
        assert reader.get(n_bits) == number
        assert reader.get_gamma(2**12) == number + 1
    reader.finish()


def test_interleaved_rans(rng: np.random.Generator) -> None:
    rows = trained("gaps")[3]
    made = [(int(a), int(b), int(c)) for a, b, c in rng.integers(0, [3, 32, 32], (500, 3))]
    encoder = Encoder(3)
    for lane, row, symbol in made:
        encoder.symbol(lane, rows[row], symbol)
        encoder.raw(lane, row, 5)
        encoder.raw(lane, 40000, 16)
        encoder.raw(lane, 0, 0)
        code_pieces(encoder, lane, 1, 2**62 + symbol, 63)
    decoder = Decoder(3, encoder.finish())
    for lane, row, symbol in made:
        assert decoder.symbol(lane, rows[row], 0) == symbol
        assert decoder.raw(lane, 0, 5) == row
        assert decoder.raw(lane, 0, 16) == 40000
        assert decoder.raw(lane, 0, 0) == 0
        assert code_pieces(decoder, lane, 1, 0, 63) == 2**63 + 2**62 + symbol
    decoder.finish()


# ---- Damage


@pytest.mark.parametrize("n", slow_except([20], [20, 400]))
@pytest.mark.parametrize("where", ["tables", "slices"])
def test_both_see_the_same_in_forged_payloads(where: str, n: int, rng: np.random.Generator) -> None:
    """Damage under a checksum that is right: the same error, or the same model."""
    state, reference = scan_pair(rng)
    with native_lanes(6):
        payload = rfc.encode(state, reference, sparsity=0.95)
    f = read_frame(payload)
    assert write_frame(f) == payload
    part = f.tables if where == "tables" else b"".join(f.slices)
    assert n_refused(payload, part, reference, n, rng) > n / 2


@pytest.mark.parametrize("n_bytes", [-1, 1, 2])
def test_tables_of_another_length(n_bytes: int, rng: np.random.Generator) -> None:
    state, reference = scan_pair(rng)
    f = read_frame(rfc.encode(state, reference, sparsity=0.7))
    forged = write_frame(replace(f, tables=(f.tables + bytes(2))[: len(f.tables) + n_bytes]))
    for decode in (slow.decode, rfc.decode):
        with pytest.raises(rfc.PayloadError):
            decode(forged, reference)
