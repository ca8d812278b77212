"""Predictors: what both ends expect the next model to be, so that only the rest is sent.

A prediction is a linear combination of recovered models: of the payload's own direction ("own",
newest first) and of the other one ("other"). For an uplink own are the client's local models as
the server recovered them, other the global models; for a downlink the other way round. Both ends
hold all of them. docs/predictors.md has the rules, their sources, and what they measure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from numbers import Real
from typing import TypeAlias

from resfed_codec._native import MAX_COEF_LOG2, MAX_DEPTH, MAX_NUMERATOR
from resfed_codec.codec.numbers import as_float
from resfed_codec.stream.link import Terms

Coefficients: TypeAlias = "tuple[Sequence[float], Sequence[float]]"


@dataclass(frozen=True)
class LinearPredictor:
    """A linear combination of history with fixed coefficients, the same for all tensors or not.

    Attributes:
        own: Coefficients of the last one to three models of the payload's own direction, newest
            first. Those of a prediction should add up to 1 over ``own`` and ``other``: nothing
            else is subtracted from the model.
        other: The same of the other direction; only in sessions.
        tensors: Other coefficients for some tensors: a mapping from names or patterns of names, as
            in ``CodecConfig.exclude``, to pairs ``(own, other)``. The first that fits counts.

    Coefficients are sent as multiples of 2**-12; others are rounded to that.

    Raises:
        TypeError: A coefficient is no real number, or a pattern no str.
        ValueError: More than three coefficients for a direction, one that is not finite or beyond
            256 in magnitude, or none that differs from 0.
    """

    own: Sequence[float] = ()
    other: Sequence[float] = ()
    tensors: Mapping[str, Coefficients] = field(default_factory=dict)

    def __post_init__(self) -> None:
        quantized_terms(MAX_COEF_LOG2, self.own, self.other)
        object.__setattr__(self, "own", tuple(self.own))
        object.__setattr__(self, "other", tuple(self.other))
        if not isinstance(self.tensors, Mapping):
            raise TypeError(f"tensors={self.tensors!r}: must be a mapping from name patterns")
        for pattern, pair in self.tensors.items():
            if not isinstance(pattern, str):
                raise TypeError(f"tensors: {pattern!r} is no name pattern: it must be a str")
            if not isinstance(pair, Sequence) or len(pair) != 2:
                raise TypeError(f"tensors[{pattern!r}]={pair!r}: must be a pair (own, other)")
            quantized_terms(MAX_COEF_LOG2, *pair)
        tensors = {name: (tuple(own), tuple(other)) for name, (own, other) in self.tensors.items()}
        object.__setattr__(self, "tensors", tensors)

    def __hash__(self) -> int:
        return hash((self.own, self.other, tuple(self.tensors.items())))

    @property
    def pairs(self) -> list[Coefficients]:
        """All pairs (own, other) that occur."""
        return [(self.own, self.other), *self.tensors.values()]

    @property
    def own_depth(self) -> int:
        """How many versions back it looks in its own direction."""
        return max(_depth(own) for own, _ in self.pairs)

    @property
    def other_depth(self) -> int:
        """How many versions back it looks in the other direction."""
        return max(_depth(other) for _, other in self.pairs)


@dataclass(frozen=True)
class AdaptivePredictor:
    """Coefficients fitted by least squares, per tensor and payload, rounded to 1/32, and sent.

    An uplink starts from the newest global model and fits to each tensor a step along the client's
    last update and one along the last global step. In a direction without another one, or whose
    payloads go to many, the start is the newest own model and the steps are the last two own
    ones. A tensor for which the fit does not save the bytes of its coefficients keeps the start as
    its prediction.

    The fit is made on the host: models on a CUDA device are copied there for it.
    """


Predictor: TypeAlias = "LinearPredictor | AdaptivePredictor"


def predictor_text(predictor: Predictor) -> str:
    """Equal for predictors that predict the same."""
    if isinstance(predictor, AdaptivePredictor):
        return "adaptive"

    def numbers(coefficients: Sequence[float]) -> tuple[float, ...]:
        return tuple(float(c) for c in coefficients[: _depth(coefficients)])

    tensors = {
        name: (numbers(own), numbers(other)) for name, (own, other) in predictor.tensors.items()
    }
    own, other = numbers(predictor.own), numbers(predictor.other)
    return f"LinearPredictor(own={own}, other={other}, tensors={tensors})"


def predictor_of(value: object) -> Predictor:
    """A predictor from its name, or itself.

    Raises:
        TypeError: Neither a str nor a predictor.
        ValueError: No predictor has that name.
    """
    if isinstance(value, (LinearPredictor, AdaptivePredictor)):
        return value
    if not isinstance(value, str):
        raise TypeError(
            f"predictor={value!r}: must be a name, a LinearPredictor or an AdaptivePredictor"
        )
    if value not in PREDICTORS:
        raise ValueError(f"predictor={value!r}: must be one of {', '.join(sorted(PREDICTORS))}")
    return PREDICTORS[value]


def quantized_terms(coef_log2: int, own: Sequence[float], other: Sequence[float]) -> Terms:
    """Coefficients as numerators over ``2**coef_log2``, rounded to nearest."""
    places = [0] * (2 * MAX_DEPTH)
    for first, name, coefficients in ((0, "own", own), (MAX_DEPTH, "other", other)):
        if isinstance(coefficients, str) or not isinstance(coefficients, Sequence):
            raise TypeError(f"{name}={coefficients!r}: must be a sequence of numbers")
        if len(coefficients) > MAX_DEPTH:
            raise ValueError(f"{name}={coefficients!r}: at most {MAX_DEPTH} coefficients")
        for j, coefficient in enumerate(coefficients):
            _number(name, coefficient)
            numerator = round(Fraction(float(coefficient)) * 2**coef_log2)
            if abs(numerator) > MAX_NUMERATOR >> MAX_COEF_LOG2 - coef_log2:
                raise ValueError(f"{name}={coefficients!r}: {coefficient!r} is beyond 256")
            places[first + j] = numerator
    if not any(places):
        raise ValueError(f"own={own!r}, other={other!r}: one coefficient must differ from 0")
    return (places[0], places[1], places[2], places[3], places[4], places[5])


def coarsest_log2(all_terms: Sequence[Terms], coef_log2: int) -> int:
    """The least coef_log2 that still holds all these numerators exactly."""
    while coef_log2 > 0 and not any(n % 2 for terms in all_terms for n in terms):
        all_terms = [
            (t[0] // 2, t[1] // 2, t[2] // 2, t[3] // 2, t[4] // 2, t[5] // 2) for t in all_terms
        ]
        coef_log2 -= 1
    return coef_log2


def _number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: {value!r} must be a number, not {type(value).__name__}")
    if not abs(as_float(value)) < float("inf"):
        raise ValueError(f"{name}: {value!r} must be finite")


def _depth(coefficients: Sequence[float]) -> int:
    return max((j + 1 for j, c in enumerate(coefficients) if c), default=0)


PREDICTORS: dict[str, Predictor] = {
    "global": LinearPredictor(other=(1,)),
    "previous": LinearPredictor(own=(1,)),
    "res0": LinearPredictor(own=(1,)),
    "res1": LinearPredictor(own=(1,), other=(0.5, -0.5)),
    "res2": LinearPredictor(own=(2, -1), other=(1, -2, 1)),
    "adaptive": AdaptivePredictor(),
}
"""Predictors by name. ``res0`` to ``res2`` are those of Song et al., arXiv:2212.05602."""
