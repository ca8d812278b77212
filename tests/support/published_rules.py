"""The predictors in NumPy, from the published formulas, as a reference for sessions.

It uses no predictors, versions or sessions of resfed_codec.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

import resfed_codec as rfc
from models import State

FLOATS = (np.float32, np.float16, np.float64, ml_dtypes.bfloat16)

SHAPES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "w32": (np.float32, (9, 20)),
    "w16": (np.float16, (4, 30)),
    "w64": (np.float64, (5, 12)),
    "wb": (ml_dtypes.bfloat16, (40, 2)),
    "bias": (np.float32, (11,)),
    "scale": (np.float32, ()),
    "steps": (np.int64, ()),
    "seen": (np.bool_, (6,)),
}
"""Tensors of all kinds in one small model."""


def random_model(rng: np.random.Generator) -> State:
    return {
        name: np.asarray(rng.standard_normal(shape) > 0 if kind is np.bool_ else
                         10 * rng.standard_normal(shape)).astype(kind)
        for name, (kind, shape) in SHAPES.items()
    }  # fmt: skip


def moved(model: State, rng: np.random.Generator, scale: float = 0.1) -> State:
    """The model after a step; integers count the steps."""
    new = {}
    for name, value in model.items():
        if value.dtype.type in FLOATS:
            step = scale * rng.standard_normal(value.shape)
            new[name] = np.asarray(value.astype(np.float64) + step).astype(value.dtype)
        elif value.dtype == np.bool_:
            new[name] = ~value
        else:
            new[name] = np.asarray(value + 1)
    return new


class Term:
    """A member of a history: its name and the model."""

    def __init__(self, key: tuple[str, int], model: State) -> None:
        self.key, self.model = key, model


class History:
    """Recovered models of one direction; number 0 is the common initial model."""

    def __init__(self, direction: str, initial: State) -> None:
        self.direction, self.models = direction, [initial]

    def __getitem__(self, back: int) -> Term:
        """``history[-1]`` is the newest; the oldest also replaces all earlier ones."""
        number = max(0, len(self.models) + back)
        return Term((self.direction if number else "", number), self.models[number])


Rule = Callable[[History, History], list[tuple[float, Term]]]

# The order of summation: own terms, newest first, then those of the other direction. o is the
# history of the payload's own direction, x that of the other one. For uplinks (o, x) is (l, g).
RULES: dict[str, Rule] = {
    "global": lambda o, x: [(1, x[-1])],
    "previous": lambda o, x: [(1, o[-1])],
    "res0": lambda o, x: [(1, o[-1])],
    "res1": lambda o, x: [(1, o[-1]), (0.5, x[-1]), (-0.5, x[-2])],
    "res2": lambda o, x: [(2, o[-1]), (-1, o[-2]), (1, x[-1]), (-2, x[-2]), (1, x[-3])],
}

PUBLISHED: dict[str, Callable[[Any, Any], Any]] = {
    "res0": lambda o, x: o[-1],
    "res1": lambda o, x: o[-1] + 0.5 * (x[-1] - x[-2]),
    "res2": lambda o, x: x[-1] + 2 * (o[-1] - x[-2]) - (o[-2] - x[-3]),
}
"""The rules of the paper's code, for numbers of any type."""


def linear(own: Sequence[float], other: Sequence[float] = ()) -> Rule:
    def rule(o: History, x: History) -> list[tuple[float, Term]]:
        terms = [(c, o[-1 - j]) for j, c in enumerate(own)]
        return terms + [(c, x[-1 - j]) for j, c in enumerate(other)]

    return rule


def combine(terms: Sequence[tuple[float, Term]], name: str) -> np.ndarray:
    """One tensor of a prediction: each model once, in the order of its first occurrence."""
    coefficients: dict[tuple[str, int], float] = {}
    models: dict[tuple[str, int], State] = {}
    for c, term in terms:
        if c:
            coefficients[term.key] = coefficients.get(term.key, 0) + c
            models[term.key] = term.model
    keys = [k for k in coefficients if coefficients[k]] or list(coefficients)[:1]
    first = models[keys[0]][name]
    if first.dtype.type not in FLOATS or [coefficients[k] for k in keys] == [1]:
        return first
    wide = np.float64 if first.dtype == np.float64 else np.float32
    total = None
    for key in keys:
        product = models[key][name].astype(wide) * wide(coefficients[key])
        total = product if total is None else total + product
    return np.asarray(total).astype(first.dtype)


def predict(rule: Rule, own: History, other: History) -> State:
    terms = rule(own, other)
    return {name: combine(terms, name) for name in own.models[0]}


def recover(state: State, prediction: State, **options: Any) -> State:
    """The model that a stateless codec recovers, given the prediction."""
    return rfc.decode(rfc.encode(state, prediction, **options), prediction)


def residual(state: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    wide = np.float64 if state.dtype == np.float64 else np.float32
    return np.asarray(state.astype(wide) - prediction.astype(wide)).astype(np.float32)


class Feedback:
    """Error feedback of one direction: the changes not sent yet, in float32."""

    def __init__(self, model: State) -> None:
        self.error = {
            name: np.zeros(value.shape, np.float32)
            for name, value in model.items()
            if value.dtype.type in FLOATS
        }

    def recover(self, state: State, prediction: State, **options: Any) -> tuple[State, State]:
        """(recovered, values sent). Then e' = (state - recovered) + e, that is r + e - sent."""
        wanted = {n: residual(state[n], prediction[n]) + e for n, e in self.error.items()}
        wanted = {n: np.asarray(value) for n, value in wanted.items()}
        sent = recover(wanted, {n: np.zeros_like(v) for n, v in wanted.items()}, **options)
        recovered = {}
        for name, value in state.items():
            recovered[name] = value.copy()
            if name in sent:
                base = prediction[name]
                wide = np.float64 if base.dtype == np.float64 else np.float32
                total = base.astype(wide) + sent[name].astype(wide)
                recovered[name] = np.asarray(total).astype(base.dtype)
                left = residual(value, recovered[name]) + self.error[name]
                self.error[name] = np.asarray(left)
        return recovered, sent

    def add(self, values: State) -> None:
        for name in self.error:
            self.error[name] = np.asarray(self.error[name] + values[name])
