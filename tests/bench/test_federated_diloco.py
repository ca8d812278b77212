"""Methods of benchmarks/federated for data-parallel training of a language model."""

from __future__ import annotations

import math

import numpy as np
import pytest
from benchmarks.federated.methods import State, make
from benchmarks.federated.methods.base import flat
from benchmarks.federated.methods.diloco import Outer, largest_of_chunks, quantize
from benchmarks.federated.methods.flasc import Flasc

CLIENTS = 3


@pytest.fixture
def initial(rng: np.random.Generator) -> State:
    shapes = {"block.up": (128, 192), "block.norm": (192,), "odd": (70, 65)}
    return {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}


def moved(state: State, rng: np.random.Generator) -> State:
    return {k: v + (0.01 * rng.standard_t(2, v.shape)).astype(np.float32) for k, v in state.items()}


def mean_of(models: list[State]) -> State:
    return {
        k: np.mean([m[k] for m in models], axis=0, dtype=np.float64).astype(np.float32)
        for k in models[0]
    }


def test_outer_steps_are_those_of_pytorch(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    for momentum in (0.0, 0.9):
        parameter = torch.nn.Parameter(torch.zeros(20))
        optimizer = torch.optim.SGD([parameter], 0.7, momentum, nesterov=momentum > 0)
        outer, model = Outer(0.7, momentum), np.zeros(20, np.float32)
        for _ in range(4):
            gradient = rng.standard_normal(20).astype(np.float32)
            parameter.grad = torch.from_numpy(gradient)
            optimizer.step()
            model = model - outer.step(gradient)
            np.testing.assert_allclose(model, parameter.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_diloco_sends_whole_models(initial: State, rng: np.random.Generator) -> None:
    plain = {"outer_lr": 1.0, "outer_momentum": 0.0}
    method, average = (
        make(*words, initial, CLIENTS, 0) for words in (("diloco", plain), ("uncompressed", {}))
    )
    for _ in range(2):
        locals_ = [moved(average.held[0], rng) for _ in range(CLIENTS)]
        for m in (method, average):
            sent = [m.up(i, local) for i, local in enumerate(locals_)]
            assert [n for _, n in sent] == [4 * flat(initial).size] * CLIENTS
            assert (
                m.down(mean_of([model for model, _ in sent])) == [4 * flat(initial).size] * CLIENTS
            )
    np.testing.assert_allclose(flat(method.held[0]), flat(average.held[0]), atol=1e-5)


def test_chunks_are_squares_of_matrices_and_rows_of_the_rest(
    initial: State, rng: np.random.Generator
) -> None:
    matrix = initial["block.up"]
    chosen = largest_of_chunks(matrix, 64)
    for i in range(0, 128, 64):
        for j in range(0, 192, 64):
            part, marks = (x[i : i + 64, j : j + 64] for x in (np.abs(matrix), chosen))
            assert marks.sum() == 64
            assert part[marks].min() >= part[~marks].max()
    odd = initial["odd"]  # 4,550 elements: a chunk of 4,096 and one of 454
    marks = largest_of_chunks(odd, 64).reshape(-1)
    assert marks.shape == (4550,)
    assert (marks[:4096].sum(), marks[4096:].sum()) == (64, 64 * 454 // 4096)
    row = np.abs(odd.reshape(-1)[:4096])
    assert row[marks[:4096]].min() >= row[~marks[:4096]].max()
    assert largest_of_chunks(rng.standard_normal(5).astype(np.float32), 64).sum() == 1


def test_four_bins_by_hand() -> None:
    values = np.array([-10, -9, -1, 1, 10, 9, 1, -1], np.float32)
    # mean 0, standard deviation 7.25: bins begin at -1.5, -0.5 and 0.5 times 10.9
    bins = [[-10, -9], [-1, 1, 1, -1], [10, 9]]
    means = {value: np.mean(bin_) for bin_ in bins for value in bin_}
    np.testing.assert_allclose(quantize(values), [means[v] for v in values])
    assert len(np.unique(quantize(np.random.default_rng(0).standard_t(2, 1000)))) == 4
    assert quantize(np.array([3.0], np.float32)).tolist() == [3]
    assert quantize(np.full(4, 2, np.float32)).tolist() == [2] * 4


@pytest.mark.parametrize(("decay", "rounds"), [(1.0, 4), (0.5, 4)])
@pytest.mark.parametrize("name", ["sparseloco", "codec_gathered"])
def test_error_feedback_sends_later_and_decays(
    name: str, decay: float, rounds: int, initial: State, rng: np.random.Generator
) -> None:
    method = make(name, {"decay": decay}, initial, CLIENTS, 0)
    left = np.zeros(flat(initial).size)
    for _ in range(rounds):
        held = flat(method.held[0]).astype(np.float64)
        local = moved(method.held[0], rng)
        wanted = held - flat(local) + decay * left
        received = held - flat(method.up(0, local)[0])
        left = wanted - received
        assert 0 < np.count_nonzero(np.abs(received) > 1e-4) < 0.03 * len(left)
    np.testing.assert_allclose(method._left[0], left, atol=1e-5)  # type: ignore[attr-defined]


def test_all_workers_make_the_same_outer_step(initial: State, rng: np.random.Generator) -> None:
    for name in ("sparseloco", "codec_gathered"):
        options = {"outer_lr": 0.5, "outer_momentum": 0.9}
        method = make(name, options, initial, CLIENTS, 0)
        outer = Outer(0.5, 0.9)
        for _ in range(2):
            held = flat(method.held[0])
            sent = [method.up(i, moved(method.held[i], rng)) for i in range(CLIENTS)]
            mean = mean_of([model for model, _ in sent])
            sizes = [n for _, n in sent]
            assert method.down(mean) == [sum(sizes) - n for n in sizes]
            np.testing.assert_array_equal(
                flat(method.held[0]), held - outer.step(held - flat(mean))
            )
            assert all(model is method.held[0] for model in method.held)


def test_sparseloco_counts_14_bits_and_records_20(initial: State, rng: np.random.Generator) -> None:
    method = make("sparseloco", {}, initial, CLIENTS, 0)
    sent = 6 * 64 + 3 + 64 + 7  # of the matrix, of the vector, of the rest
    sizes = [method.up(i, moved(initial, rng))[1] for i in range(CLIENTS)]
    assert sizes == [math.ceil(sent * 14 / 8)] * CLIENTS
    assert abs(method.notes()["up_packed"] - CLIENTS * sent * 20 / 8) < CLIENTS * 2


def test_codec_diloco_keeps_an_exact_model(initial: State, rng: np.random.Generator) -> None:
    """Later rounds send what clients lack, so they approach it after the workers stop."""
    method = make("codec_diloco", {"sparsity": 0.9}, initial, CLIENTS, 0)
    for _ in range(3):
        models = [method.up(i, moved(method.held[i], rng))[0] for i in range(CLIENTS)]
        method.down(mean_of(models))
    exact = method._exact.copy()  # type: ignore[attr-defined]
    before = np.square(flat({k: method.held[0][k] for k in initial}) - exact).sum()
    assert before > 0
    for _ in range(20):
        method.down(method.held[0])
    np.testing.assert_allclose(method._exact, exact)  # type: ignore[attr-defined]
    after = np.square(flat({k: method.held[0][k] for k in initial}) - exact).sum()
    assert after < 0.1 * before


def test_flasc_sends_the_largest_both_ways_and_tests_the_server(
    initial: State, rng: np.random.Generator
) -> None:
    method = make("flasc", {"up_density": 0.25, "down_density": 0.125}, initial, CLIENTS, 0)
    assert isinstance(method, Flasc)
    local = moved(initial, rng)
    model, n_bytes = method.up(0, local)
    counts = [math.ceil(v.size / 4) for v in initial.values()]
    assert n_bytes == sum(4 * c for c in counts) + sum(
        math.ceil(v.size / 8) for v in initial.values()
    )
    for (name, value), count in zip(initial.items(), counts, strict=True):
        change = np.abs(model[name] - value)
        assert np.count_nonzero(change) <= count
        left = np.abs(local[name] - model[name])
        assert left.max() <= np.sort(np.abs(local[name] - value).reshape(-1))[-count] + 1e-6
    method.down(model)
    assert method.tested is model
    assert all(np.count_nonzero(v) == math.ceil(v.size / 8) for v in method.held[0].values())
    # A client's change is added to the server's model, not to the sparse one it trained from.
    again, _ = method.up(1, method.held[1])
    assert all(np.array_equal(again[name], model[name]) for name in model)
