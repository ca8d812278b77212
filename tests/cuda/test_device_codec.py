"""Native encode and decode on a device, compared with the CPU: same bytes, same models.

They run on a CUDA device or in an emulated build (see CONTRIBUTING.md). Sizes lie around the
kernels' units (chunks of 4,096 elements, 32 lanes), and around those from which on thresholds are
estimated and the space for candidates is limited.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

import resfed_codec as rfc
from device_cases import Case, Result, bytes_of, random_pair, to_device
from models import State, cnn_pair, options, pairs
from resfed_codec import _native
from resfed_codec.codec.native_call import tensors_of
from resfed_codec.reference import scan
from resfed_codec.reference.bits import BitReader
from resfed_codec.reference.frame import read_frame
from resfed_codec.tensors.layout import views_of

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not rfc.cuda_available(), reason=_native.cuda_unavailable_reason()),
]


def assert_same_count(case: Case) -> tuple[int, int]:
    """How many elements of matrices and vectors count towards the sparsity, on host and device."""
    expected = _native.count_changed(case.tensors(on_device=False)[0])
    tensors, _ = case.tensors(on_device=True)
    assert _native.count_changed_on_device(tensors, 0, 0) == expected
    return expected


def assert_same_everywhere(case: Case) -> Result:
    """Encode and decode on host and device, into new arrays and in place."""
    expected = case.encode(on_device=False)
    assert_same_count(case)
    for in_place in (False, True):
        result = case.encode(on_device=True, in_place=in_place)
        if expected.error and in_place:
            expected = expected._replace(model=bytes_of(case.base))
        assert result == expected
        if expected.error or case.terms or case.feedback_given:
            continue
        decoded = case.decode(expected.payload, on_device=True, in_place=in_place)
        assert decoded == Result(model=expected.model)
    return expected


SHAPES = {"a": (37, 111), "b": (3, 4097), "c": (5,), "d": (1, 4096), "e": (), "f": (0, 3)}
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.float64]


@settings(max_examples=40)
@given(pairs(), options())
def test_any_model(pair: tuple[State, State], config: dict[str, Any]) -> None:
    assert_same_everywhere(Case(*pair, **config))


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: Any, sparsity: float) -> None:
    assert_same_everywhere(Case(*random_pair(SHAPES, dtype), sparsity=sparsity))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("feedback", [False, True])
def test_terms_and_feedback(dtype: Any, feedback: bool) -> None:
    state, reference = random_pair(SHAPES, dtype)
    _, other = random_pair({name: shape[::-1] for name, shape in SHAPES.items()}, dtype)
    history = [
        [view.array.reshape(SHAPES[view.spec.name]) for view in views_of(model, "model")]
        for model in (reference, other)
    ]
    for terms in ([], [(history[0], 1.0)], [(history[0], 1.5), (history[1], -0.5)]):
        case = Case(state, reference, feedback=feedback, terms=terms, sparsity=0.9)
        assert_same_everywhere(case)


@pytest.mark.parametrize(
    "config",
    [
        {"step": 0.01, "sparsity": 0.5},
        {"bits": 1},
        {"bits": 8, "sparsity": 0.5},
        {"max_bytes": 500},
        {"max_error": 0.5},
        {"exclude": ("conv*",)},
        {"dense": ("fc.bias",), "dense_bits": 5},
    ],
)
def test_options(config: dict[str, Any], rng: np.random.Generator) -> None:
    assert_same_everywhere(Case(*cnn_pair(rng), **config))


@pytest.mark.parametrize("n", [31, 32, 33, 4095, 4096, 4097, 8193])
def test_sizes_around_chunks(n: int) -> None:
    assert_same_everywhere(Case(*random_pair({"a": (n, 1), "b": (1, n)}), sparsity=0.9))


@pytest.mark.parametrize("k", [1, 31, 32, 33, 95, 96, 97, 2015, 2016, 2017, 2079, 2080, 2081, 4161])
def test_counts_around_lanes_and_slices(k: int) -> None:
    """Lanes of 64 nonzeros, 32 of them in a slice."""
    state, reference = random_pair({"a": (100, 101)})
    case = Case(state, reference)
    case.options.k_matrix = k
    case.options.lane_log2 = 6
    assert_same_everywhere(case)


@pytest.mark.parametrize("lane_log2", [6, 8, 12])
def test_lane_sizes(lane_log2: int) -> None:
    case = Case(*random_pair(SHAPES), sparsity=0.3)
    case.options.lane_log2 = lane_log2
    assert_same_everywhere(case)


def structured(rng: np.random.Generator) -> tuple[State, State]:
    """A few matrices near an outer product, some of whose rows and columns are zero; convolutions
    some of whose kernels are."""
    state = {}
    for i in range(rng.integers(1, 5)):
        n_rows, n_cols = (int(n) for n in np.exp(rng.uniform(0, 5, 2)) + 1)
        share = rng.random(3)
        width = rng.choice([1, 8])  # columns that lie together
        rows = rng.random((n_rows, 1)) < share[0]
        cols = np.repeat(rng.random((1, n_cols // width + 1)) < share[1], width, axis=1)[:, :n_cols]
        if i == 3:
            state["conv"] = rng.standard_normal((n_rows, 4, 3, 3)) * rows[..., None, None]
            continue
        value = np.multiply.outer(rng.standard_normal(n_rows), rng.standard_normal(n_cols))
        if i == 1:
            value = np.sign(value) * (rng.random(value.shape) < share[2])
        noise = rng.standard_normal(value.shape) * rng.choice([0, 0.001, 0.3])
        state[f"w{i}"] = value * rows * cols + noise
    state["b"] = rng.standard_normal(50)
    state = {name: np.float32(value) for name, value in state.items()}
    return state, {name: np.zeros_like(value) for name, value in state.items()}


def scans_in(payload: bytes, case: Case) -> list[scan.Scan]:
    matrices, begin = [], 0
    for spec, role in zip(case.specs, case.roles, strict=True):
        if role == _native.Role.MATRIX:
            matrices.append(scan.Matrix(begin, spec.n_elems, spec.row_length))
            begin += spec.n_elems
    return scan.read_scans(BitReader(read_frame(payload).tables), matrices)


def test_scan_orders_and_damage_to_them() -> None:
    kinds, codes = set(), set()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        case = Case(*structured(rng), sparsity=float(rng.choice([0.3, 0.7, 0.9, 0.97])))
        case.options.lane_log2 = int(rng.choice([6, 8, 10]))
        payload = assert_same_everywhere(case).payload
        for found in scans_in(payload, case):
            kinds |= {(found.columns, found.flips is not None)}
            kinds |= {"rows"} if found.rows is not None else set()
            kinds |= {"cols"} if found.cols is not None else set()
        for _ in range(3):
            forged = bytearray(payload)
            at = rng.integers(40, min(len(payload) - 4, 200))  # mostly in the tables
            forged[at] ^= 1 << rng.integers(8)
            forged[-4:] = _native.crc32c(bytes(forged[:-4])).to_bytes(4, "little")
            expected = case.decode(bytes(forged), on_device=False)
            result = case.decode(bytes(forged), on_device=True)
            assert result.error[:1] == expected.error[:1]
            assert expected.error or result == expected
            codes |= set(expected.error[:1])
    assert kinds == {(c, f) for c in (False, True) for f in (False, True)} | {"rows", "cols"}
    assert {_native.Code.BAD_SLICE, _native.Code.BAD_TABLES} <= codes


@pytest.mark.parametrize("sparsity", [0.999, 0.99, 0.7])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_estimated_threshold(dtype: Any, sparsity: float) -> None:
    """From about 131,000 elements on the threshold is estimated from a sample."""
    assert_same_everywhere(Case(*random_pair({"a": (300, 700)}, dtype), sparsity=sparsity))


@pytest.mark.parametrize("sparsity", [0.99, 0.4])
def test_more_equal_residuals_than_candidate_space(sparsity: float) -> None:
    """All pass the estimated threshold, so the encoder must find the exact one."""
    state, reference = {"a": np.zeros((600, 1000), "f4")}, {"a": np.zeros((600, 1000), "f4")}
    state["a"].flat[::2] = 1
    state["a"].flat[::3] = -1
    assert_same_everywhere(Case(state, reference, sparsity=sparsity))
    state, reference = random_pair({"a": (300, 1000), "b": (7, 1001)}, grid=0.02)
    assert_same_everywhere(Case(state, reference, sparsity=sparsity))


def test_escaped_gaps_and_levels() -> None:
    """Isolated values of all magnitudes."""
    rng = np.random.default_rng(5)
    state = {"a": np.zeros((1000, 1000), np.float32)}
    at = rng.choice(10**6, 4000, replace=False)
    state["a"].flat[at] = np.exp(rng.uniform(0, 15, 4000)) * rng.choice([-1, 1], 4000)
    reference = {"a": np.zeros((1000, 1000), np.float32)}
    assert_same_everywhere(Case(state, reference, sparsity=0.996, step=5.0))


def test_unaligned_tensors() -> None:
    """Unaligned views are read element by element."""
    state, reference = random_pair({"a": (50, 101)}, np.float16)
    case = Case(state, reference, sparsity=0.9)
    expected = case.encode(on_device=False)
    size = case.base[0].size
    moved = []
    for array in (case.current[0], case.base[0]):
        padded = to_device(np.concatenate([np.zeros(1, np.float16), array.ravel()]))
        moved.append(padded.flat(1, size))
        assert moved[-1].pointer == padded.pointer + 2
    out = to_device(np.zeros_like(case.base[0]))
    tensors = tensors_of(case.specs, case.roles, moved[1:], current=moved[:1], out=[out])
    assert _native.encode_on_device(tensors, case.options, 0, 0) == expected.payload
    assert bytes_of([out]) == expected.model


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_without_any_residual(dtype: Any) -> None:
    """The only residual of a tensor is its first, one around the end of a chunk, or its last."""
    sizes = (1, 4095, 4096, 4097, 12_289)
    reference = {f"{n}": np.zeros((1, n), dtype) for n in sizes} | {"v": np.zeros(5, dtype)}
    assert assert_same_count(Case(reference, reference)) == (0, 0)
    assert assert_same_count(Case(reference, reference, feedback=True)) == (sum(sizes), 5)
    for n in sizes:
        for at in {0, min(4095, n - 1), min(4096, n - 1), n - 1}:
            state = {name: value.copy() for name, value in reference.items()}
            state[f"{n}"][0, at] = 1
            case = Case(state, reference)
            assert assert_same_count(case) == (n, 0)
    assert_same_everywhere(case)


def test_more_frozen_tensors_than_blocks() -> None:
    shapes = {f"{i:04}": (1, 1 + i % 3) for i in range(1500)}
    state, reference = random_pair(shapes)
    state |= {name: reference[name] for i, name in enumerate(shapes) if i % 7}
    assert_same_everywhere(Case(state, reference))


def test_many_tensors() -> None:
    shapes = {f"{i:03}": (1 + i % 7, 1 + i % 5) for i in range(700)}
    assert_same_everywhere(Case(*random_pair(shapes), sparsity=0.9))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["conv.weight", "fc.weight", "fc.bias", "norm.running_var"])
def test_not_finite(name: str, value: float, rng: np.random.Generator) -> None:
    for sparsity in (0.99, 1.0):
        state, reference = cnn_pair(rng)
        state[name].flat[state[name].size // 2 :] = value
        result = assert_same_everywhere(Case(state, reference, sparsity=sparsity))
        assert result.error[2] == state[name].size // 2
    state, reference = random_pair({"a": (600, 1000)})
    state["a"].flat[[399_999, 500_000]] = value
    assert assert_same_everywhere(Case(state, reference)).error == (40, 0, 399_999)


def test_damaged_slices_change_nothing(rng: np.random.Generator) -> None:
    """With valid checksums: the same errors as on the CPU, and nothing written."""
    case = Case(*cnn_pair(rng), sparsity=0.5)
    payload = case.encode(on_device=False).payload
    before = bytes_of([np.zeros_like(array) for array in case.base])
    n_errors = 0
    for position in range(30, len(payload) - 4, 97):
        forged = bytearray(payload)
        forged[position] ^= 1 << position % 8
        forged[-4:] = _native.crc32c(bytes(forged[:-4])).to_bytes(4, "little")
        expected = case.decode(bytes(forged), on_device=False)
        result = case.decode(bytes(forged), on_device=True)
        assert bool(result.error) == bool(expected.error)
        if expected.error:
            n_errors += 1
            assert result.model == before
            assert result.error[0] == expected.error[0]
    assert n_errors > 10


def test_wrong_reference(rng: np.random.Generator) -> None:
    state, reference = cnn_pair(rng)
    payload = Case(state, reference).encode(on_device=False).payload
    other = {**reference, "conv.weight": reference["conv.weight"] + np.float32(1)}
    case = Case(state, other)
    result = case.decode(payload, on_device=True, in_place=True)
    assert result.error[0] == 21
    assert result.model == bytes_of(case.base)


def test_calls_in_turn_grow_and_shrink(rng: np.random.Generator) -> None:
    for shape in ((4, 5), (300, 700), (40, 50), (500, 300)):
        assert_same_everywhere(Case(*random_pair({"a": shape, "b": (9,)}), sparsity=0.9))
        if shape == (40, 50):
            _native.release_workspace()


@pytest.mark.skipif(
    not rfc.cuda_available() or not _native.cuda_is_emulated(), reason="a real device"
)
def test_out_of_memory_changes_nothing() -> None:
    case = Case(*random_pair({"a": (300, 700), "b": (9,)}), feedback=True)
    expected = case.encode(on_device=False)
    before = bytes_of(case.base)
    _native.release_workspace()
    failures = 0
    for limit in range(200_000, 8_000_000, 200_000):
        _native.emulate("memory_limit", limit)
        try:
            result = case.encode(on_device=True, in_place=True)
        except _native.NativeError:  # no memory for the model itself
            continue
        finally:
            _native.emulate("memory_limit", 2**62)
        if not result.error:
            break
        assert result.error[0] == 61
        assert result.model == before
        failures += 1
    assert failures > 0
    assert result == expected


def test_real_residuals(snapshots: dict[str, State]) -> None:
    for sparsity in (0.95, 0.99):
        assert_same_everywhere(Case(snapshots["l0_7"], snapshots["g6"], sparsity=sparsity))
