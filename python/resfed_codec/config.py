"""CodecConfig: what the encoder is asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from resfed_codec.codec.numbers import as_float, checked_integer
from resfed_codec.stream.predictor import Predictor, predictor_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

AUTO_STEP_RATIO = 0.55
"""Threshold over step of ``step="auto"``; docs/design.md has the measurement behind it."""

DEFAULT_SPARSITY = 0.99

MIN_ELEMENTS = 1024
"""The least that the default sparsity sends; benchmarks/results/adapters.md has the measurement."""

DEFAULT_DENSE_BITS = 3
"""docs/design.md has the measurement behind it."""


class ConfigOptions(TypedDict, total=False):
    """The fields of :class:`CodecConfig` as keyword arguments, for type checkers."""

    sparsity: float | None
    max_bytes: int | None
    max_error: float | None
    max_norm: float | None
    step: float | Literal["auto"]
    bits: int | None
    exclude: Iterable[str]
    dense: Iterable[str] | None
    dense_bits: int
    predictor: str | Predictor | None
    error_feedback: bool | None


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Options of an encoder. Immutable and checked when it is made.

    At most one of the three targets is given: ``sparsity``, ``max_bytes`` or ``max_error``.

    Attributes:
        sparsity: Fraction of parameters sent as zero, in [0, 1] (the term of Song et al., ResFed,
            arXiv:2212.05602). It holds for the tensors of two or more dimensions together;
            vectors (biases, norms) are scaled per tensor and share a selection of their own, see
            ``docs/design.md``. Not counted are tensors without any residual, such as those of
            frozen layers, and dense and excluded ones. Default (None), without another target:
            0.99, but at least 1,024 elements are sent, which fit into one packet: a hundredth of a
            small model, such as an adapter, is too little. A number holds as it is given.
        max_bytes: Hard upper bound of the payload's length in bytes; the encoder sends as much as
            fits beside the dense and excluded tensors.
        max_error: Bound of the relative L2 error, in (0, 1]: for matrices together and for vectors
            together, ``norm(state - decoded) <= max_error * norm(state - reference)``. The
            encoder sends as little as suffices.
        max_norm: Bound of the L2 norm of what the other end decodes: the recovered model minus the
            reference, over all tensors, error feedback included. For differential privacy, whose
            noise is calibrated to such a bound (docs/integrations.md). Where the update would
            exceed it, all sent values are lowered by one factor; the rest stays in the feedback.
            Lossless tensors must not change then. It goes with ``sparsity`` or ``max_bytes``, and
            in sessions with the predictors "global" up and "previous" down. In [2**-100, 2**100].
        step: Quantizer step as the ratio threshold/step, a number in [2**-10, 2**10], or "auto".
        bits: Instead of ``step``: bits of a sent value, sign included, 1 to 16. Values are
            quantized to ``2**(bits - 1)`` magnitudes between threshold and maximum.
        exclude: Names of tensors to carry losslessly, or patterns of names (:mod:`fnmatch`, e.g.
            ``"*.bias"``; ``"*"``: all of them, bit for bit). What is a tensor's name,
            letter for letter, means that tensor alone, even if it looks like a pattern. An encoder
            refuses a name or pattern that fits no tensor. For sequences the names are "0", "1", ...
        dense: Likewise, tensors that are replaced in each round and not added to, such as running
            statistics: all of their elements are sent, quantized, whatever the target, and error
            feedback leaves them alone. A tensor without negative elements, such as a variance,
            comes out without any. Default (None): those whose names say so, as PyTorch, Keras and
            Flax give them (docs/guide.md has the list), if there are any. What is given replaces
            the default; ``()`` names nothing. Of a ``torch.nn.Module``, :func:`buffer_names` tells
            what to name. ``exclude`` goes before ``dense``.
        dense_bits: How finely dense tensors are quantized, 2 to 12; an element takes about half a
            bit more. The quantizer's step is ``2**(2 - dense_bits)`` times the root mean square of
            the tensor's residual, rounded down to a power of two.
        predictor: In a stream: what the next model is expected to be. A name ("global",
            "previous", "res0", "res1", "res2", "adaptive"), a LinearPredictor or an
            AdaptivePredictor. Default: "global" for uplinks, else "previous".
        error_feedback: In a stream: add to each update what the ones before it left out. Use it
            if each new model is built from the model that the other end recovered: an uplink
            trained from the received global model, a global model that is the mean of recovered
            local ones. Do not use it if the sender keeps an exact model: the next residual already
            contains what was left out. Default: on for uplinks whose predictor uses only global
            models, as "global" does; on for downlinks whose predictor does not read clients'
            models, until the session finds that the server keeps an exact model
            (:attr:`ServerSession.error_feedback`); else off. docs/predictors.md has the
            measurement.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range, or two exclude each other.
    """

    sparsity: float | None = None
    max_bytes: int | None = None
    max_error: float | None = None
    max_norm: float | None = None
    step: float | Literal["auto"] = "auto"
    bits: int | None = None
    exclude: tuple[str, ...] = ()
    dense: tuple[str, ...] | None = None
    dense_bits: int = DEFAULT_DENSE_BITS
    predictor: str | Predictor | None = None
    error_feedback: bool | None = None

    if TYPE_CHECKING:  # the fields as they may be given

        def __init__(self, **options: Unpack[ConfigOptions]) -> None: ...

    def __post_init__(self) -> None:
        targets = [
            n for n in ("sparsity", "max_bytes", "max_error") if getattr(self, n) is not None
        ]
        if len(targets) > 1:
            raise ValueError(f"{' and '.join(targets)} exclude each other: give one")
        if self.sparsity is not None:
            _check_real("sparsity", self.sparsity, 0.0, 1.0)
        if self.max_bytes is not None:
            checked_integer("max_bytes", self.max_bytes, 1, 2**60)
        if self.max_error is not None:
            _check_real("max_error", self.max_error, 0.0, 1.0)
            if self.max_error == 0:
                raise ValueError(
                    "max_error=0: must be above 0; exclude tensors to carry them losslessly"
                )
        if self.max_norm is not None:
            _check_real("max_norm", self.max_norm, 2.0**-100, 2.0**100)
            if self.max_error is not None:
                raise ValueError("max_error and max_norm exclude each other: give one")
        if isinstance(self.step, str):
            if self.step != "auto":
                raise ValueError(f'step={self.step!r}: must be "auto" or a number')
        else:
            _check_real("step", self.step, 2.0**-10, 2.0**10)
        if self.bits is not None:
            checked_integer("bits", self.bits, 1, 16)
            if self.step != "auto":
                raise ValueError("step and bits exclude each other: give one")
        object.__setattr__(self, "exclude", _checked_patterns("exclude", self.exclude))
        if self.dense is not None:
            object.__setattr__(self, "dense", _checked_patterns("dense", self.dense))
        checked_integer("dense_bits", self.dense_bits, 2, 12)
        if self.predictor is not None:
            predictor_of(self.predictor)
        if self.error_feedback is not None and not isinstance(self.error_feedback, bool):
            raise TypeError(f"error_feedback={self.error_feedback!r}: must be True, False or None")

    @property
    def aimed_sparsity(self) -> float | None:
        """``sparsity``, or its default; None with another target."""
        is_default = self.sparsity is None and self.max_bytes is None and self.max_error is None
        return DEFAULT_SPARSITY if is_default else self.sparsity


