"""Arguments of any type: a call works or raises TypeError or ValueError (CodecError is one).

After an error the object is unchanged.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import resfed_codec as rfc
from models import cnn_pair
from resfed_codec.config import ConfigOptions
from snapshots import snapshot

STATE, REFERENCE = cnn_pair(np.random.default_rng(5))
PAYLOAD = rfc.encode(STATE, REFERENCE, sparsity=0.9)
STREAM = rfc.Encoder(REFERENCE).encode(STATE)
KEYFRAME = rfc.encode_keyframe(STATE)

ARRAYS = [
    np.zeros((3, 2), np.float32),
    np.zeros(0),
    np.array(3),
    np.zeros((2, 2), complex),
    np.zeros(3, "U2"),
    np.zeros(3, object),
    np.zeros(3, [("a", "f4")]),
    np.zeros(3, "datetime64[s]"),
    np.zeros(3, ">f4"),
    np.zeros(3, np.longdouble),
    np.full((3, 2), np.nan, np.float32),
    np.ma.masked_array([1.0, 2.0], mask=[True, False]),
    np.float32(3),
    np.zeros((3, 2), np.float32)[::-1],
    np.broadcast_to(np.float32(1), (100, 100)),
]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=5),
    st.binary(max_size=40),
    st.sampled_from([PAYLOAD, STREAM, KEYFRAME, PAYLOAD[:-1], bytearray(PAYLOAD), object(), int]),
    st.sampled_from([rfc.CodecConfig(), rfc.LinearPredictor(own=(1,)), rfc.Aggregator(REFERENCE)]),
)
arrays = st.sampled_from(ARRAYS)
anything = st.one_of(
    scalars,
    arrays,
    st.sampled_from([STATE, REFERENCE, [*REFERENCE.values()], {**STATE, "extra": ARRAYS[0]}]).map(
        copy.deepcopy  # a call may write to its `out`
    ),
    st.lists(st.one_of(scalars, arrays), max_size=3),
    st.dictionaries(
        st.one_of(st.text(max_size=3), st.integers(), st.sampled_from(list(STATE))),
        st.one_of(scalars, arrays),
        max_size=3,
    ),
)

OPTIONS = ["sparsity", "max_bytes", "max_error", "max_norm", "step", "bits", "exclude", "dense",
           "dense_bits", "predictor", "error_feedback"]  # fmt: skip


def test_options_for_type_checkers_are_the_fields() -> None:
    assert list(ConfigOptions.__annotations__) == [field.name for field in fields(rfc.CodecConfig)]
    assert set(ConfigOptions.__annotations__) == set(OPTIONS)


FUNCTIONS: dict[str, Callable[..., object]] = {
    "encode": lambda a, b, c: rfc.encode(a, b),
    "encode state": lambda a, b, c: rfc.encode(a, REFERENCE),
    "encode reference": lambda a, b, c: rfc.encode(STATE, a),
    "encode config": lambda a, b, c: rfc.encode(STATE, REFERENCE, a),
    "decode": lambda a, b, c: rfc.decode(a, b, out=c),
    "decode payload": lambda a, b, c: rfc.decode(a, REFERENCE),
    "decode reference": lambda a, b, c: rfc.decode(PAYLOAD, a),
    "decode out": lambda a, b, c: rfc.decode(PAYLOAD, REFERENCE, out=a),
    "inspect": lambda a, b, c: rfc.inspect(a),
    "encode_keyframe": lambda a, b, c: rfc.encode_keyframe(a, mantissa_bits=b),
    "decode_keyframe": lambda a, b, c: rfc.decode_keyframe(a, b, out=c),
    "decode_keyframe like": lambda a, b, c: rfc.decode_keyframe(KEYFRAME, a),
    "Aggregator": lambda a, b, c: rfc.Aggregator(a),
    "Encoder": lambda a, b, c: rfc.Encoder(a, b, run=c),
    "Decoder": lambda a, b, c: rfc.Decoder(a, run=b),
    "ServerSession": lambda a, b, c: rfc.ServerSession(a, b, c),
    "ServerSession, history": lambda a, b, c: rfc.ServerSession(REFERENCE, run=a, history=b),
    "ClientSession": lambda a, b, c: rfc.ClientSession(a, b, c),
    "ClientSession, id": lambda a, b, c: rfc.ClientSession(REFERENCE, client_id=a, history=b),
    "LinearPredictor": lambda a, b, c: rfc.LinearPredictor(a, b, c),
    "set_num_threads": lambda a, b, c: rfc.set_num_threads(a),
    **{
        f"CodecConfig, {name}": lambda a, b, c, name=name: rfc.CodecConfig(**{name: a})
        for name in OPTIONS
    },
}

ENDS: dict[str, Callable[[], Any]] = {
    "encoder": lambda: rfc.Encoder(REFERENCE, error_feedback=True),
    "decoder": lambda: rfc.Decoder(REFERENCE),
    "server": lambda: rfc.ServerSession(REFERENCE),
    "client": lambda: rfc.ClientSession(REFERENCE),
}
METHODS: dict[str, Callable[..., object]] = {
    "encoder.encode": lambda e, a, b, c: e.encode(a),
    "encoder.answer": lambda e, a, b, c: e.answer(a),
    "encoder.load_state_dict": lambda e, a, b, c: e.load_state_dict(a),
    "decoder.decode": lambda e, a, b, c: e.decode(a, out=b),
    "decoder.decode out": lambda e, a, b, c: e.decode(STREAM, out=a),
    "decoder.load_state_dict": lambda e, a, b, c: e.load_state_dict(a),
    "server.update": lambda e, a, b, c: e.update(a),
    "server.send": lambda e, a, b, c: e.send(a),
    "server.forget": lambda e, a, b, c: e.forget(a),
    "server.receive": lambda e, a, b, c: e.receive(a, b, out=c),
    "server.receive_into": lambda e, a, b, c: e.receive_into("ada", a, b, c),
    "server.answer": lambda e, a, b, c: e.answer(a, b),
    "server.acknowledged": lambda e, a, b, c: e.acknowledged(a, b),
    "server.load_state_dict": lambda e, a, b, c: e.load_state_dict(a),
    "client.receive": lambda e, a, b, c: e.receive(a, out=b),
    "client.send": lambda e, a, b, c: e.send(a),
    "client.answer": lambda e, a, b, c: e.answer(a),
    "client.load_state_dict": lambda e, a, b, c: e.load_state_dict(a),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@given(anything, anything, anything)
def test_functions(name: str, a: Any, b: Any, c: Any) -> None:
    with contextlib.suppress(TypeError, ValueError):
        FUNCTIONS[name](a, b, c)


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=40)
@given(anything, anything, anything)
def test_methods(name: str, a: Any, b: Any, c: Any) -> None:
    end = ENDS[name.partition(".")[0]]()
    before = snapshot(end)
    try:
        METHODS[name](end, a, b, c)
    except (TypeError, ValueError):
        assert snapshot(end) == before


@given(anything, anything)
def test_aggregator(a: Any, b: Any) -> None:
    aggregator = rfc.Aggregator(REFERENCE)
    aggregator.add(PAYLOAD)
    before = rfc.encode_keyframe(aggregator.result())
    for call in (aggregator.add, aggregator.add_state):
        try:
            call(a, b)
        except (TypeError, ValueError):
            assert rfc.encode_keyframe(aggregator.result()) == before
            assert aggregator.count == 1
        else:
            return
