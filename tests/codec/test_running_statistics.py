"""Dense tensors (by default running statistics): every element is sent, quantized."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import resfed_codec as rfc
from models import FLOATS, State, assert_same, pairs
from resfed_codec import _native
from resfed_codec import reference as slow
from resfed_codec.codec.update import encode_and_recover
from resfed_codec.config import DEFAULT_DENSE_BITS

NAMES = [
    "norm.running_mean",
    "running_var",
    "block/bn/moving_mean",
    "bn/moving_var",
    "batch_normalization/moving_variance",
]


def pair_of(*names: str, seed: int = 0, dtype: str = "float32") -> tuple[State, State]:
    """(state, reference): a matrix, a bias, and a vector of each name."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"conv": (16, 40), "bias": (30,)}
    shapes |= dict.fromkeys(names, (30,))
    old = {n: rng.standard_normal(s).astype(dtype) for n, s in shapes.items()}
    new = {n: (v + rng.standard_t(2, v.shape)).astype(dtype) for n, v in old.items()}
    return new, old


def worst(state: Any, reference: Any, recovered: Any) -> float:
    """The largest error, in units of the power of two below the residual's RMS."""
    residual = state.astype("f8") - reference
    scale = 2.0 ** np.floor(np.log2(np.sqrt(np.mean(residual**2))))
    return float(np.abs(state.astype("f8") - recovered).max() / scale)


def whole(state: State, reference: State, recovered: State) -> set[str]:
    """The tensors whose elements all have an error of at most one step."""
    step = 2.0 ** (2 - DEFAULT_DENSE_BITS)
    return {n for n in state if worst(state[n], reference[n], recovered[n]) <= step}


@pytest.mark.parametrize("name", NAMES)
def test_dense_by_default(name: str) -> None:
    state, reference = pair_of(name)
    payload = rfc.encode(state, reference, sparsity=0.99)
    assert whole(state, reference, rfc.decode(payload, reference)) == {name}
    assert payload == rfc.encode(state, reference, sparsity=0.99, dense=None)
    assert payload == rfc.encode(state, reference, sparsity=0.99, dense=name)
    assert payload == slow.encode(state, reference, sparsity=0.99, dense=name)
    info = rfc.inspect(payload)
    assert info.dense_tensors == (sorted(state).index(name),)
    assert (info.n_dense, info.n_lossless, info.n_vector) == (30, 0, 30)


@pytest.mark.parametrize(
    ("dense", "expected"),
    [((), set()), ("bias", {"bias"}), (("bias", "*running*"), {"bias", "bn.running_var"})],
    ids=str,
)
def test_patterns_given_replace_the_default(dense: Any, expected: set[str]) -> None:
    state, reference = pair_of("bn.running_var")
    payload = rfc.encode(state, reference, sparsity=0.99, dense=dense)
    assert whole(state, reference, rfc.decode(payload, reference)) == expected
    assert payload == slow.encode(state, reference, sparsity=0.99, dense=dense)


def test_names_of_other_tensors() -> None:
    """A model without running statistics is no error; similar names do not match."""
    names = ("running_means", "moving", "mean", "variances", "running_var.weight")
    state, reference = pair_of(*names)
    assert rfc.encode(state, reference) == rfc.encode(state, reference, dense=())
    arrays, base = [*state.values()], [*reference.values()]
    assert rfc.encode(arrays, base) == rfc.encode(arrays, base, dense=())
    assert rfc.decode(rfc.encode({}, {}), {}) == {}


def test_exclude_takes_precedence_over_dense() -> None:
    state, reference = pair_of(*NAMES)
    payload = rfc.encode(state, reference, exclude="*mean")
    info = rfc.inspect(payload)
    names = sorted(state)
    assert {names[i] for i in info.exclusions} == {n for n in names if n.endswith("mean")}
    assert {names[i] for i in info.dense_tensors} == {n for n in NAMES if "var" in n}
    recovered = rfc.decode(payload, reference)
    for name in NAMES[::2][:2]:
        assert np.array_equal(recovered[name], state[name])
    everything = rfc.encode(state, reference, exclude="*", dense="*")
    assert everything == rfc.encode(state, reference, exclude="*", dense=())
    assert_same(rfc.decode(everything, reference), state)


