"""Lossless tensors on a device, and models that have no others.

See test_device_codec.py. From 4,096 elements on the device codes lossless tensors, fewer are left
to the host. Sizes lie around a tile (32,768 elements) and around what a warp takes of it (2,048).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_device_codec import SHAPES, assert_same_everywhere
from test_device_levels import decode_everywhere

import resfed_codec as rfc
from device_cases import Case, bytes_of, random_pair
from models import FLOATS, INTEGERS, State, cnn_pair, options, pairs
from resfed_codec import _native
from resfed_codec.reference import lanes as lanes_module
from resfed_codec.reference.frame import read_frame, write_frame
from resfed_codec.reference.lanes import LOSSLESS

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not rfc.cuda_available(), reason=_native.cuda_unavailable_reason()),
]

EXACT = [np.float32, np.float16, ml_dtypes.bfloat16, np.float64, np.complex64]
LEAST = 4096


def padded(pair: tuple[State, State], n: int = LEAST) -> tuple[State, State]:
    """With so many elements more that do not change: the device codes the lossless tensors."""
    return tuple({**model, "padding": np.zeros(n, np.int8)} for model in pair)  # type: ignore


def any_changes(rng: np.random.Generator, n: int, dtype: Any, share: float) -> list[np.ndarray]:
    """Two arrays of any bits that differ in a share of their elements."""
    before = rng.integers(0, 256, n * np.dtype(dtype).itemsize, np.uint8).view(dtype)
    after = before.copy()
    at = rng.random(n) < share
    bits = f"u{min(8, before.itemsize)}"
    after[at] = (before[at].view(bits) + rng.integers(1, 20)).astype(bits).view(dtype)
    return [after, before]


@settings(max_examples=40)
@given(pairs(FLOATS + INTEGERS), options(), st.sampled_from([(), ("*",), ("padding",)]))
def test_any_model(
    pair: tuple[State, State], config: dict[str, Any], exclude: tuple[str, ...]
) -> None:
    assert_same_everywhere(Case(*padded(pair), exclude=exclude, **config))


@pytest.mark.parametrize("share", [0, 0.0003, 0.02, 0.5, 1])
@pytest.mark.parametrize("dtype", [*EXACT, *INTEGERS])
def test_dtypes(dtype: Any, share: float, rng: np.random.Generator) -> None:
    arrays = any_changes(rng, 40_000, np.uint8 if dtype == "bool" else dtype, share)
    state, reference = ({"a": array.view(dtype)} for array in arrays)
    if dtype == "bool":
        state, reference = (
            {"a": model["a"].view(np.uint8) % 2 == 0} for model in (state, reference)
        )
    assert_same_everywhere(Case(state, reference, exclude="*"))


@pytest.mark.parametrize("n", [4096, 4097, 32767, 32768, 32769, 65537])
def test_sizes_around_tiles(n: int, rng: np.random.Generator) -> None:
    floats = any_changes(rng, n, np.float32, 0.01)
    few = any_changes(rng, 2047, np.float16, 0.3)
    state, reference = ({"a": a, "b": b} for a, b in zip(floats, few, strict=True))
    assert_same_everywhere(Case(state, reference, exclude="*"))


@pytest.mark.parametrize("at", [0, 1, 31, 32, 2047, 2048, 32767, 32768, 49_999])
def test_one_change(at: int, rng: np.random.Generator) -> None:
    reference = {"a": rng.standard_normal(50_000, np.float32)}
    state = {"a": reference["a"].copy()}
    state["a"][at] += 1
    assert_same_everywhere(Case(state, reference, exclude="*"))


@pytest.mark.parametrize("n", [0, 1, 31, 32, 63, 64, 65, 2047, 2048, 2049, 4161])
def test_counts_around_lanes_and_slices(n: int, rng: np.random.Generator) -> None:
    """Lanes of 64 changes, 32 of them in a slice."""
    reference = {"a": rng.standard_normal(9000, np.float32)}
    state = {"a": reference["a"].copy()}
    state["a"][rng.choice(9000, n, replace=False)] *= -1
    case = Case(state, reference, exclude="*")
    case.options.lane_log2 = 6
    assert_same_everywhere(case)


def counters(rng: np.random.Generator, dtype: str, n: int) -> list[np.ndarray]:
    """Integers that change alike for a while, by any distance; runs of all lengths."""
    before = rng.integers(0, 256, n * np.dtype(dtype).itemsize, np.uint8).view(dtype)
    steps = np.zeros(0, np.uint64)
    while steps.size < n:
        step = int(rng.choice([1, -1, 2, -2, 3, 100, -100, 2**62, -(2**63)])) % 2**64
        steps = np.append(
            steps, np.full(rng.integers(1, 2 ** rng.integers(1, 12)), step, np.uint64)
        )
    steps[rng.random(steps.size) < 0.1] = 0
    return [before + steps[:n].astype(dtype), before]


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32", "int64"])
def test_integers(dtype: str, rng: np.random.Generator) -> None:
    """A level depends on the change before; floats of the same class lie between integers."""
    zeros = np.zeros(300, np.float32)
    tiny = zeros + rng.choice([0, 1e-45, 1e-40], 300).astype(np.float32)
    state, reference = {}, {}
    for i, n in enumerate([1, 5000, 1, 70, 20_000, 64, 63]):
        state[f"{i}i"], reference[f"{i}i"] = counters(rng, dtype, n)
        state[f"{i}z"], reference[f"{i}z"] = tiny, zeros
    assert_same_everywhere(Case(state, reference, exclude="*z"))
    for model in (state, reference):
        model.update({name: array[:100] for name, array in model.items()})
    case = Case(*padded((state, reference)), exclude="*z")
    case.options.lane_log2 = 6
    assert_same_everywhere(case)


def test_beside_other_tensors(rng: np.random.Generator) -> None:
    """Matrices and lossless tensors on the device, vectors and dense tensors on the host."""
    state, reference = cnn_pair(rng)
    for exclude in ("fc.weight", ("conv*", "norm.running_var"), "fc.bias"):
        for feedback in (False, True):
            case = Case(*padded((state, reference)), exclude=exclude, feedback=feedback)
            assert_same_everywhere(case)
    small = {name: value for name, value in random_pair(SHAPES)[0].items() if value.ndim < 2}
    assert_same_everywhere(Case(*padded((small, {n: v + v for n, v in small.items()}))))


@pytest.mark.parametrize("config", [{"max_bytes": 20_000}, {"max_error": 0.3}])
def test_searches(config: dict[str, Any], rng: np.random.Generator) -> None:
    assert_same_everywhere(Case(*padded(cnn_pair(rng)), exclude="fc.weight", **config))


@pytest.mark.parametrize("lane_log2", [6, 10])
def test_damage(lane_log2: int, rng: np.random.Generator) -> None:
    """With valid checksums: the same errors as on the CPU, and nothing written."""
    state, reference = random_pair({"a": (90, 100), "b": (30,)}, ml_dtypes.bfloat16)
    counts = np.arange(300)
    state["c"], reference["c"] = counts + counts % 7, counts
    case = Case(state, reference, exclude="*")
    case.options.lane_log2 = lane_log2
    payload = case.encode(on_device=False).payload
    codes = []
    for position in range(30, len(payload) - 4, max(1, len(payload) // 60)):
        forged = bytearray(payload[:-4])
        forged[position] ^= 1 << position % 8
        result = decode_everywhere(case, bytes(forged))
        codes += result.error[:1]
        assert not result.error or result.model == bytes_of([np.zeros_like(a) for a in case.base])
    assert {_native.Code.BAD_SLICE, _native.Code.BAD_TABLES} <= set(codes)


def test_levels_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A level within 64 bits that moves an element of fewer bits too far, and what fits just so."""
    state, reference = padded(({"a": np.ones(10, np.int8)}, {"a": np.zeros(10, np.int8)}))
    case = Case(state, reference)
    f = read_frame(case.encode(on_device=False).payload)
    assert f.n_changed == 10

    def error_of(level: int) -> _native.Code:
        changes = [(i, level if i == 7 else 3 if i % 2 else 5) for i in range(10)]
        tables, slices = lanes_module.encode_lanes(
            LOSSLESS, lanes_module.BitWriter(), changes, [], f.lane_log2
        )
        forged = write_frame(replace(f, change_tables=tables, slices=slices))
        return _native.Code(decode_everywhere(case, forged[:-4]).error[0])

    assert error_of(127) == error_of(-128) == _native.Code.WRONG_REFERENCE
    for level in (129, -129, 200, 2**62, -(2**63)):
        assert error_of(level) == _native.Code.BAD_SLICE


def test_wrong_reference(rng: np.random.Generator) -> None:
    state, reference = random_pair({"a": (90, 100)}, np.float16)
    payload = Case(state, reference, exclude="*").encode(on_device=False).payload
    case = Case(state, {"a": reference["a"][::-1].copy()}, exclude="*")
    assert decode_everywhere(case, payload[:-4]).error[0] == _native.Code.WRONG_REFERENCE


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_real_updates(dtype: Any, snapshots: dict[str, State]) -> None:
    models = [
        {name: value.astype(dtype) for name, value in snapshots[which].items() if value.ndim < 3}
        for which in ("l0_7", "g6")
    ]
    names = sorted(models[0])[:4]
    state, reference = ({name: model[name].ravel()[:60_000] for name in names} for model in models)
    assert_same_everywhere(Case(state, reference, exclude="*"))
