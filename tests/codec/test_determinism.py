"""The bytes depend only on the values, not on threads, kernels, strides or the FP mode."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given

import resfed_codec as rfc
from models import State, assert_same, clustered, cnn_pair, options, pairs
from resfed_codec import _native
from resfed_codec.codec.update import encode_and_recover

KERNELS = ("scalar", "avx2", "avx512", "neon")


def big_pair(dtype: str, rng: np.random.Generator) -> tuple[State, State]:
    """Several chunks and slices; tensors cross chunk borders."""
    shapes = {"a": (300, 700), "b": (17,), "c": (1, 1), "d": (90, 33, 3, 3), "e": (1000,)}
    reference = {n: rng.standard_normal(s).astype(dtype) for n, s in shapes.items()}
    state = {n: (v + clustered(v.shape, rng)).astype(dtype) for n, v in reference.items()}
    return state, reference


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(
    "config", [{"sparsity": 0.9}, {"sparsity": 0.99}, {"max_bytes": 3000}, {"max_error": 0.5}]
)
def test_threads_and_kernels(dtype: str, config: dict[str, Any], rng: np.random.Generator) -> None:
    state, reference = big_pair(dtype, rng)
    results = []
    for threads in (1, 2, 3, 8):
        for kernels in KERNELS:
            if not _native.choose_kernels(kernels):
                continue
            rfc.set_num_threads(threads)
            payload, recovered = encode_and_recover(state, reference, **config)
            assert_same(rfc.decode(payload, reference), recovered)
            results.append(payload)
    assert len(results) >= 4
    assert all(payload == results[0] for payload in results)


@pytest.mark.parametrize("config", [{"sparsity": 0.9}, {"sparsity": 0.999}, {"max_error": 0.5}])
def test_threads_on_a_large_model(config: dict[str, Any], rng: np.random.Generator) -> None:
    """Large enough for three threads in every stage: 16 chunks of 65,536 elements for each."""
    shape = (3300, 1000)
    reference = {"w": rng.standard_normal(shape, np.float32), "n": np.arange(3_300_000)}
    state = {
        "w": reference["w"] + clustered(shape, rng),
        "n": reference["n"] + rng.integers(0, 2, 3_300_000),
    }
    results = []
    for threads in (1, 2, 3):
        rfc.set_num_threads(threads)
        payload, recovered = encode_and_recover(state, reference, **config)
        assert_same(rfc.decode(payload, reference), recovered)
        results.append(payload)
    assert results[0] == results[1] == results[2]


@given(pairs(("float16", "float32", "float64")), options())
def test_kernels_agree_on_anything(pair: tuple[State, State], config: dict[str, Any]) -> None:
    payloads = {
        rfc.encode(*pair, **config) for kernels in KERNELS if _native.choose_kernels(kernels)
    }
    assert len(payloads) == 1


def test_bfloat16_kernels_agree(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    reference = [torch.tensor(rng.standard_normal((100, 777))).bfloat16()]
    state = [reference[0] + torch.tensor(clustered((100, 777), rng)).bfloat16()]
    payloads = {
        rfc.encode(state, reference) for kernels in KERNELS if _native.choose_kernels(kernels)
    }
    assert len(payloads) == 1


def test_order_of_a_mapping_does_not_matter(rng: np.random.Generator) -> None:
    state, reference = cnn_pair(rng)
    shuffled = dict(reversed(reference.items()))
    payload = rfc.encode(state, reference)
    assert rfc.encode(dict(reversed(state.items())), shuffled) == payload
    decoded = rfc.decode(payload, shuffled)
    assert list(decoded) == list(shuffled)
    assert_same({n: decoded[n] for n in reference}, rfc.decode(payload, reference))


def test_strides_do_not_matter(rng: np.random.Generator) -> None:
    reference = rng.standard_normal((60, 80)).astype(np.float32)
    state = reference + clustered((60, 80), rng)
    payload = rfc.encode([state], [reference])
    strided = np.asfortranarray(state), np.repeat(reference, 2, axis=1)[:, ::2]
    assert rfc.encode([strided[0]], [strided[1]]) == payload
    assert_same(rfc.decode(payload, [strided[1]]), rfc.decode(payload, [reference]))


def test_flush_to_zero_of_the_caller() -> None:
    """torch.set_flush_denormal changes the calling thread's mode; the codec must not use it."""
    torch = pytest.importorskip("torch")
    reference = {"w": np.full((30, 40), 1e-39, np.float32)}
    state = {
        "w": reference["w"]
        + np.float32(3e-39) * (np.arange(1200, dtype=np.float32).reshape(30, 40) % 7)
    }
    expected, recovered = encode_and_recover(state, reference, sparsity=0.5)
    assert rfc.inspect(expected).n_nonzero == 600
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no flush-to-zero mode")
    try:
        assert np.float32(1e-39) * np.float32(0.5) == 0  # the mode is on
        payload, again = encode_and_recover(state, reference, sparsity=0.5)
        decoded = rfc.decode(payload, reference)
        assert np.float32(1e-39) * np.float32(0.5) == 0  # and still on after the call
    finally:
        torch.set_flush_denormal(False)
    assert payload == expected
    assert_same(again, recovered)
    assert_same(decoded, recovered)


def test_concurrent_calls(rng: np.random.Generator) -> None:
    state, reference = big_pair("float32", rng)
    expected = {s: encode_and_recover(state, reference, sparsity=s) for s in (0.9, 0.95, 0.99)}

    def work(sparsity: float) -> None:
        payload, recovered = encode_and_recover(state, reference, sparsity=sparsity)
        assert payload == expected[sparsity][0]
        assert_same(rfc.decode(payload, reference), recovered)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, [0.9, 0.95, 0.99] * 8))


def test_threads_are_checked_and_kept() -> None:
    rfc.set_num_threads(3)
    assert rfc.get_num_threads() == 3
    for bad in (0, -1, 5000):
        with pytest.raises(ValueError, match="n="):
            rfc.set_num_threads(bad)
    for wrong in (2.0, "2", True, None):
        with pytest.raises(TypeError, match="n="):
            rfc.set_num_threads(wrong)  # type: ignore[arg-type]
    assert rfc.get_num_threads() == 3


def test_default_threads_follow_the_environment() -> None:
    code = "import resfed_codec as rfc; print(rfc.get_num_threads())"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "OMP_NUM_THREADS": "5"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "5"
