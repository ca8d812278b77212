"""Predictors: both ends predict the next model, so that a payload carries only the difference.

A prediction is a linear combination of recovered models of the payload's own direction ("own",
newest first) and of the other direction ("other"). For an uplink, own are the client's local
models as the server recovered them, and other are the global models; for a downlink the reverse.
Both ends hold all of them. docs/predictors.md has the rules, their sources and measurements.
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
    """A linear combination of earlier models with fixed coefficients, per tensor if wanted.

    Attributes:
        own: Coefficients of the last one to three models of the payload's own direction, newest
            first. The coefficients of ``own`` and ``other`` together should add up to 1, because
            the prediction is all that is subtracted from the model.
        other: The same of the other direction; only in sessions.
        tensors: Other coefficients for some tensors: a mapping from names or patterns of names, as
            in ``CodecConfig.exclude``, to pairs ``(own, other)``. The first match counts.

    Coefficients are rounded to multiples of 2**-12.

    Raises:
        TypeError: A coefficient is not a real number, or a pattern not a str.
        ValueError: A direction has more than three coefficients, one of them is not finite or
            greater than 256 in magnitude, or all of them are 0.
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
        """All pairs (own, other)."""
        return [(self.own, self.other), *self.tensors.values()]

    @property
    def own_depth(self) -> int:
        """Number of versions of its own direction that it reads."""
        return max(_depth(own) for own, _ in self.pairs)

    @property
    def other_depth(self) -> int:
        """Number of versions of the other direction that it reads."""
        return max(_depth(other) for _, other in self.pairs)


@dataclass(frozen=True)
class AdaptivePredictor:
    """Coefficients that the encoder fits by least squares, per tensor and payload, and sends.

    They are rounded to 1/32. For an uplink, the prediction starts from the newest global model, and
    the fit adds to each tensor a step along the client's last update and one along the last global
    step. In a stream, or a downlink that serves all clients, it starts from the newest own model,
    and the steps are the last two own steps. If the fit of a tensor does not save the bytes of its
    coefficients, the start alone is the prediction.

    The fit runs on the host; models on a CUDA device are copied there for it.
    """


Predictor: TypeAlias = "LinearPredictor | AdaptivePredictor"


def check_max_norm(where: str, max_norm: float | None, predictor: Predictor, wanted: str) -> None:
    """Raise ValueError if ``max_norm`` would not bound the change of the model held."""
    if max_norm is not None and predictor != PREDICTORS[wanted]:
        raise ValueError(
            f"{where}: max_norm bounds what changes in the model that the update starts from, so it"
            f' needs predictor="{wanted}"'
        )


def predictor_text(predictor: Predictor) -> str:
    """A text that is equal for predictors that predict the same."""
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
    """A predictor from its name, or itself; TypeError or ValueError for anything else."""
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
    return tuple(places)


def coarsest_log2(all_terms: Sequence[Terms], coef_log2: int) -> int:
    """The least coef_log2 that represents all these numerators exactly."""
    while coef_log2 > 0 and not any(n % 2 for terms in all_terms for n in terms):
        all_terms = [tuple(n // 2 for n in terms) for terms in all_terms]
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