@given(
    pairs(),
    st.integers(2, 12),
    st.sampled_from([0.0, 0.9, 1.0]),
    st.sampled_from(["*", "first", "others"]),
)
def test_both_implementations_agree(
    pair: tuple[State, State], bits: int, sparsity: float, which: str
) -> None:
    state, reference = pair
    names = sorted(state)
    chosen = {"*": names, "first": names[:1], "others": names[1:]}[which]
    dense = tuple("".join(f"[{c}]" if c in "*?[" else c for c in name) for name in chosen)
    options: dict[str, Any] = {"dense": dense, "dense_bits": bits, "sparsity": sparsity}
    payload, recovered = encode_and_recover(state, reference, **options)
    assert_same(rfc.decode(payload, reference), recovered)
    with np.errstate(all="ignore"):
        assert payload == slow.encode(state, reference, **options)
        assert_same(slow.decode(payload, reference), recovered)
    for name in chosen:
        assert np.isfinite(recovered[name].astype("f8")).all()
        if state[name].dtype.kind == "f" and not (state[name] < 0).any():
            assert not (recovered[name] < 0).any(), name


@pytest.mark.parametrize("bits", [2, 3, 5, 8, 10, 12])
@pytest.mark.parametrize("dtype", FLOATS)
def test_error_and_size_follow_the_bits(dtype: str, bits: int) -> None:
    rng = np.random.default_rng(bits)
    reference = {"w": np.zeros((4, 4), dtype), "running_mean": np.zeros(5000, dtype)}
    change = rng.standard_normal(5000)
    change *= 1.01 / np.sqrt(np.mean(change**2))  # its root mean square has the exponent 0
    state = {**reference, "running_mean": change.astype(dtype)}
    payload = rfc.encode(state, reference, dense_bits=bits, sparsity=1)
    recovered = rfc.decode(payload, reference)["running_mean"]
    assert worst(state["running_mean"], 0, recovered) <= 2.0 ** (2 - bits)
    assert bits < 8 * len(payload) / 5000 < bits + 0.5


def test_bfloat16() -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    state, reference = (
        {n: v.astype(bfloat16) for n, v in model.items()} for model in pair_of("running_mean")
    )
    payload, recovered = encode_and_recover(state, reference)
    assert payload == slow.encode(state, reference, dense="running_mean")
    assert_same(rfc.decode(payload, reference), recovered)
    assert worst(*(m["running_mean"].astype("f4") for m in (state, reference, recovered))) < 0.6


@pytest.mark.parametrize("bits", [2, 3, 6])
def test_variances_stay_nonnegative(bits: int) -> None:
    """A quantizer scaled to the largest changes would make small variances negative."""
    rng = np.random.default_rng(0)
    reference = {"w": np.zeros((2, 2), np.float32)}
    reference["running_var"] = rng.lognormal(0, 3, 4000).astype(np.float32)
    state = {**reference, "running_var": rng.lognormal(0, 3, 4000).astype(np.float32)}
    state["running_var"][:10] = 0
    payload = rfc.encode(state, reference, dense_bits=bits)
    assert (rfc.decode(payload, reference)["running_var"] >= 0).all()
    negative = {**state, "running_var": -state["running_var"]}
    recovered = rfc.decode(rfc.encode(negative, reference, dense_bits=bits), reference)
    assert worst(negative["running_var"], reference["running_var"], recovered["running_var"]) <= 2


def test_variances_stay_nonnegative_after_a_negative_prediction() -> None:
    """Extrapolation may predict negative variances, also where the step is too coarse."""
    initial = {"w": np.zeros((3, 3), np.float32), "running_var": np.full(50, 9, np.float32)}
    predictor = rfc.LinearPredictor(own=(2, -1))
    encoder = rfc.Encoder(initial, predictor=predictor, dense_bits=2)
    decoder = rfc.Decoder(initial)
    for value in (4, 0.01, 0.001, 1e-6):
        variances = np.full(50, value, np.float32)
        variances[0] = 1000 * value
        recovered = decoder.decode(encoder.encode({**initial, "running_var": variances}))
        assert (recovered["running_var"] >= 0).all()


