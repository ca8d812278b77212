"""Rules by which servers make the next global model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

State = dict[str, NDArray[np.float32]]

MOMENTUM = 0.5
ADAM_RATE, ADAM_EPSILON = 0.01, 1e-3


class Server:
    """A rule with its state.

    The step of a round is the mean of the local models minus the model that clients trained from.

    - "mean": the mean itself, as FedAvg passes on; so the new model builds on what clients hold.
    - "held momentum": what clients hold, plus momentum.
    - "exact": an exact model, to which the server adds the step.
    - "momentum": the same with server momentum (FedAvgM of Hsu et al., arXiv:1909.06335).
    - "adam": the same with Adam (FedAdam of Reddi et al., arXiv:2003.00295), without bias
      correction.

    Args:
        rule: The rule.
        initial: The first model.
    """

    def __init__(self, rule: str, initial: Mapping[str, NDArray[Any]]) -> None:
        if rule not in RULES:
            raise ValueError(f"server {rule!r}: must be one of {', '.join(RULES)}")
        self._rule = rule
        self._model = {name: np.array(value) for name, value in initial.items()}
        self._first = {name: np.zeros_like(value) for name, value in initial.items()}
        self._second = {name: np.zeros_like(value) for name, value in initial.items()}

    def next(self, mean: State, held: State) -> State:
        """The new global model, given the mean of the recovered local models, and the model that
        clients trained from."""
        if self._rule == "mean":
            return mean
        change = RULES[self._rule]
        base = held if self._rule == "held momentum" else self._model
        for name in self._model:
            value = base[name]
            step = mean[name] - held[name]
            moved = value + change(step, self._first[name], self._second[name])
            self._model[name] = moved.astype(value.dtype, copy=False)
        return dict(self._model)


Array = NDArray[np.float32]


def _exact(step: Array, first: Array, second: Array) -> Array:
    return step


def _momentum(step: Array, first: Array, second: Array) -> Array:
    first[...] = MOMENTUM * first + step
    return first


def _adam(step: Array, first: Array, second: Array) -> Array:
    first[...] = 0.9 * first + 0.1 * step
    second[...] = 0.99 * second + 0.01 * step * step
    change: Array = ADAM_RATE * first / (np.sqrt(second) + np.float32(ADAM_EPSILON))
    return change


RULES: dict[str, Callable[[Array, Array, Array], Array]] = {
    "mean": _exact,
    "held momentum": _momentum,
    "exact": _exact,
    "momentum": _momentum,
    "adam": _adam,
}