@lru_cache(maxsize=64)
def counts(sparsity: float | None, n_matrix: int, n_vector: int, share: int) -> tuple[int, int]:
    """How many elements of matrices and of vectors a sparsity sends.

    Rounded up, and computed from the decimal number as written: 0.99 of 100 leaves exactly 1.

    Args:
        sparsity: As of :class:`CodecConfig`. None: the default, which sends at least
            ``MIN_ELEMENTS`` elements, or all.
        n_matrix, n_vector: Elements of the tensors with anything to send.
        share: How many times as densely as matrices vectors are sent.
    """
    given = DEFAULT_SPARSITY if sparsity is None else float(sparsity)
    density = 1 - Fraction(repr(given))
    if sparsity is None and n_matrix + n_vector > 0:
        density = max(density, Fraction(MIN_ELEMENTS, n_matrix + share * n_vector))
        if n_matrix > 0:  # if all of the vectors are too few
            density = max(density, Fraction(MIN_ELEMENTS - n_vector, n_matrix))
    n_sent = (n_matrix * min(Fraction(1), density), n_vector * min(Fraction(1), share * density))
    return math.ceil(n_sent[0]), math.ceil(n_sent[1])


def _checked_patterns(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Iterable):
        raise TypeError(f"{name}={value!r}: must be a sequence of name patterns")
    patterns = tuple(value)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{name}: {pattern!r} is no name pattern: it must be a str")
    return patterns


def _check_real(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r}: must be a number, not {type(value).__name__}")
    if not low <= as_float(value) <= high:
        raise ValueError(f"{name}={value!r}: must lie in [{low:g}, {high:g}]")


def check_config(name: str, config: CodecConfig | None) -> CodecConfig:
    """The default for None; TypeError for anything else that is no CodecConfig."""
    if config is None:
        return CodecConfig()
    if not isinstance(config, CodecConfig):
        raise TypeError(f"{name}: must be a CodecConfig, not {type(config).__name__}")
    return config
