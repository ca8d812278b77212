"""Tuning: the knob at which a peer has a given error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from benchmarks.common import relative_squared_error
from benchmarks.peers.base import LossyPeer, Turn, Update

CLOSE = 0.01
"""Relative tolerance of the target error."""

STRIDE, MARGIN = 4, 1.25
"""Parameters of the search in :func:`points`."""


class Tuned(NamedTuple):
    """``n_bytes`` at the target error; ``knob`` reaches it, or is next to the value that does.

    ``error`` is that of ``knob``. For a stepped peer ``n_bytes`` is interpolated between the two
    best steps around the target error, in logarithms of error and bytes.
    """

    knob: float
    error: float
    n_bytes: float


def error_of(update: Update, turn: Turn) -> float:
    """Relative squared error of the recovered model, over all elements."""
    names = list(update.state)
    return relative_squared_error(
        dict(update.state), dict(update.reference), dict(turn.recovered), names
    )


def tune(peer: LossyPeer, update: Update, error: float) -> Tuned:
    """Find the knob with this relative squared error, above 0 and below 1.

    Raises:
        ValueError: The peer does not reach it.
    """
    if peer.stepped:
        return between(points(peer, update, [error]), error)
    low, high = peer.knobs
    best = Tuned(math.nan, math.inf, math.nan)
    for _ in range(30):
        knob = (low + high) / 2
        reached = try_knob(peer, update, knob)
        best = min(best, reached, key=lambda tuned: abs(tuned.error - error))
        if abs(reached.error / error - 1) <= CLOSE:
            break
        low, high = (knob, high) if reached.error < error else (low, knob)
    if abs(best.error / error - 1) > 2 * CLOSE:
        raise ValueError(f"error {error:.3g} is out of reach, {best.error:.3g} is the nearest")
    return best


def try_knob(peer: LossyPeer, update: Update, knob: float) -> Tuned:
    turn = peer.turn(update, knob)
    return Tuned(knob, error_of(update, turn), turn.n_bytes)


def points(peer: LossyPeer, update: Update, errors: Sequence[float]) -> list[Tuned]:
    """Error and bytes at the steps of a stepped peer near ``errors``.

    Measures every fourth step, from coarse to fine, until the error is below all targets. Then
    measures all steps between two of them whose errors enclose a target, or nearly do.
    """
    least, most = int(peer.knobs[0]), int(peer.knobs[1])
    found: list[Tuned] = []
    for knob in range(most, least - 1, -STRIDE):
        found.append(try_knob(peer, update, knob))
        if found[-1].error < min(errors) / MARGIN:
            break
    for coarse, fine in pairwise(found.copy()):
        low, high = sorted((coarse.error, fine.error))
        if any(low / MARGIN < error < high * MARGIN for error in errors):
            steps = range(int(fine.knob) + 1, int(coarse.knob))
            found += [try_knob(peer, update, knob) for knob in steps]
    return found


def between(tried: list[Tuned], error: float) -> Tuned:
    """The smallest size at ``error``, from the measured steps.

    Raises:
        ValueError: No step has an error that small.
    """
    finer = [t for t in tried if t.error <= error]
    if not finer:
        raise ValueError(f"error {error:.3g} is out of reach")
    low = min(finer, key=lambda t: t.n_bytes)
    coarser = [t for t in tried if t.error > error and t.n_bytes < low.n_bytes]
    if not coarser:
        return low
    high = min(coarser, key=lambda t: t.error)
    at = math.log(error / low.error) / math.log(high.error / low.error)
    nearest = low if at < 0.5 else high
    return Tuned(nearest.knob, nearest.error, low.n_bytes ** (1 - at) * high.n_bytes**at)