def test_streams_and_sessions() -> None:
    name = "bn.running_mean"
    state, initial = pair_of(name)
    config = rfc.CodecConfig(sparsity=0.99)
    encoder, decoder = rfc.Encoder(initial, config), rfc.Decoder(initial)
    assert whole(state, initial, decoder.decode(encoder.encode(state))) == {name}
    server = rfc.ServerSession(initial, config, config)
    client = rfc.ClientSession(initial, config, config)
    assert whole(state, initial, server.receive(0, client.send(state))) == {name}
    held = server.state
    for seed in (1, 2):
        state, _ = pair_of(name, seed=seed)
        server.update(state)
        received = client.receive(server.send(0))
        assert name in whole(state, held, received)
        held = {n: v.copy() for n, v in received.items()}


@pytest.mark.parametrize("up", ["global", "res1", "res2", "adaptive"])
def test_predictors(up: str) -> None:
    name = "bn.running_var"
    _, initial = pair_of(name)
    feedback = up in ("global", "adaptive")  # not allowed with own terms
    config = rfc.CodecConfig(predictor=up, error_feedback=feedback)
    server, client = rfc.ServerSession(initial, uplink=config), rfc.ClientSession(initial, config)
    rng = np.random.default_rng(0)
    for _ in range(4):
        local = {n: v + rng.standard_normal(v.shape).astype("f4") for n, v in initial.items()}
        local[name] = rng.uniform(0.1, 1, 30).astype("f4")
        recovered = server.receive(0, client.send(local))
        assert np.abs(recovered[name] - local[name]).max() < 0.9
        assert (recovered[name] >= 0).all()
        server.update(recovered)
        client.receive(server.send(0))


@pytest.mark.filterwarnings("ignore:downlink. error_feedback=True")  # models are exact
def test_feedback_ignores_them() -> None:
    """Feedback would add the residual of a statistic again and again."""
    name = "bn.running_var"
    _, initial = pair_of(name)
    initial[name] = np.ones(30, np.float32)
    downlink = rfc.CodecConfig(error_feedback=True)
    server, client = rfc.ServerSession(initial, downlink=downlink), rfc.ClientSession(initial)
    rng = np.random.default_rng(0)
    matrix = {"w": np.zeros((1, 1), np.float32)}
    held = initial[name].copy()
    for _ in range(5):
        state, _ = pair_of(name)
        state[name] = rng.uniform(0.001, 1, 30).astype(np.float32)
        server.update(state)
        reference = {**matrix, name: held}
        alone = rfc.decode(rfc.encode({**matrix, name: state[name]}, reference), reference)
        held = client.receive(server.send(0))[name].copy()
        assert np.array_equal(held, alone[name])


def test_a_lost_uplink_with_feedback() -> None:
    """The next uplink carries its changes, except for its statistics."""
    name = "bn.running_var"
    state, initial = pair_of(name)
    for predictor in ("global", "adaptive"):
        config = rfc.CodecConfig(predictor=predictor, error_feedback=True)
        server, client = rfc.ServerSession(initial, config), rfc.ClientSession(initial, config)
        client.send(state)  # lost
        server.update(state)
        held = client.receive(server.send(0))
        recovered = server.receive(0, client.send(state))
        assert worst(state[name], initial[name], recovered[name]) <= 0.5
        assert worst(state["conv"], held["conv"], recovered["conv"]) > 0.5


def test_aggregator() -> None:
    _, reference = pair_of(*NAMES)
    aggregator = rfc.Aggregator(reference)
    total = {n: np.zeros(v.shape) for n, v in reference.items()}
    for seed, dense in enumerate((None, (), "*", "conv")):
        state, _ = pair_of(*NAMES, seed=seed)
        payload = rfc.encode(state, reference, dense=dense, sparsity=0.9)
        aggregator.add(payload)
        for n, v in rfc.decode(payload, reference).items():
            total[n] += v.astype("f8") / 4
    for n, v in aggregator.result().items():
        np.testing.assert_allclose(v, total[n], rtol=1e-6, atol=1e-6)


