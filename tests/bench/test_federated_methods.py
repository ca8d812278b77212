"""The methods of benchmarks/federated: recovered models and bytes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from benchmarks.federated.methods import METHODS, Method, State, make
from benchmarks.federated.methods.base import flat, like
from benchmarks.federated.methods.bits import pack, unpack
from benchmarks.federated.methods.codec import Codec
from benchmarks.federated.methods.eden import Drive
from benchmarks.federated.methods.qsgd import Qsgd
from benchmarks.federated.methods.resfed import ResFed, accounted_bits, huffman_bits, quantize
from benchmarks.federated.methods.select import RULES, CodecSelect, Costs, Matrices
from benchmarks.federated.methods.signsgd import SignMajority
from benchmarks.federated.methods.stc import SparseTernary
from benchmarks.federated.methods.topk import TopK, largest

import resfed_codec as rfc

CLIENTS = 3
N_ELEMS = 32 * 40 + 7


@pytest.fixture
def initial(rng: np.random.Generator) -> State:
    return {
        "weight": rng.standard_normal((32, 40)).astype(np.float32),
        "bias": rng.standard_normal(7).astype(np.float32),
    }


def moved(state: State, rng: np.random.Generator) -> State:
    """The state after heavy-tailed changes like those of training."""
    return {k: v + (0.01 * rng.standard_t(2, v.shape)).astype(np.float32) for k, v in state.items()}


def one_round(method: Method, rng: np.random.Generator) -> tuple[list[State], State, list[int]]:
    """Recovered local models, their mean, and bytes: uplink and downlink of each client."""
    results = [method.up(i, moved(method.held[i], rng)) for i in range(CLIENTS)]
    models = [model for model, _ in results]
    mean = {k: np.mean([m[k] for m in models], axis=0) for k in models[0]}
    return models, mean, [n for _, n in results] + method.down(mean)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_dtype_and_shape(
    name: str, initial: State, rng: np.random.Generator
) -> None:
    method = make(name, {}, initial, CLIENTS, seed=0)
    assert method.begin() == [0] * CLIENTS
    for _ in range(3):
        models, _, sizes = one_round(method, rng)
        assert all(n > 0 for n in sizes)
        for model in [*models, *method.held]:
            assert {k: (v.shape, v.dtype) for k, v in model.items()} == {
                k: (v.shape, np.float32) for k, v in initial.items()
            }
        assert not np.array_equal(flat(method.held[0]), flat(initial))


def test_unknown_methods_and_options_are_refused(initial: State) -> None:
    with pytest.raises(ValueError, match="method 'zip': must be one of uncompressed"):
        make("zip", {}, initial, CLIENTS, 0)
    with pytest.raises(TypeError, match="colour"):
        make("topk", {"colour": 1}, initial, CLIENTS, 0)
    with pytest.raises(ValueError, match="rule 'res9'"):
        make("resfed", {"rule": "res9"}, initial, CLIENTS, 0)


def test_flat_and_back(initial: State) -> None:
    again = like(initial, flat(initial))
    assert all(np.array_equal(again[k], initial[k]) for k in initial)


@pytest.mark.parametrize("n_bits", [1, 3, 8, 13])
def test_bits_packed_and_unpacked(n_bits: int, rng: np.random.Generator) -> None:
    values = rng.integers(0, 2**n_bits, 21)
    payload = pack(values, n_bits)
    assert len(payload) == math.ceil(21 * n_bits / 8)
    assert np.array_equal(unpack(payload, n_bits, 21), values)


def test_uncompressed_sends_all_and_changes_nothing(
    initial: State, rng: np.random.Generator
) -> None:
    method = make("uncompressed", {}, initial, CLIENTS, 0)
    local = moved(initial, rng)
    model, n_bytes = method.up(0, local)
    assert n_bytes == 4 * N_ELEMS
    assert np.array_equal(flat(model), flat(local))
    method = make("float16", {}, initial, CLIENTS, 0)
    model, n_bytes = method.up(0, local)
    assert n_bytes == 2 * N_ELEMS
    assert np.array_equal(flat(model), flat(local).astype(np.float16))


def test_largest_is_top_k() -> None:
    assert largest(np.array([1, -5, 0, 4], np.float32), 0.5).tolist() == [1, 3]
    assert len(largest(np.arange(1000, dtype=np.float32), 0.99)) == 10


def test_topk_sends_pairs_of_32_bits(initial: State, rng: np.random.Generator) -> None:
    method = TopK(initial, CLIENTS, 0, sparsity=0.99)
    update = flat(moved(initial, rng)) - flat(initial)
    payload = method.encode(update)
    assert len(payload) == 8 * math.ceil(N_ELEMS / 100)
    decoded = method.decode(payload, N_ELEMS)
    sent = decoded != 0
    assert np.array_equal(decoded[sent], update[sent])
    assert np.abs(update[~sent]).max() <= np.abs(decoded[sent]).min()


@pytest.mark.parametrize("name", ["topk", "stc"])
def test_error_feedback_loses_nothing(name: str, initial: State, rng: np.random.Generator) -> None:
    """What has not been sent after some rounds is exactly what feedback holds."""
    method = make(name, {"sparsity": 0.9}, initial, CLIENTS, 0)
    wanted = np.zeros(N_ELEMS)
    arrived = np.zeros(N_ELEMS)
    for _ in range(5):
        held = flat(method.held[0])
        local = moved(method.held[0], rng)
        wanted += flat(local) - held
        arrived += flat(method.up(0, local)[0]) - held
    left = method._feedback[0]  # type: ignore[attr-defined]
    np.testing.assert_allclose(wanted - arrived, left, atol=1e-5)
    assert np.abs(left).max() > 1e-3


@pytest.mark.parametrize("name", ["topk", "stc", "qsgd", "signsgd", "eden"])
def test_running_statistics_are_sent_unchanged(
    name: str, initial: State, rng: np.random.Generator
) -> None:
    plain = make(name, {}, initial, CLIENTS, 0)
    state = {"weight": initial["weight"], "norm.running_var": np.ones(5, np.float32)}
    state["bias"] = initial["bias"]
    method = make(name, {}, state, CLIENTS, 0)
    local = moved(state, rng)
    model, n_bytes = method.up(0, local)
    assert list(model) == list(state)
    assert np.array_equal(model["norm.running_var"], local["norm.running_var"])
    assert not np.array_equal(model["weight"], local["weight"])
    assert n_bytes - 20 == pytest.approx(plain.up(0, {k: local[k] for k in initial})[1], abs=2)


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.99, 0.999])
def test_stc_code_equals_encode_and_decode(
    sparsity: float, initial: State, rng: np.random.Generator
) -> None:
    method = SparseTernary(initial, CLIENTS, 0, sparsity=sparsity)
    update = flat(moved(initial, rng)) - flat(initial)
    decoded, n_bytes = method.code(update)
    payload = method.encode(update)
    assert len(payload) == n_bytes
    assert np.array_equal(method.decode(payload, N_ELEMS), decoded)
    assert len(np.unique(np.abs(decoded))) == 2  # 0 and one magnitude


def test_stc_has_the_code_length_of_its_paper(initial: State) -> None:
    """Equation (15): b* + 1 / (1 - (1 - p)^(2^b*)) bits a position, for random positions."""
    method = SparseTernary(initial, CLIENTS, 0, sparsity=0.99)
    update = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    b = 6  # 1 + floor(log2(log(golden ratio - 1) / log(0.99)))
    expected = (b + 1 / (1 - 0.99 ** (2**b)) + 1) * 2000 / 8
    assert len(method.encode(update)) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("bits", [4, 8])
def test_qsgd_is_unbiased(bits: int, initial: State, rng: np.random.Generator) -> None:
    method = Qsgd(initial, CLIENTS, 0, bits=bits)
    update = flat(moved(initial, rng)) - flat(initial)
    update[512:1024] = 0
    decoded, n_bytes = method.code(update)
    assert n_bytes == 4 * 3 + math.ceil(N_ELEMS * bits / 8)
    step = np.abs(update[:512]).max() / (2 ** (bits - 1) - 1)
    assert np.abs(decoded - update)[:512].max() <= step * 1.0001
    assert not decoded[512:1024].any()
    repeats = 300
    mean = np.mean([method.code(update)[0] for _ in range(repeats)], axis=0)
    assert np.abs(mean - update)[:512].max() < 5 * step / 2 / repeats**0.5
    assert np.abs(decoded - update)[:512].max() > 5 * step / 2 / repeats**0.5


def test_sign_majority_follows_most_clients(initial: State) -> None:
    method = SignMajority(initial, CLIENTS, 0, step=0.5)
    votes = np.sign(np.random.default_rng(1).standard_normal((CLIENTS, N_ELEMS)))
    start = flat(initial)
    models = []
    for client, vote in enumerate(votes):
        local = like(initial, start + 0.1 * vote.astype(np.float32))
        model, n_bytes = method.up(client, local)
        assert n_bytes == math.ceil(N_ELEMS / 8)
        np.testing.assert_allclose(flat(model) - start, 0.5 * vote, atol=1e-6)
        models.append(model)
    mean = {k: np.mean([m[k] for m in models], axis=0) for k in initial}
    assert method.down(mean) == [math.ceil(N_ELEMS / 8)] * CLIENTS
    moved_by = flat(method.held[0]) - start
    np.testing.assert_allclose(moved_by, 0.5 * np.sign(votes.sum(axis=0)), atol=1e-6)


def test_sign_majority_breaks_ties_at_random(initial: State) -> None:
    method = SignMajority(initial, CLIENTS, 0, step=0.5)
    decoded, _ = method.code(np.zeros(N_ELEMS, np.float32))
    assert 0.4 < np.mean(decoded > 0) < 0.6


def test_drive_is_unbiased_at_one_bit(initial: State, rng: np.random.Generator) -> None:
    method = Drive(initial, CLIENTS, 0)
    update = rng.standard_t(3, 8192 + 100).astype(np.float32)
    decoded, n_bytes = method.code(update)
    assert n_bytes == 4 * 2 + (8192 + 128) // 8
    error = np.square(decoded - update).sum() / np.square(update).sum()
    assert error == pytest.approx(math.pi / 2 - 1, rel=0.05)  # of one bit, unbiased
    repeats = 200
    mean = np.mean([method.code(update)[0] for _ in range(repeats)], axis=0)
    left = np.square(mean - update).sum() / np.square(update).sum()
    assert left == pytest.approx((math.pi / 2 - 1) / repeats, rel=0.15)


def test_drive_of_zeros_is_zeros(initial: State) -> None:
    decoded, _ = Drive(initial, CLIENTS, 0).code(np.zeros(9000, np.float32))
    assert not decoded.any()


def test_median_quantizer_by_hand() -> None:
    residual = np.array([9, 1, -8, 2, 7, -3, 4, 0, 0, 0], np.float32)
    # Top 6: 9 -8 2 7 -3 4; median magnitude (lower) 4; left 9 -8 7 4; medians 7 and -8.
    assert quantize(residual, 0.4, 1).tolist() == [7, 0, -8, 0, 7, 0, 7, 0, 0, 0]
    assert quantize(residual, 0.4, 2).tolist() == [9, 0, -8, 0, 4, 0, 4, 0, 0, 0]


def test_published_accounting() -> None:
    assert huffman_bits([5, 2, 1, 1]) == 5 * 1 + 2 * 2 + 1 * 3 + 1 * 3
    residual = np.array([7, 0, -8, 0, 7, 0, 7, 0], np.float32)
    assert accounted_bits(residual) == 4 * (16 + 1 + 1) + 2 * 32
    assert accounted_bits(np.array([7, 0, 7], np.float32)) == 2 * (16 + 0 + 1) + 32


def test_resfed_sends_whole_models_until_it_can_predict(
    initial: State, rng: np.random.Generator
) -> None:
    method = ResFed(initial, CLIENTS, 0, rule="res1", sparsity=0.9)
    _, mean, sizes = one_round(method, rng)
    assert sizes == [4 * N_ELEMS] * 2 * CLIENTS
    assert np.array_equal(flat(method.held[0]), flat(mean))
    models, mean, sizes = one_round(method, rng)
    assert max(sizes) < 4 * N_ELEMS / 10
    for client in range(CLIENTS):
        before, after = method._global[client]
        shift = 0.5 * (flat(models[client]) - method._local[client][0])
        sent = after - before - shift
        assert np.count_nonzero(np.abs(sent) > 1e-6) <= N_ELEMS / 10 / 2 + 1


def test_codec_counts_keyframes(initial: State, rng: np.random.Generator) -> None:
    method = Codec(initial, CLIENTS, 0, keyframe=True, sparsity=0.9)
    first = method.begin()
    assert min(first) > 0.8 * 4 * N_ELEMS
    assert all(np.array_equal(flat(held), flat(initial)) for held in method.held)
    models, _, sizes = one_round(method, rng)
    assert max(sizes) < 4 * N_ELEMS / 5
    assert not np.array_equal(flat(models[0]), flat(initial))


@pytest.fixture
def with_statistics(initial: State) -> State:
    statistics = {"norm.running_var": np.ones(50, np.float32)}
    return {"weight": initial["weight"], **statistics, "bias": initial["bias"]}


@pytest.mark.parametrize("keyframe", [False, True])
@pytest.mark.parametrize(
    ("statistics", "error"),
    [("dense", 0.05), ("budget", 1.0), ("float16", 2**-11), ("apart", 0.005), ("kept", 0.0)],
)
def test_options_for_statistics(
    statistics: str,
    error: float,
    keyframe: bool,
    with_statistics: State,
    rng: np.random.Generator,
) -> None:
    start = with_statistics
    method = Codec(start, CLIENTS, 0, keyframe=keyframe, sparsity=0.95, statistics=statistics)
    method.begin()
    locals_ = [moved(method.held[i], rng) for i in range(CLIENTS)]
    results = [method.up(i, local) for i, local in enumerate(locals_)]
    models = [model for model, _ in results]
    mean = {k: np.mean([m[k] for m in models], axis=0, dtype=np.float32) for k in models[0]}
    method.down(mean)
    name = "norm.running_var"
    for i, held in enumerate(method.held):
        assert {k: (v.shape, v.dtype) for k, v in held.items()} == {
            k: (v.shape, np.float32) for k, v in start.items()
        }
        wanted = locals_[i][name] if statistics == "kept" else mean[name]
        np.testing.assert_allclose(held[name], wanted, atol=error, rtol=0)
    if statistics == "kept":
        assert name not in models[0]
    else:
        np.testing.assert_allclose(models[0][name], locals_[0][name], atol=error, rtol=0)


def test_statistics_in_some_rounds(with_statistics: State, rng: np.random.Generator) -> None:
    name = "norm.running_var"
    method = Codec(with_statistics, 1, 0, sparsity=0.95, exclude=("*running*",), statistics_every=2)
    old = method.held[0]
    sizes = []
    for number in range(1, 5):
        local = moved(method.held[0], rng)
        model, up = method.up(0, local)
        sizes.append(up + method.down(model)[0])
        expected = local if number % 2 == 0 else old
        assert np.array_equal(method.held[0][name], expected[name])
        assert not np.array_equal(method.held[0]["weight"], old["weight"])
        old = method.held[0]
    assert max(sizes[0], sizes[2]) < min(sizes[1], sizes[3]) - 100


def test_bytes_of_statistics(with_statistics: State, rng: np.random.Generator) -> None:
    start = with_statistics
    local = moved(start, rng)
    after = moved(local, rng)

    def n_bytes(**options: object) -> int:
        """Bytes of an uplink after the first round."""
        method = make("codec", {"sparsity": 0.95, **options}, start, 1, 0)
        method.down(method.up(0, local)[0])
        return method.up(0, after)[1]

    kept = n_bytes(statistics="kept")
    assert kept < n_bytes(statistics="apart") < n_bytes(exclude=("*running*",))
    assert kept < n_bytes(statistics="float16") < n_bytes(exclude=("*running*",))
    assert kept < n_bytes(statistics="apart", statistics_bits=4) < n_bytes(statistics="apart")
    assert kept < n_bytes() < n_bytes(vector_share=100)
    with pytest.raises(ValueError, match="statistics 'none'"):
        n_bytes(statistics="none")


def test_selection_by_magnitude_is_the_codecs_own(initial: State, rng: np.random.Generator) -> None:
    method = CodecSelect(initial, CLIENTS, 0, sparsity=0.95)
    local = moved(initial, rng)
    recovered, n_bytes = method.up(0, local)
    payload = rfc.encode(local, initial, sparsity=0.95, dense=())
    expected = rfc.decode(payload, initial)
    assert n_bytes == len(payload)
    np.testing.assert_allclose(flat(recovered), flat(expected), atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_selection_rules(rule: str, rng: np.random.Generator) -> None:
    """Recorded errors are those of the recovered model; matrices get at most k elements."""
    zeros = {
        "a": np.zeros((40, 40), np.float32),
        "b": np.zeros((8, 8, 3, 3), np.float32),
        "c": np.zeros(20, np.float32),
    }
    local = moved(zeros, rng)
    local["b"] *= 10
    method = CodecSelect(zeros, 1, 0, rule=rule, sparsity=0.95)
    recovered, _ = method.up(0, local)
    assert method.down(recovered)
    notes = method.notes()
    error = np.square(flat(recovered) - flat(local)).sum() / np.square(flat(local)).sum()
    assert notes["error_up"] == pytest.approx(error, rel=1e-4)
    assert notes["error_down"] < notes["error_up"] < 1
    sent = {name: np.count_nonzero(value) for name, value in recovered.items()}
    if rule != "rate":
        assert sent["a"] + sent["b"] <= 0.05 * (1600 + 576) + 2
    assert (sent["a"] >= 80) == (rule in ("tensor", "rms"))


def test_groups_keep_nonzeros_together(rng: np.random.Generator) -> None:
    values = rng.standard_normal(64 * 9).astype(np.float32)
    values[9:18] *= 10
    update = Matrices(values, [(8, 8, 3, 3)])
    chosen = np.flatnonzero(RULES["group"](update, 1 - 9 / 576, Costs()).values)
    assert len(chosen) == 9
    assert len(set(chosen // 9)) <= 4


def test_rate_drops_isolated_elements_and_fills_gaps() -> None:
    values = np.zeros(4000, np.float32)
    values[100:140] = 1
    values[[110, 120]] = 0.8  # gaps
    values[[1000, 2500, 3900]] = 1.0001  # isolated elements
    update = Matrices(values, [(40, 100)])
    chosen = RULES["rate"](update, 1 - 41 / 4000, Costs()).values
    assert np.flatnonzero(chosen).tolist() == list(range(100, 140))
    assert chosen[110] == 1


def test_rate_sends_as_many_bytes_as_magnitude(rng: np.random.Generator) -> None:
    """In both directions, and with a smaller error."""
    zeros = {"w": np.zeros((100, 200), np.float32), "b": np.zeros(20, np.float32)}
    rows = rng.lognormal(0, 1, (100, 1)).astype(np.float32)
    sizes, errors = [], []
    for rule in ("magnitude", "rate"):
        draws = np.random.default_rng(1)
        method = CodecSelect(zeros, 1, 0, rule=rule, sparsity=0.95)
        for _ in range(5):
            local = moved(method.held[0], draws)
            local["w"] = method.held[0]["w"] + rows * (local["w"] - method.held[0]["w"])
            model, up = method.up(0, local)
            down = method.down(model)[0]
            notes = method.notes()
        sizes.append([up, down])
        errors.append(notes["error_up"])
    np.testing.assert_allclose(sizes[1], sizes[0], rtol=0.1)
    assert errors[1] < errors[0]


def test_feedback_down_is_a_server_with_the_exact_model(
    initial: State, rng: np.random.Generator
) -> None:
    """Both add what the downlink leaves out to the next update."""
    ours = Codec(initial, CLIENTS, 0, down_feedback=True, sparsity=0.9)
    exact = Codec(initial, CLIENTS, 0, sparsity=0.9)
    model = initial
    for _ in range(4):
        mean = moved(ours.held[0], rng)
        model = {k: model[k] + (mean[k] - exact.held[0][k]) for k in model}
        ours.down(mean)
        exact.down(model)
        for name in initial:
            np.testing.assert_allclose(ours.held[0][name], exact.held[0][name], atol=1e-5)
