"""Links and predictions: both implementations make the same bytes and models."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import resfed_codec as rfc
from models import State, assert_same, clustered
from resfed_codec.reference import stream as slow
from resfed_codec.reference.frame import read_frame
from resfed_codec.stream.predictor import Predictor, predictor_of
from resfed_codec.stream.update_encoder import UpdateEncoder
from resfed_codec.stream.versions import ParsedPayload, Version, model_of
from resfed_codec.tensors.layout import Layout

DTYPES = ("float32", "float16", "float64", ml_dtypes.bfloat16)
PREDICTORS: dict[str, Predictor] = {
    **{name: predictor_of(name) for name in ("global", "previous", "res1", "res2", "adaptive")},
    "own three": rfc.LinearPredictor(own=(1.3, -0.4, 0.1)),
    "by tensor": rfc.LinearPredictor(other=(1,), tensors={"b*": ((0.25, 0.5), (0, 0.25))}),
}


def model(rng: np.random.Generator, dtype: Any, scale: float = 1.0) -> State:
    return {
        "bias": (scale * rng.standard_normal(9)).astype(dtype),
        "count": rng.integers(0, 99, (3,)),
        "empty": np.zeros((0, 4), dtype),
        "kept": (scale * rng.standard_normal((2, 3))).astype(dtype),
        "weight": (scale * clustered((14, 20), rng, 1.0)).astype(dtype),
    }


def history(layout: Layout, numbers: list[int], models: list[State]) -> Version | None:
    version = None
    for number in reversed(numbers):
        held = [array.copy() for array in layout.model_of(models[number], "model")]
        version = Version(number, 77 * number + 5, held, version)
    return version


@given(
    predictor=st.sampled_from(sorted(PREDICTORS)),
    dtype=st.sampled_from(DTYPES),
    n_own=st.integers(0, 3),
    n_other=st.integers(1, 3),
    starts=st.booleans(),
    exclude=st.sampled_from([(), ("kept",), ("bias", "kept"), ("weight", "kept")]),
    dense=st.sampled_from([(), "bias", ("bias", "empty"), ("weight", "kept"), "*"]),
    seed=st.integers(0, 99),
)
def test_agree(
    predictor: str,
    dtype: Any,
    n_own: int,
    n_other: int,
    starts: bool,
    exclude: Any,
    dense: Any,
    seed: int,
) -> None:
    """``starts``: both histories begin with the initial model, version 0."""
    rng = np.random.default_rng(seed)
    models = [model(rng, dtype) for _ in range(9)]
    state = model(rng, dtype)
    layout = Layout(state, "state")
    first = 0 if starts else 5
    own_numbers = [first + n_own - 1 - j for j in range(n_own)]
    other_numbers = [first + n_other - 1 - j for j in range(n_other)]
    base, other = (history(layout, n, models) for n in (own_numbers, other_numbers))
    assert other is not None
    options: dict[str, Any] = {"sparsity": 0.8, "exclude": exclude, "dense": dense}
    config = rfc.CodecConfig(**options)
    encoder = UpdateEncoder(layout, config, PREDICTORS[predictor], two_way=True)
    out = layout.empty()
    payload = encoder.encode(
        layout.model_of(state, "state"),
        tag=12,
        number=9,
        base=base,
        other=other,
        keep=2,
        out=out,
        feedback=None,
    )

    link = slow.read_link(read_frame(payload).link)
    own, others = (
        [(number, models[number]) for number in numbers[:n]]
        for numbers, n in ((own_numbers, link.n_own), (other_numbers, link.n_other))
    )
    digest = slow.link_digest(12, base.digest if base else 0, other.digest)
    decoded = slow.decode(payload, own, others, digest)
    assert_same(decoded, layout.state_of(out))
    asked = slow.Options(**options)
    made = slow.encode(state, read_frame(payload).link, own, others, digest, asked)
    differ = next((i for i, (a, b) in enumerate(zip(made, payload)) if a != b), None)  # noqa: B905
    assert made == payload, f"first difference at byte {differ}: {len(made)} and {len(payload)}"

    parsed = ParsedPayload(payload, layout)
    again = layout.empty()
    assert parsed.builds_on(12, base, other)
    parsed.decode(layout, base, other, again)
    for spec, a, b in zip(layout.specs, again, out, strict=True):
        assert a.tobytes() == b.tobytes(), spec.name
    with pytest.raises(rfc.StateMismatchError):
        slow.decode(payload, own, others, slow.link_digest(13, 0, 0))


def test_the_first_version_stands_in_both_directions(rng: np.random.Generator) -> None:
    """res1 predicts the initial model if the history holds nothing else."""
    initial = model(rng, np.float32)
    layout = Layout(initial, "initial")
    version = history(layout, [0], [initial])
    assert version is not None
    encoder = UpdateEncoder(
        layout, rfc.CodecConfig(sparsity=1.0), predictor_of("res1"), two_way=True
    )
    out = layout.empty()
    encoder.encode(
        layout.model_of(initial, "initial"),
        tag=0,
        number=1,
        base=version,
        other=version,
        keep=1,
        out=out,
        feedback=None,
    )
    for array, expected in zip(out, model_of(version), strict=True):
        assert array.tobytes() == expected.tobytes()