def test_a_model_of_nothing_else() -> None:
    state, reference = pair_of()
    payload = rfc.encode(state, reference, dense="*", sparsity=1)
    info = rfc.inspect(payload)
    assert (info.n_matrix, info.n_vector, info.n_dense, info.k_matrix) == (0, 0, 670, 0)
    assert info.matrix is info.vector is None
    assert info.n_nonzero == info.k_dense > 300
    assert info.sparsity == 1
    assert len(info.dense_exponents) == 2
    assert whole(state, reference, rfc.decode(payload, reference)) == {"bias", "conv"}


@pytest.mark.parametrize("shape", [(0,), (0, 3), (), (1,)])
def test_tiny_changes(shape: tuple[int, ...]) -> None:
    reference = {"running_mean": np.zeros(shape, np.float32)}
    state = {"running_mean": np.ones(shape, np.float32)}
    for new in (state, reference):
        payload = rfc.encode(new, reference)
        assert payload == slow.encode(new, reference, dense="running_mean")
        recovered = rfc.decode(payload, reference)
        np.testing.assert_allclose(recovered["running_mean"], new["running_mean"], atol=0.01)
        assert rfc.inspect(payload).dense_tensors == (0,)


def test_sequences() -> None:
    state, reference = ([*model.values()] for model in pair_of("running_var"))
    assert rfc.inspect(rfc.encode(state, reference)).dense_tensors == ()
    payload = rfc.encode(state, reference, dense="2")
    assert rfc.inspect(payload).dense_tensors == (2,)
    assert worst(state[2], reference[2], rfc.decode(payload, reference)[2]) <= 0.5


def test_payloads_without_them_are_unchanged() -> None:
    state, reference = pair_of()
    assert rfc.encode(state, reference) == rfc.encode(state, reference, dense=(), dense_bits=9)
    integers = {"running_var": np.arange(4)}
    payload = rfc.encode({**state, **integers}, {**reference, **integers})
    assert rfc.inspect(payload).dense_tensors == ()


def test_not_finite() -> None:
    state, reference = pair_of("running_var")
    state["running_var"][7] = np.nan
    with pytest.raises(ValueError, match="tensor 'running_var' at flat index 7 is not finite"):
        rfc.encode(state, reference)


def test_max_bytes_counts_them_and_max_error_does_not() -> None:
    state, reference = pair_of(*NAMES)
    with pytest.raises(ValueError, match="by default running statistics are dense"):
        rfc.encode(state, reference, max_bytes=100)
    assert len(rfc.encode(state, reference, max_bytes=100, dense=())) <= 100
    smallest = len(rfc.encode(state, reference, sparsity=1))
    for options in ({"max_bytes": smallest}, {"max_bytes": smallest + 60}, {"max_error": 0.2}):
        payload = rfc.encode(state, reference, **options)
        assert payload == slow.encode(state, reference, dense=NAMES, **options)
        recovered = rfc.decode(payload, reference)
        assert whole(state, reference, recovered) >= set(NAMES)
        if "max_bytes" in options:
            assert smallest <= len(payload) <= options["max_bytes"]
        else:
            error = np.linalg.norm(state["conv"] - recovered["conv"])
            assert error <= 0.2 * np.linalg.norm(state["conv"] - reference["conv"])


@pytest.mark.parametrize("dtype", FLOATS)
def test_threads_and_kernels(dtype: str) -> None:
    """More than one chunk, and several slices."""
    rng = np.random.default_rng(1)
    shapes = {"w": (300, 100), "a.running_mean": (70_000,), "b.running_var": (333,)}
    reference = {n: rng.standard_normal(s).astype(dtype) for n, s in shapes.items()}
    state = {n: rng.standard_t(3, s).astype(dtype) for n, s in shapes.items()}
    payloads = set()
    for threads in (1, 2, 8):
        for kernels in ("scalar", "avx2", "avx512", "neon"):
            if _native.choose_kernels(kernels):
                rfc.set_num_threads(threads)
                payload, recovered = encode_and_recover(state, reference)
                assert_same(rfc.decode(payload, reference), recovered)
                payloads.add(payload)
    assert len(payloads) == 1
