"""Aggregator: a client's uplink counts once and cannot block other clients' uplinks."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import resfed_codec as rfc
from models import State, assert_same, cnn_pair
from published_rules import moved

MOST = 2.0**45
"""The limit of a change times its weight."""

ZERO = [np.zeros(3, np.float32)]


def one(value: float, place: int = 0) -> list[np.ndarray]:
    model = [np.zeros(3, np.float32)]
    model[0][place] = value
    return model


# ---- sums of any size


@given(
    st.lists(
        st.tuples(
            st.sampled_from([2.0**44, -(2.0**44), 1e13, -3e10, 1.0, -0.0625, 2.0**-30, 3e-7]),
            st.sampled_from([1, 2.0**-20, 0.75, 1.999]),
        ),
        min_size=1,
        max_size=60,
    ),
    st.randoms(use_true_random=False),
)
def test_floats_are_exact_beyond_128_bits(drawn: list[tuple[float, float]], random: Any) -> None:
    total = Fraction(0)
    for value, weight in drawn:
        product = Fraction(float(weight) * float(np.float32(value)))
        total += Fraction(int(product * 2**80), 2**80)
    weights = sum(Fraction(float(weight)) for _, weight in drawn)
    expected = np.float32(float(total) / float(weights))
    for models in (drawn, random.sample(drawn, len(drawn))):
        aggregator = rfc.Aggregator(ZERO)
        for value, weight in models:
            aggregator.add_state(one(value), weight)
        assert aggregator.result()[0][0] == expected


def test_floats_that_cancel_after_a_carry() -> None:
    aggregator = rfc.Aggregator(ZERO)
    for value in [2.0**44] * 50 + [2.0**-20] + [-(2.0**44)] * 50:
        aggregator.add_state(one(value))
    assert aggregator.result()[0][0] == np.float32(2.0**-20 / 101)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([2**63 - 1, -(2**63), 2**62 + 1, 5, -7, 0]),
            st.sampled_from([1, 2.0**20, 3.5, 2.0**-40]),
        ),
        min_size=1,
        max_size=40,
    )
)
def test_integers_are_exact_beyond_128_bits(drawn: list[tuple[int, float]]) -> None:
    aggregator = rfc.Aggregator([np.array([-1, 0, 1])])
    for value, weight in drawn:
        aggregator.add_state([np.array([-1, value, 1])], weight)
    units = [int(Fraction(float(weight)) * 2**40) for _, weight in drawn]
    total = sum(unit * value for unit, (value, _) in zip(units, drawn, strict=True))
    assert aggregator.result()[0].tolist() == [-1, round(Fraction(total, sum(units))), 1]


def test_a_client_cannot_block_others() -> None:
    """Any model, added any number of times, either counts or raises without effect on others."""
    server = rfc.ServerSession(ZERO)
    total = server.aggregator()
    evil = rfc.ClientSession(ZERO, rfc.CodecConfig(error_feedback=False), client_id="evil")
    honest = rfc.ClientSession(ZERO, client_id="honest")
    for value, fits in [(2.0**38, False), (2.0**37, True), (2.0**37, True), (1e38, False)] * 3:
        payload = evil.send(one(value))
        try:
            server.receive_into("evil", payload, total, 128.0, repeated="add")
            counted = True
        except rfc.CodecError:
            counted = False
        assert counted is fits
    n = total.count
    assert n == 6
    assert server.receive_into("honest", honest.send(one(0.5, place=1)), total, 128.0)
    assert total.result()[0][1] == np.float32(0.5 / (n + 1))


@pytest.mark.parametrize("value", [MOST, -MOST, np.inf, np.nan])
def test_a_contribution_that_is_too_large(value: float) -> None:
    aggregator = rfc.Aggregator(ZERO)
    payload = rfc.encode(one(value), ZERO, exclude="*")
    with pytest.raises(rfc.PayloadError, match="with this weight: the change of tensor '0'"):
        aggregator.add(payload)
    with pytest.raises(ValueError, match=r"^weight: the change of tensor '0'"):
        aggregator.add_state(one(value))
    assert aggregator.count == 0
    aggregator.add(rfc.encode(one(np.nextafter(np.float32(MOST), 0)), ZERO, exclude="*"))
    assert aggregator.count == 1


# ---- a weight of 0


def test_a_weight_of_0_adds_nothing() -> None:
    aggregator = rfc.Aggregator(ZERO)
    payload = rfc.encode(one(1), ZERO, sparsity=0)
    aggregator.add(payload, 0)
    aggregator.add_state(one(np.nan), 0.0)
    with pytest.raises(rfc.PayloadError):
        aggregator.add(payload[:-1], 0)
    assert (aggregator.count, aggregator.total_weight) == (0, 0.0)
    with pytest.raises(ValueError, match="nothing was added"):
        aggregator.result()
    aggregator.add(payload, 3)
    aggregator.add(rfc.encode(one(8), ZERO, sparsity=0), 0)
    assert (aggregator.count, aggregator.total_weight) == (1, 3.0)
    assert_same(aggregator.result(), rfc.decode(payload, ZERO))


# ---- a client's uplinks of one round


def ends(rng: np.random.Generator, uplink: rfc.CodecConfig) -> tuple[Any, Any, State]:
    """A server, a client and their first model."""
    model = cnn_pair(rng)[1]
    server = rfc.ServerSession(model, uplink)
    return server, rfc.ClientSession(model, uplink, client_id="a"), model


UPLINKS = {
    "straight from payloads": rfc.CodecConfig(),
    "from the client's own models": rfc.CodecConfig(predictor="res0", error_feedback=False),
}


@pytest.mark.parametrize("uplink", UPLINKS.values(), ids=UPLINKS.keys())
def test_the_newest_uplink_of_a_client_counts(
    uplink: rfc.CodecConfig, rng: np.random.Generator
) -> None:
    server, client, model = ends(rng, uplink)
    other = rfc.ClientSession(model, uplink, client_id="b")
    first, second, theirs = (c.send(moved(model, rng)) for c in (client, client, other))
    twin = rfc.ServerSession(model, uplink)
    twin.receive("a", first)
    expected = twin.aggregator()
    expected.add_state(twin.receive("b", theirs), 2)
    expected.add_state(twin.receive("a", second), 5)

    total = server.aggregator()
    assert server.receive_into("a", first, total, 3)
    assert server.receive_into("b", theirs, total, 2)
    assert server.receive_into("a", second, total, 5)
    assert (total.count, total.total_weight) == (2, 7.0)
    assert_same(total.result(), expected.result())
    assert not server.receive_into("a", second, total, 5)
    assert not server.receive_into("a", second, total, 5, repeated="add")


def test_late_uplinks_and_whole_models_are_replaced_too(rng: np.random.Generator) -> None:
    """A new uplink replaces one based on an older global model, and a keyframe replaces that."""
    server, client, model = ends(rng, rfc.CodecConfig())
    late = client.send(moved(model, rng))
    server.update(moved(model, rng))
    client.receive(server.send("a"))
    total = server.aggregator()
    server.receive_into("a", late, total, 3)
    lost = client.send(moved(model, rng))
    stranger = rfc.ServerSession(model)
    with pytest.raises(rfc.StateMismatchError) as caught:
        stranger.receive("a", lost)
    whole = client.answer(caught.value.request)
    assert server.receive_into("a", whole, total, 4)
    newest = client.send(moved(model, rng))
    twin = rfc.ServerSession(model)
    twin.load_state_dict(server.state_dict())
    assert server.receive_into("a", newest, total, 2.0)
    expected = rfc.Aggregator(server.state)
    expected.add_state(twin.receive("a", newest), 2.0)
    assert (total.count, total.total_weight) == (1, 2.0)
    assert_same(total.result(), expected.result())


def test_each_uplink_counts_on_request(rng: np.random.Generator) -> None:
    server, client, model = ends(rng, rfc.CodecConfig())
    total = server.aggregator()
    for n in range(3):
        server.receive_into("a", client.send(moved(model, rng)), total, repeated="add")
        assert total.count == n + 1
    with pytest.raises(ValueError, match="repeated='both': must be"):
        server.receive_into("a", client.send(model), total, repeated="both")
    assert total.count == 3


def test_a_new_round_begins_with_reset(rng: np.random.Generator) -> None:
    server, client, model = ends(rng, rfc.CodecConfig())
    total = server.aggregator()
    server.receive_into("a", client.send(moved(model, rng)), total)
    total.reset()
    payload = client.send(moved(model, rng))
    assert server.receive_into("a", payload, total)
    assert total.count == 1


def test_replaced_by_a_weight_of_0(rng: np.random.Generator) -> None:
    server, client, model = ends(rng, rfc.CodecConfig())
    total = server.aggregator()
    server.receive_into("a", client.send(moved(model, rng)), total, 3)
    server.receive_into("a", client.send(moved(model, rng)), total, 0)
    assert (total.count, total.total_weight) == (0, 0.0)
    other = rfc.ClientSession(model, client_id="b")
    server.receive_into("b", other.send(model), total)
    assert_same(total.result(), model)


def test_a_refused_uplink_replaces_nothing() -> None:
    server = rfc.ServerSession(ZERO)
    client = rfc.ClientSession(ZERO, rfc.CodecConfig(error_feedback=False), client_id="a")
    total = server.aggregator()
    server.receive_into("a", client.send(one(1)), total)
    before = total.result()
    with pytest.raises(rfc.PayloadError, match="too large"):
        server.receive_into("a", client.send(one(1e20)), total)
    assert total.count == 1
    assert_same(total.result(), before)


# ---- memory


MEASURED = """
import numpy as np
import resfed_codec as rfc

def resident():
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmRSS"))

n = 4_000_000
reference = {"w": np.zeros(n, np.float32)}
payload = rfc.encode({"w": np.linspace(1, 2, n, dtype=np.float32)}, reference, sparsity=0)
aggregator = rfc.Aggregator(reference)
for _ in range(3):
    aggregator.reset()  # buffers that later calls reuse are kept
    before = resident()
    aggregator.add(payload)
    aggregator.add_state({"w": np.ones(n, np.float32)})
print((resident() - before) / n)
aggregator.reset()
print((resident() - before) / n)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_reset_gives_memory_back() -> None:
    """Runs in a process of its own, without the memory of other tests."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True
    )
    added, after_reset = map(float, run.stdout.split())
    assert added > 15
    assert after_reset < 2
