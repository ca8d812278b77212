"""Encoder and Decoder out of sync: refused payloads, recovery and restarts."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc
from models import assert_same
from published_rules import moved, random_model
from snapshots import SAVERS, mismatched, refused, snapshot

PREDICTORS = ["previous", "adaptive", rfc.LinearPredictor((2, -1))]


def config(predictor: Any = None, feedback: bool = False) -> rfc.CodecConfig:
    return rfc.CodecConfig(sparsity=0.6, predictor=predictor, error_feedback=feedback)


class Pair:
    """An Encoder, a Decoder, and the payloads of some rounds."""

    def __init__(self, predictor: Any = None, n_rounds: int = 4, **arguments: Any) -> None:
        self.rng = np.random.default_rng(11)
        self.initial = random_model(self.rng)
        self.enc = rfc.Encoder(self.initial, config(predictor), **arguments)
        self.dec = rfc.Decoder(self.initial, **arguments)
        self.payloads = [self.encode() for _ in range(n_rounds)]

    def encode(self) -> bytes:
        return self.enc.encode(moved(self.enc.state, self.rng))

    def deliver(self, *numbers: int) -> Any:
        for number in numbers:
            recovered = self.dec.decode(self.payloads[number - 1])
        return recovered

    def refused(self, payload: bytes, match: str) -> bytes:
        error = mismatched(match, self.dec.decode, payload)
        return error.request

    def recover(self, request: bytes) -> None:
        answer = self.enc.answer(request)
        assert_same(self.dec.decode(answer), self.enc.state)
        self.goes_on()

    def goes_on(self) -> None:
        """The next rounds succeed, and both ends predict from the same history."""
        for _ in range(4):
            assert_same(self.dec.decode(self.encode()), self.enc.state)
            assert self.dec.version == self.enc.version


@pytest.fixture(params=PREDICTORS, ids=str)
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(request.param)


def test_repeated_payload(pair: Pair) -> None:
    """A repeated payload returns the same model, any number of times."""
    for number in range(1, 5):
        first = pair.deliver(number)
        before = snapshot(pair.dec)
        assert_same(pair.deliver(number, number, number), first)
        assert snapshot(pair.dec) == before
    pair.goes_on()


def test_older_payload(pair: Pair) -> None:
    pair.deliver(1, 2, 3)
    for number in (1, 2):
        request = pair.refused(
            pair.payloads[number - 1],
            rf"version {number}, .* held here, version 3 \(digest [0-9a-f]{{16}}\): it is older",
        )
    pair.deliver(3, 4)
    pair.recover(request)


def test_gap(pair: Pair) -> None:
    pair.deliver(1)
    for number in (3, 4):
        request = pair.refused(
            pair.payloads[number - 1],
            f"version {number}, building on version {number - 1}, does not follow on what is held"
            r" here, version 1 \(.*: payloads between them are missing",
        )
    assert len(request) < 40
    pair.recover(request)


def test_gap_before_the_first_payload(pair: Pair) -> None:
    pair.recover(pair.refused(pair.payloads[3], "held here, version 0 "))


def test_missing_payloads_may_arrive_late(pair: Pair) -> None:
    pair.deliver(1)
    pair.refused(pair.payloads[2], "are missing")
    assert_same(pair.deliver(2, 3, 4), pair.enc.state)
    pair.goes_on()


def test_another_run(pair: Pair) -> None:
    other = rfc.Encoder(pair.initial, config(), run="b")
    request = pair.refused(other.encode(pair.initial), "it was made by another run")
    with pytest.raises(rfc.StateMismatchError, match="another run: '' there, 'b' here") as caught:
        other.answer(request)
    assert caught.value.request == b""
    error = mismatched("another run: 'b' there, '' here", pair.dec.decode, other.keyframe())
    assert error.request == b""
    pair.deliver(1, 2, 3, 4)
    pair.refused(other.encode(pair.initial), "of another run")
    assert pair.dec.version == 4
    pair.goes_on()
    named = Pair(run="b")
    named.deliver(1, 2, 3, 4)
    named.goes_on()


def test_another_initial_state(pair: Pair) -> None:
    changed = {name: value.copy() for name, value in pair.initial.items()}
    changed["w32"][3, 4] = np.nextafter(changed["w32"][3, 4], np.float32(100))
    other = rfc.Encoder(changed, config())
    pair.refused(other.encode(changed), "made by another run")
    pair.refused(other.keyframe(), "a keyframe of another stream")
    renamed = {name.upper(): value for name, value in pair.initial.items()}
    another = rfc.Encoder(renamed, config())
    request = pair.refused(another.encode(renamed), "made by another run")
    match = r"tensor 0 is 'bias' float32 \[11\] there and 'BIAS' float32 \[11\] here"
    with pytest.raises(rfc.StateMismatchError, match=match):
        another.answer(request)


def test_payloads_of_other_kinds(pair: Pair) -> None:
    match = "belongs to no stream: give it to decode"
    refused(rfc.PayloadError, match, pair.dec.decode, rfc.encode(pair.initial, pair.initial))
    client, server = rfc.ClientSession(pair.initial), rfc.ServerSession(pair.initial)
    first = client.send(pair.initial)
    client.receive(server.send("a"))
    pair.refused(client.send(pair.initial), "belongs to a session")
    for kind, data in (
        ("message", server.send("a")),
        ("first uplink", first),
        ("keyframe payload", rfc.encode_keyframe(pair.initial)),
        ("request", pair.refused(pair.payloads[2], "missing")),
    ):
        refused(rfc.PayloadError, "payload: ", pair.dec.decode, data)
        if kind != "request":
            with pytest.raises(rfc.PayloadError):
                pair.enc.answer(data)
    with pytest.raises(rfc.PayloadError, match="this is a message: give it to"):
        pair.enc.answer(pair.enc.keyframe())
    with pytest.raises(rfc.StateMismatchError, match=r"belongs to a stream .*version 1"):
        rfc.decode(pair.payloads[0], pair.initial)
    with pytest.raises(rfc.StateMismatchError, match="belongs to a stream"):
        rfc.Aggregator(pair.initial).add(pair.payloads[0])


# ---- keyframes


def test_keyframe(pair: Pair) -> None:
    """A decoder that is behind takes a keyframe; one that is ahead does not."""
    early = pair.enc.keyframe()
    assert_same(pair.dec.decode(early), pair.enc.state)
    before = snapshot(pair.dec)
    assert_same(pair.dec.decode(early), pair.enc.state)
    assert snapshot(pair.dec) == before
    pair.goes_on()
    pair.refused(early, "a keyframe of version 4, older than what is held here, version 8 ")
    newcomer = rfc.Decoder(pair.initial)
    assert_same(newcomer.decode(pair.enc.keyframe()), pair.enc.state)
    assert_same(newcomer.decode(pair.encode()), pair.enc.state)


def test_keyframe_before_the_first_payload() -> None:
    pair = Pair(n_rounds=0)
    assert_same(pair.dec.decode(pair.enc.keyframe()), pair.initial)
    pair.goes_on()


# ---- restarts


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("n_ahead", [1, 3])
def test_encoder_restarts_from_an_old_state(pair: Pair, n_ahead: int, feedback: bool) -> None:
    """It then reuses version numbers for other models."""
    pair.enc = rfc.Encoder(pair.initial, config(pair.enc._update_encoder.predictor, feedback))
    pair.payloads = [pair.encode() for _ in range(2)]
    pair.deliver(1, 2)
    saved = pair.enc.state_dict()
    for _ in range(n_ahead):
        pair.dec.decode(pair.encode())
    pair.enc = rfc.Encoder(pair.initial, config(pair.enc._update_encoder.predictor, feedback))
    pair.enc.load_state_dict(saved)
    request = pair.refused(pair.encode(), f"held here, version {2 + n_ahead} ")
    pair.recover(request)


def test_decoder_restarts_from_an_old_state(pair: Pair) -> None:
    pair.deliver(1, 2)
    saved = pair.dec.state_dict()
    pair.deliver(3, 4)
    pair.dec = rfc.Decoder(pair.initial)
    pair.dec.load_state_dict(saved)
    assert pair.dec.version == 2
    pair.recover(pair.refused(pair.encode(), "are missing"))


def test_decoder_restarts_without_state(pair: Pair) -> None:
    pair.deliver(1, 2, 3, 4)
    pair.dec = rfc.Decoder(pair.initial)
    pair.recover(pair.refused(pair.encode(), "held here, version 0 "))


def test_state_saved_before_an_encode_that_was_delivered(pair: Pair) -> None:
    """The same state makes the same payload again, which the decoder has already received."""
    pair.deliver(1, 2, 3, 4)
    saved, state = pair.enc.state_dict(), moved(pair.initial, pair.rng)
    payload = pair.enc.encode(state)
    pair.dec.decode(payload)
    pair.enc.load_state_dict(saved)
    assert pair.enc.encode(state) == payload
    assert_same(pair.dec.decode(payload), pair.enc.state)
    pair.goes_on()


# ---- copies and snapshots


COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda end: pickle.loads(pickle.dumps(end)),
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES.keys())
@pytest.mark.parametrize("feedback", [False, True])
def test_copies(pair: Pair, copied: Callable[[Any], Any], feedback: bool) -> None:
    """A copy continues like the original, and neither affects the other."""
    pair.enc = rfc.Encoder(pair.initial, config(pair.enc._update_encoder.predictor, feedback))
    pair.payloads = [pair.encode() for _ in range(4)]
    pair.deliver(1, 2, 3, 4)
    enc, dec = copied(pair.enc), copied(pair.dec)
    before = snapshot(enc), snapshot(dec)
    states = [moved(pair.initial, pair.rng) for _ in range(3)]
    payloads = [pair.enc.encode(state) for state in states]
    for payload in payloads:
        pair.dec.decode(payload)
    assert (snapshot(enc), snapshot(dec)) == before
    for state, payload in zip(states, payloads, strict=True):
        assert enc.encode(state) == payload
        assert_same(dec.decode(payload), enc.state)
    assert_same(enc.state, pair.enc.state)


@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS.keys())
@pytest.mark.parametrize("feedback", [False, True])
def test_state_dict(
    pair: Pair, feedback: bool, save: Callable[[Any, Path], Any], tmp_path: Path
) -> None:
    pair.enc = rfc.Encoder(pair.initial, config(pair.enc._update_encoder.predictor, feedback))
    pair.payloads = [pair.encode() for _ in range(4)]
    pair.deliver(1, 2, 3, 4)
    enc = rfc.Encoder(pair.initial, config(pair.enc._update_encoder.predictor, feedback))
    dec = rfc.Decoder(pair.initial)
    enc.load_state_dict(save(pair.enc.state_dict(), tmp_path / "enc"))
    dec.load_state_dict(save(pair.dec.state_dict(), tmp_path / "dec"))
    assert (snapshot(enc), snapshot(dec)) == (snapshot(pair.enc), snapshot(pair.dec))
    assert enc.version == dec.version == 4
    for _ in range(3):
        state = moved(pair.initial, pair.rng)
        payload = enc.encode(state)
        assert payload == pair.enc.encode(state)
        assert_same(dec.decode(payload), pair.enc.state)


def test_torch_state_dict(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    initial = {"w": torch.randn(5, 6), "h": torch.randn(7).bfloat16(), "n": torch.tensor(1)}
    enc, dec = rfc.Encoder(initial, config(feedback=True)), rfc.Decoder(initial)
    dec.decode(enc.encode({n: v + 1 for n, v in initial.items()}))
    for end in (enc, dec):
        saved = end.state_dict()
        assert all(isinstance(value, torch.Tensor) for value in saved.values())
        torch.save(saved, tmp_path / "state.pt")
        loaded = torch.load(tmp_path / "state.pt", weights_only=True)
        fresh = type(end)(initial, config(feedback=True)) if end is enc else rfc.Decoder(initial)
        fresh.load_state_dict(loaded)
        assert snapshot(fresh) == snapshot(end)
        for name, value in fresh.state.items():
            assert torch.equal(value, end.state[name])


class Unreadable:
    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("no array")


def test_state_dicts_that_do_not_fit(pair: Pair) -> None:
    pair.deliver(1, 2, 3, 4)
    enc, dec = pair.enc.state_dict(), pair.dec.state_dict()
    other = random_model(pair.rng)
    feedback = rfc.Encoder(pair.initial, config(feedback=True)).state_dict()
    cases: list[tuple[Any, Any, str]] = [
        (pair.enc, dec, "saved by a Decoder, not by a Encoder"),
        (pair.dec, enc, "saved by a Encoder, not by a Decoder"),
        (pair.dec, rfc.ServerSession(pair.initial).state_dict(), "saved by a ServerSession"),
        (pair.dec, rfc.Decoder(other).state_dict(), "another initial state: its values differ"),
        (pair.dec, rfc.Decoder(pair.initial, run="x").state_dict(), "saved with run='x'"),
        (pair.enc, feedback, "saved with error_feedback=True; this object has False"),
        (pair.dec, {}, r"must be what Decoder.state_dict\(\) returned"),
        (pair.dec, None, r"must be what Decoder.state_dict\(\) returned"),
        (
            pair.dec,
            {**dec, "tensor.0": Unreadable()},
            "damaged: no array",
        ),
        (pair.dec, 7, r"must be what Decoder.state_dict\(\) returned"),
    ]
    for end, saved, match in cases:
        refused(ValueError, match, end.load_state_dict, saved)
    pair.goes_on()


def test_damaged_state_dicts(pair: Pair) -> None:
    pair.deliver(1, 2, 3, 4)
    ends: list[Any] = [pair.enc, pair.dec]
    for end in ends:
        saved, load = end.state_dict(), end.load_state_dict
        damaged: dict[str, dict[str, Any]] = {}
        for name, value in saved.items():
            damaged[f"without {name}"] = {k: v for k, v in saved.items() if k != name}
            damaged[f"{name} is text"] = {**saved, name: "text"}
            damaged[f"{name} is None"] = {**saved, name: None}
            damaged[f"{name} is shorter"] = {**saved, name: value.reshape(-1)[:-1].copy()}
            damaged[f"{name} is of another type"] = {**saved, name: value.astype(np.complex64)}
            if name != "structure":
                reshaped = value.reshape(1, *value.shape)
                damaged[f"{name} is of another shape"] = {**saved, name: reshaped}
            flat = np.frombuffer(value.tobytes(), np.uint8)
            for at in {0, len(flat) // 3, len(flat) - 1} if len(flat) else ():
                flipped = flat.copy()
                flipped[at] ^= 4
                changed = np.frombuffer(flipped.tobytes(), value.dtype).reshape(value.shape)
                damaged[f"byte {at} of {name} flipped"] = {**saved, name: changed}
        for what, bad in damaged.items():
            try:
                refused(ValueError, "state_dict: ", load, bad)
            except BaseException as error:
                raise AssertionError(f"{type(end).__name__}, {what}") from error
        end.load_state_dict(saved)
    pair.goes_on()


def test_pickled_errors() -> None:
    pair = Pair()
    with pytest.raises(rfc.StateMismatchError) as caught:
        pair.dec.decode(pair.payloads[2])
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.request == caught.value.request != b""
