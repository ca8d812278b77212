"""The native module never reads or writes outside its arrays, for any arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc
from resfed_codec import _native
from resfed_codec._native import DType, Role, Tensors


def array(n: int = 8, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(n, dtype)


def row(**fields: Any) -> dict[str, Any]:
    """A valid tensor of eight float32 elements, with some fields changed."""
    arrays = {"current": array(), "reference": array(), "out": array(), "feedback": None}
    valid = {"n_elems": 8, "dtype": DType.FLOAT32, "role": Role.MATRIX, **arrays}
    return {**valid, "terms": [], "coefficients": [0.5] * len(fields.get("terms", [])), **fields}


def tensors(*rows: dict[str, Any]) -> Tensors:
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return Tensors(roles=columns.pop("role"), dtypes=columns.pop("dtype"), **columns)


def encode(given: Tensors) -> bytes:
    options = _native.EncodeOptions()
    options.k_matrix = 4
    options.step = _native.StepRule()
    return _native.encode(given, options)


PAYLOAD = _native.Payload(
    rfc.encode([np.ones(8, np.float32)], [np.zeros(8, np.float32)], sparsity=0)
)
DIGEST = PAYLOAD.digest
KEYFRAME = rfc.encode_keyframe([np.ones((2, 4), np.float32)])
KEYFRAME_DIGEST = int.from_bytes(KEYFRAME[4:12], "little")

CALLS: dict[str, tuple[Callable[[Tensors], object], list[str]]] = {
    "encode": (encode, ["current", "reference", "out", "feedback", "terms"]),
    "decode": (lambda t: _native.decode(PAYLOAD, DIGEST, t), ["reference", "out", "terms"]),
    "moments": (_native.moments, ["current", "reference", "feedback", "terms"]),
    "add_values": (lambda t: _native.add_values(PAYLOAD, t), ["feedback"]),
    "encode_keyframe": (lambda t: _native.encode_keyframe(t, 0, 52), ["current"]),
    "decode_keyframe": (lambda t: _native.decode_keyframe(KEYFRAME, KEYFRAME_DIGEST, t), ["out"]),
    "Aggregator": (lambda t: _native.Aggregator(t, [False] * len(t)), ["reference"]),
}
OPTIONAL = {"out", "feedback", "terms"}

BAD_ARRAYS: dict[str, Any] = {
    "one short": array(7),
    "one more": array(9),
    "empty": array(0),
    "of float64": array(8, np.float64),
    "of float16": array(8, np.float16),
    "strided": array(16)[::2],
    "backwards": array(8)[::-1],
    "misaligned": np.zeros(33, np.uint8)[1:].view(np.float32),
    "of objects": np.array([None] * 8),
    "a list": [0.0] * 8,
    "an address": array().ctypes.data,
}


def in_field(field: str, value: Any, call: str) -> Any:
    fields = {"feedback": array()} if call == "add_values" else {}
    return row(**{**fields, field: [array(), value] if field == "terms" else value})


@pytest.mark.parametrize(("call", "field"), [(c, f) for c, (_, fs) in CALLS.items() for f in fs])
class TestEachArray:
    def test_a_valid_array_is_accepted(self, call: str, field: str) -> None:
        if not (call == "decode" and field == "terms"):  # the digest then differs
            CALLS[call][0](tensors(in_field(field, array(), call)))

    @pytest.mark.parametrize("bad", BAD_ARRAYS)
    def test_wrong_size_or_type(self, call: str, field: str, bad: str) -> None:
        with pytest.raises((ValueError, TypeError), match=f"tensor 0: {field}"):
            CALLS[call][0](tensors(in_field(field, BAD_ARRAYS[bad], call)))

    def test_a_later_row_is_named(self, call: str, field: str) -> None:
        rows = [in_field(field, array(n), call) for n in (8, 8, 7)]
        with pytest.raises(ValueError, match=f"tensor 2: {field}.* has 7 elements of 4 bytes"):
            CALLS[call][0](tensors(*rows))

    def test_required_arrays_must_be_present(self, call: str, field: str) -> None:
        if field in OPTIONAL and (call, field) not in {
            ("decode_keyframe", "out"),
            ("add_values", "feedback"),
        }:
            return
        with pytest.raises(ValueError, match=f"tensor 0: {field} is missing"):
            CALLS[call][0](tensors(in_field(field, None, call)))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": DType.FLOAT64},
        {"dtype": DType.FLOAT16, "role": Role.VECTOR},
        {"n_elems": 9},
        {"n_elems": 2**63},
    ],
    ids=str,
)
def test_dtype_and_length_agree_with_the_arrays(call: str, fields: dict[str, Any]) -> None:
    if call == "add_values" and "dtype" in fields:
        return  # its arrays are float32 for any tensors
    with pytest.raises(ValueError, match="tensor 0: "):
        CALLS[call][0](tensors({**in_field("feedback", array(), call), **fields}))


def lossless(dtype: DType, **fields: Any) -> dict[str, Any]:
    return row(role=Role.LOSSLESS, dtype=dtype, **fields)


@pytest.mark.parametrize("dtype", [np.complex128, "S3", "V16"])
def test_lossless_elements_have_a_known_size(dtype: Any) -> None:
    odd = np.zeros(8, dtype)
    with pytest.raises(ValueError, match=r"elements of \d+ bytes, not 8 of 1, 2, 4 or 8"):
        encode(tensors(lossless(DType.OTHER, current=odd, reference=odd, out=odd)))
    with pytest.raises(ValueError, match="reference has 8 elements of 4 bytes, not 8 of 2"):
        encode(tensors(lossless(DType.OTHER, current=array(8, np.int16))))
    with pytest.raises(ValueError, match="current has 8 elements of 2 bytes, not 8 of 4"):
        encode(tensors(lossless(DType.FLOAT32, current=array(8, np.int16))))


def test_lossy_tensors_are_floats() -> None:
    with pytest.raises(ValueError, match="tensor 0: no float, but not lossless"):
        Tensors(roles=[Role.MATRIX], dtypes=[DType.OTHER], n_elems=[8])


def test_columns_fit_together() -> None:
    for column in (
        "row_lengths",
        "current",
        "reference",
        "out",
        "feedback",
        "terms",
        "coefficients",
    ):
        with pytest.raises(ValueError, match="columns of different lengths"):
            Tensors(roles=[0], dtypes=[0], n_elems=[8], **{column: []})  # type: ignore[arg-type]
    for column in ("roles", "dtypes"):
        with pytest.raises(ValueError, match="columns of different lengths"):
            Tensors(**{"roles": [0], "dtypes": [0], "n_elems": [8], column: []})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="5 is not a valid"):
            Tensors(**{"roles": [0], "dtypes": [0], "n_elems": [8], column: [5]})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tensor 0: rows of 3 elements, of 8"):
        Tensors(roles=[0], dtypes=[0], n_elems=[8], row_lengths=[3])
    with pytest.raises(ValueError, match="tensor 0: terms: one coefficient for each"):
        encode(tensors(row(terms=[array()], coefficients=[])))
    with pytest.raises(ValueError, match="tensor 0: terms: too many"):
        encode(tensors(row(terms=[array()] * 7)))


@pytest.mark.parametrize("role", [Role.LOSSLESS, Role.DENSE])
def test_feedback_is_for_matrices_and_vectors(role: Role) -> None:
    with pytest.raises(ValueError, match="tensor 0: feedback is for matrices and vectors alone"):
        encode(tensors(row(role=role, feedback=array())))
    with pytest.raises(ValueError, match="some matrices and vectors have feedback"):
        encode(tensors(row(feedback=array()), row()))


def test_feedback_is_float32() -> None:
    with pytest.raises(TypeError, match="tensor 0: feedback is not float32"):
        encode(tensors(row(feedback=array(8, np.int32))))


def test_lossless_tensors_have_no_terms() -> None:
    with pytest.raises(ValueError, match="tensor 0: terms: a lossless tensor has none"):
        encode(tensors(row(role=Role.LOSSLESS, terms=[array()])))


@pytest.mark.parametrize("field", ["out", "feedback"])
def test_outputs_must_be_writable(field: str) -> None:
    frozen = array()
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match=f"tensor 0: {field} is read-only"):
        encode(tensors(row(**{field: frozen})))


def test_add_values_takes_the_payload_of_its_tensors() -> None:
    small = np.zeros(2, np.float32)
    other = Tensors(roles=[Role.MATRIX], dtypes=[DType.FLOAT32], n_elems=[2], feedback=[small])
    with pytest.raises(_native.NativeError):
        _native.add_values(PAYLOAD, other)
    assert not small.any()


class TestAggregator:
    def aggregator(self) -> _native.Aggregator:
        made = _native.Aggregator(tensors(row(), row()), [False, False])
        made.add(made.prepare_state([array(), array()], 1.0))
        return made

    @pytest.mark.parametrize("call", ["prepare_state", "result"])
    @pytest.mark.parametrize("bad", BAD_ARRAYS)
    def test_each_array_is_checked(self, call: str, bad: str) -> None:
        with pytest.raises((ValueError, TypeError), match="tensor 1: array"):
            getattr(self.aggregator(), call)([array(), BAD_ARRAYS[bad]], 1.0)

    @pytest.mark.parametrize("call", ["prepare_state", "result"])
    def test_one_array_for_each_tensor(self, call: str) -> None:
        with pytest.raises(ValueError, match="1 arrays for 2 tensors"):
            getattr(self.aggregator(), call)([array()], 1.0)
        with pytest.raises(ValueError, match="tensor 1: array is missing"):
            getattr(self.aggregator(), call)([array(), None], 1.0)

    def test_one_sign_for_each_tensor(self) -> None:
        with pytest.raises(ValueError, match="is_signed: one per tensor"):
            _native.Aggregator(tensors(row()), [])

    def test_a_contribution_is_added_once_and_where_it_belongs(self) -> None:
        model = [np.zeros((2, 4), np.float32)]
        ours, theirs = (
            _native.Aggregator(tensors(row(reference=model[0])), [False]) for _ in range(2)
        )
        contribution = ours.prepare(PAYLOAD, DIGEST, 1.0)
        with pytest.raises(ValueError, match="contribution: of another sum"):
            theirs.add(contribution)
        ours.add(contribution)
        with pytest.raises(ValueError, match="contribution: of another sum"):
            ours.add(contribution)

    def test_the_reference_is_kept_alive(self) -> None:
        reference = np.full(2**20, 3.0, np.float32)  # large enough for free() to unmap it
        fields = row(reference=reference, n_elems=reference.size, current=None, out=None)
        aggregator = _native.Aggregator(tensors(fields), [False])
        del fields
        aggregator.add(aggregator.prepare_state([reference], 1.0))
        size = reference.size
        del reference
        mean = np.empty(size, np.float32)
        aggregator.result([mean], 1.0)
        assert (mean == 3).all()


def test_overlaps_takes_only_arrays() -> None:
    array = np.zeros(3, np.float32)
    for out, reference in [([None], [array]), ([array], [None]), ([array.tobytes()], [])]:
        with pytest.raises(TypeError, match=r"neither a numpy\.ndarray nor a DeviceArray"):
            _native.overlaps(out, reference)  # type: ignore[arg-type]
    twice = [array[:2], array[1:], array[:0]]
    assert _native.overlaps(twice, twice) == (True, [(0, 1, False)], [])
    assert _native.overlaps(twice[:1], [np.zeros(2), *twice[1:2]]) == (False, [], [(0, 1)])
