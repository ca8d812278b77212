"""max_norm: the L2 norm of what the other end decodes, minus the reference, has a bound."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import resfed_codec as rfc
from models import State

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.float64]
one_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)


def model(rng: np.random.Generator, dtype: Any = np.float32, scale: float = 1.0) -> State:
    shapes = {"w": (20, 15), "conv": (4, 4, 3, 3), "b": (30,), "var": (16,), "n": ()}
    new = {
        name: (scale * rng.standard_normal(shape)).astype(dtype) for name, shape in shapes.items()
    }
    new["var"] = np.abs(new["var"])
    return {**new, "n": np.array(7)}


def moved(reference: State, rng: np.random.Generator, scale: float = 0.1) -> State:
    change = model(rng, np.float64, scale)
    change["var"] = -reference["var"] * rng.random(16)
    new = {name: (value + change[name]).astype(value.dtype) for name, value in reference.items()}
    return {**new, "n": reference["n"]}


def squares(recovered: State, reference: State) -> Fraction:
    """The exact sum of the squares of what changed."""
    total = Fraction(0)
    for name, value in reference.items():
        new, old = (a.astype(np.float64).reshape(-1).tolist() for a in (recovered[name], value))
        total += sum((Fraction(x) - Fraction(y)) ** 2 for x, y in zip(new, old, strict=True))
    return total


def is_within(recovered: State, reference: State, bound: float) -> bool:
    return squares(recovered, reference) <= Fraction(bound) ** 2


@one_dtype
@pytest.mark.parametrize("bound", [1e-12, 1e-3, 0.1, 0.7, 2.0])
@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"bits": 1}, {"max_bytes": 900}], ids=str)
def test_encode(
    dtype: Any, bound: float, options: dict[str, Any], rng: np.random.Generator
) -> None:
    reference = model(rng, dtype)
    state = moved(reference, rng)
    free = rfc.decode(rfc.encode(state, reference, dense="var", **options), reference)
    assert not is_within(free, reference, 0.7)
    payload = rfc.encode(state, reference, max_norm=bound, dense="var", **options)
    assert "max_bytes" not in options or len(payload) <= options["max_bytes"]
    recovered = rfc.decode(payload, reference)
    assert is_within(recovered, reference, bound)
    assert (recovered["var"].astype(np.float64) >= 0).all()
    limited = not is_within(free, reference, bound)
    if limited and dtype in (np.float32, np.float64) and bound > 1e-6:
        assert squares(recovered, reference) > Fraction(0.999 * bound) ** 2


@one_dtype
def test_a_bound_that_holds_anyway_changes_nothing(dtype: Any, rng: np.random.Generator) -> None:
    reference = model(rng, dtype)
    state = moved(reference, rng)
    assert rfc.encode(state, reference, max_norm=100.0) == rfc.encode(state, reference)


def test_a_bound_below_all_steps_sends_nothing() -> None:
    """A bfloat16 near 256 can change by 2, or not at all."""
    reference = {"w": np.full((4, 4), 256, ml_dtypes.bfloat16)}
    state = {"w": np.full((4, 4), 260, ml_dtypes.bfloat16)}
    recovered = rfc.decode(rfc.encode(state, reference, max_norm=1.5), reference)
    assert recovered["w"].tobytes() == reference["w"].tobytes()
    recovered = rfc.decode(rfc.encode(state, reference, max_norm=16.01, sparsity=0), reference)
    assert squares(recovered, reference) == 16 * 4**2


@one_dtype
def test_feedback_sends_the_rest_later(dtype: Any, rng: np.random.Generator) -> None:
    """No update changes more than the bound, and together they change all there is."""
    initial = model(rng, dtype, scale=0.1)
    encoder = rfc.Encoder(initial, sparsity=0.5, max_norm=0.5, error_feedback=True)
    target = moved(initial, rng)
    encoder.encode(target)
    for _ in range(150):
        before = encoder.state
        encoder.encode(before)  # nothing new: the feedback alone
        assert is_within(encoder.state, before, 0.5)
    for name in ("w", "conv", "b"):
        left = np.abs(encoder.state[name].astype(float) - target[name].astype(float)).max()
        assert left < 0.03, name


def test_sessions(rng: np.random.Generator) -> None:
    """Uplinks of a client, one of which is lost and one refused."""
    initial = model(rng)
    uplink = rfc.CodecConfig(sparsity=0.9, max_norm=0.4)
    downlink = rfc.CodecConfig(sparsity=0.9, max_norm=0.2)
    server = rfc.ServerSession(initial, uplink, downlink)
    client = rfc.ClientSession(initial, uplink, downlink, client_id="a")
    for number in range(12):
        before = server.state
        server.update(moved(before, rng))
        assert is_within(server.state, before, 0.2)
        held = client.receive(server.send("a"))
        payload = client.send(moved(held, rng))
        if number == 4:
            continue  # lost
        if number == 7:
            server.forget("a")
            server.load_state_dict(rfc.ServerSession(initial, uplink, downlink).state_dict())
            with pytest.raises(rfc.StateMismatchError) as refusal:
                server.receive("a", payload)
            payload = client.answer(refusal.value.request)
        assert is_within(server.receive("a", payload), held, 0.4)
        if number == 7:
            client.receive(server.send("a"))


def test_any_number_of_threads(rng: np.random.Generator) -> None:
    reference = {"w": rng.standard_normal((700, 700)).astype(np.float32)}
    state = {"w": reference["w"] + rng.standard_normal((700, 700)).astype(np.float32)}
    before, payloads = rfc.get_num_threads(), []
    try:
        for n in (1, 4):
            rfc.set_num_threads(n)
            payloads.append(rfc.encode(state, reference, sparsity=0.7, max_norm=3.0))
    finally:
        rfc.set_num_threads(before)
    assert payloads[0] == payloads[1]
    assert is_within(rfc.decode(payloads[0], reference), reference, 3.0)


def test_lossless_tensors_must_not_change(rng: np.random.Generator) -> None:
    reference = model(rng)
    state = moved(reference, rng)
    assert rfc.encode(state, reference, max_norm=1.0)
    match = "max_norm: tensor 'n' is carried losslessly and has changed"
    with pytest.raises(ValueError, match=match):
        rfc.encode({**state, "n": np.array(8)}, reference, max_norm=1.0)
    with pytest.raises(ValueError, match=r"tensor 'b' is carried losslessly"):
        rfc.encode(state, reference, max_norm=1.0, exclude="b")
    encoder = rfc.Encoder(reference, max_norm=1.0, error_feedback=True)
    before = {k: v.tobytes() for k, v in encoder.state_dict().items()}
    with pytest.raises(ValueError, match=match):
        encoder.encode({**state, "n": np.array(8)})
    assert before == {k: v.tobytes() for k, v in encoder.state_dict().items()}


def test_refused(rng: np.random.Generator) -> None:
    for value in (0, -1.0, float("inf"), float("nan"), 2.0**101):
        with pytest.raises(ValueError, match="max_norm="):
            rfc.CodecConfig(max_norm=value)
    with pytest.raises(TypeError, match="max_norm="):
        rfc.CodecConfig(max_norm="1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_error and max_norm exclude each other"):
        rfc.CodecConfig(max_error=0.1, max_norm=1.0)
    initial = model(rng)
    for predictor in ("previous", "res1", "adaptive"):
        uplink = rfc.CodecConfig(max_norm=1.0, predictor=predictor)
        for kind in (rfc.ServerSession, rfc.ClientSession):
            with pytest.raises(ValueError, match=r'uplink: max_norm .* predictor="global"'):
                kind(initial, uplink)
    downlink = rfc.CodecConfig(max_norm=1.0, predictor="adaptive")
    with pytest.raises(ValueError, match=r'downlink: max_norm .* predictor="previous"'):
        rfc.ServerSession(initial, None, downlink)
    with pytest.raises(ValueError, match=r'config: max_norm .* predictor="previous"'):
        rfc.Encoder(initial, downlink)
