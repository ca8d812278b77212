"""Infinities and NaNs: unchanged ones are kept, changed ones raise an error with their name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc
from resfed_codec import _native
from resfed_codec import reference as slow

State = dict[str, np.ndarray]

KERNELS = ["scalar", "avx2", "avx512", "neon"]
SPECIALS = {
    np.float32: [0xFF800000, 0x7F800000, 0x7FC00000, 0xFFC00001, 0x7F800001],
    np.float16: [0xFC00, 0x7C00, 0x7E00, 0xFE01, 0x7C01],
    np.float64: [0xFFF << 52, 0x7FF << 52, 0x7FF8 << 48, (0xFFF8 << 48) + 1, (0x7FF << 52) + 1],
}
"""Infinities, quiet and signalling NaNs."""


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest) -> Any:
    before = _native.kernels()
    if not _native.choose_kernels(request.param):
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    _native.choose_kernels(before)


def bits(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.itemsize}")


def masked(dtype: Any) -> State:
    """A matrix, a vector and a running statistic with some infinities and NaNs."""
    rng = np.random.default_rng(0)
    state = {
        "mask": rng.standard_normal((60, 50)).astype(dtype),
        "bias": rng.standard_normal(70).astype(dtype),
        "bn.running_mean": rng.standard_normal(40).astype(dtype),
        "whole": np.zeros((7, 5), dtype),
    }
    for name, array in state.items():
        every = 1 if name == "whole" else 3
        specials = np.resize(np.array(SPECIALS[dtype], f"u{array.itemsize}"), array.size)
        bits(array).reshape(-1)[::every] = specials[::every]
    return state


def moved(state: State, by: float) -> State:
    with np.errstate(invalid="ignore"):
        return {k: np.where(np.isfinite(v), v + v.dtype.type(by), v) for k, v in state.items()}


def assert_unchanged(recovered: State, state: State) -> None:
    for name, array in state.items():
        kept = ~np.isfinite(array)
        assert np.array_equal(bits(recovered[name])[kept], bits(array)[kept]), name
        assert np.isfinite(recovered[name][~kept]).all(), name


OPTIONS: list[dict[str, Any]] = [
    {"sparsity": 0.0, "bits": 8},
    {"sparsity": 0.9},
    {"sparsity": 1.0},
    {"max_bytes": 700},
    {"max_error": 0.3},
    {"sparsity": 0.5, "exclude": "mask"},
    {"sparsity": 0.5, "dense": "mask"},
]


@pytest.mark.parametrize("dtype", SPECIALS, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_unchanged(kernels: str, dtype: Any, options: dict[str, Any]) -> None:
    reference = masked(dtype)
    state = moved(reference, 0.125)
    payload = rfc.encode(state, reference, **options)
    assert payload == slow.encode(state, reference, **{"dense": "bn.running_mean", **options})
    recovered = rfc.decode(payload, reference)
    assert_unchanged(recovered, reference)
    assert_unchanged(slow.decode(payload, reference), reference)


def test_bfloat16() -> None:
    torch = pytest.importorskip("torch")
    reference = {"w": torch.tensor([[float("-inf"), 1.0, float("nan")]], dtype=torch.bfloat16)}
    state = {"w": torch.tensor([[float("-inf"), 2.0, float("nan")]], dtype=torch.bfloat16)}
    recovered = rfc.decode(rfc.encode(state, reference, sparsity=0.0), reference)
    assert recovered["w"].view(torch.uint16).tolist() == state["w"].view(torch.uint16).tolist()


@pytest.mark.parametrize("dtype", SPECIALS, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("where", ["mask", "bias", "bn.running_mean"])
@pytest.mark.parametrize(
    ("before", "after"),
    [(0.0, -np.inf), (-np.inf, 0.0), (np.inf, -np.inf), (1.0, np.nan), (np.nan, 1.0)],
)
@pytest.mark.parametrize("sparsity", [0.5, 1.0])
def test_changed(
    kernels: str, dtype: Any, where: str, before: float, after: float, sparsity: float
) -> None:
    reference = masked(dtype)
    reference[where].reshape(-1)[31] = before
    state = moved(reference, 0.125)
    state[where].reshape(-1)[31] = after
    with pytest.raises(ValueError, match=f"tensor '{where}' at flat index 31 is not finite"):
        rfc.encode(state, reference, sparsity=sparsity)


def test_a_nan_with_other_bits_did_change(kernels: str) -> None:
    for dtype, specials in SPECIALS.items():
        reference = {"w": np.zeros((8, 8), dtype)}
        state = {"w": np.zeros((8, 8), dtype)}
        bits(reference["w"])[0, 5], bits(state["w"])[0, 5] = specials[2], specials[4]
        with pytest.raises(ValueError, match="tensor 'w' at flat index 5"):
            rfc.encode(state, reference)


def test_a_large_mask_is_found_by_its_numbers(kernels: str) -> None:
    """Where most of a tensor is -inf, the codec selects among the finite elements."""
    rng = np.random.default_rng(1)
    reference = {"w": np.full((500, 400), -np.inf, np.float32)}
    reference["w"][::3] = 0
    state = {"w": np.where(np.isinf(reference["w"]), -np.inf, rng.standard_normal((500, 400)))}
    state["w"] = state["w"].astype(np.float32)
    numbers = state["w"][::3]
    payload = rfc.encode(state, reference, sparsity=0.99)
    sent = np.flatnonzero(rfc.decode(payload, reference)["w"][::3])
    largest = np.argsort(-np.abs(numbers).reshape(-1), kind="stable")[: len(sent)]
    assert len(sent) == 2000
    assert np.array_equal(sent, np.sort(largest))


@pytest.mark.parametrize("predictor", ["global", "previous", "res0", "res1", "res2", "adaptive"])
@pytest.mark.parametrize("feedback", [False, True])
def test_sessions(predictor: str, feedback: bool) -> None:
    """Every prediction rule keeps unchanged infinities and NaNs."""
    if feedback and predictor not in ("global",):
        pytest.skip("error feedback goes with the global model")
    for dtype in SPECIALS:
        start = masked(dtype)
        config = rfc.CodecConfig(sparsity=0.5, predictor=predictor, error_feedback=feedback)
        down = rfc.CodecConfig(sparsity=0.5)
        server = rfc.ServerSession(start, uplink=config, downlink=down)
        client = rfc.ClientSession(start, uplink=config, downlink=down)
        for turn in range(1, 6):
            server.update(moved(start, 0.25 * turn))
            assert_unchanged(client.receive(server.send("a")), start)
            uplink = client.send(moved(start, 0.25 * turn + 0.125))
            if turn != 3:  # one uplink is lost, so that feedback restores it
                assert_unchanged(server.receive("a", uplink), start)


def test_aggregator() -> None:
    start = masked(np.float32)
    aggregator = rfc.Aggregator(start)
    aggregator.add(rfc.encode(moved(start, 0.5), start, sparsity=0.0))
    aggregator.add_state(moved(start, 0.25))
    assert_unchanged(aggregator.result(), start)


class TestFloat64:
    """Residuals are float32; max_error still bounds the error of float64 values."""

    def pair(self, change: float) -> tuple[State, State]:
        rng = np.random.default_rng(2)
        reference = {"w": np.zeros((30, 20))}
        return {"w": rng.standard_normal((30, 20)) * change}, reference

    @pytest.mark.parametrize("change", [1e-300, 1e-100, 1e-50, 1e-46])
    def test_changes_below_float32_resolution(self, change: float) -> None:
        state, reference = self.pair(change)
        with pytest.raises(ValueError, match="max_error: the changes of tensor 'w' are so small"):
            rfc.encode(state, reference, max_error=0.1)
        with pytest.raises(ValueError, match="max_error"):
            slow.encode(state, reference, max_error=0.1)

    @pytest.mark.parametrize("change", [1e-41, 1e-38, 1e-30, 1.0, 1e30])
    @pytest.mark.parametrize("max_error", [0.5, 0.1, 0.01])
    def test_the_bound_holds(self, change: float, max_error: float) -> None:
        state, reference = self.pair(change)
        payload = rfc.encode(state, reference, max_error=max_error)
        assert payload == slow.encode(state, reference, max_error=max_error)
        recovered = rfc.decode(payload, reference)["w"] / change
        wanted = state["w"] / change
        assert np.linalg.norm(recovered - wanted) <= max_error * np.linalg.norm(wanted)

    def test_changes_of_a_few_last_bits_are_refused_under_a_tighter_bound(self) -> None:
        state, reference = self.pair(1e-44)
        with pytest.raises(ValueError, match="max_error: "):
            rfc.encode(state, reference, max_error=0.01)

    def test_small_changes_beside_large_ones_do_not_matter(self) -> None:
        state, reference = self.pair(1.0)
        state["w"][::2] *= 1e-300
        recovered = rfc.decode(rfc.encode(state, reference, max_error=0.1), reference)["w"]
        assert np.linalg.norm(recovered - state["w"]) <= 0.1 * np.linalg.norm(state["w"])

    @pytest.mark.parametrize("change", [1e39, 1e300])
    def test_changes_beyond_float32_are_refused(self, change: float) -> None:
        state, reference = self.pair(change)
        with pytest.raises(ValueError, match=r"tensor 'w' at flat index [01] .* overflows float32"):
            rfc.encode(state, reference, max_error=0.1)

    def test_nothing_changed(self) -> None:
        state = {"w": np.full((3, 3), np.nan), "v": np.full(3, 1e-300)}
        recovered = rfc.decode(rfc.encode(state, state, max_error=0.1), state)
        assert_unchanged(recovered, state)
