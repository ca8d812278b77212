"""This codec with other selection rules than the largest magnitudes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

import resfed_codec as rfc
from benchmarks.federated.methods.base import STATISTICS, State, UpdateMethod, Vector, flat, like
from benchmarks.federated.methods.topk import largest
from resfed_codec import _native
from resfed_codec.codec import update as codec
from resfed_codec.codec.native_call import tensors_of
from resfed_codec.config import AUTO_STEP_RATIO
from resfed_codec.tensors.layout import arrays_of, layout_digest, specs_of, views_of
from resfed_codec.tensors.roles import NO_OVERRIDES, roles_of

Index = NDArray[np.int64]


@dataclass
class Matrices:
    """All matrices of an update concatenated, in the codec's order, and their ends."""

    values: Vector
    shapes: list[tuple[int, ...]]

    def slices(self) -> Iterator[slice]:
        """The slice of each matrix in ``values``."""
        start = 0
        for shape in self.shapes:
            yield slice(start, start + math.prod(shape))
            start += math.prod(shape)


@dataclass
class Choice:
    """The selected values of the matrices, 0 for unselected elements.

    ``exponents`` scale each tensor by 2**-exponent for the quantizer, one byte each, or None.
    """

    values: Vector
    exponents: list[int] | None = None


@dataclass
class Costs:
    """Estimated bits of gaps in an adaptive coder, by class of the previous gap (0, 1, 2 or more).

    ``price`` is the price of a bit, relative to its gain at the threshold of top-k.
    """

    counts: NDArray[np.float64] = field(default_factory=lambda: np.zeros((3, 32)))
    price: float = 1.0

    def steer(self, n_bytes: int, wanted: int) -> None:
        """Raise the price if too much was sent, lower it if too little."""
        self.price *= min(max(n_bytes / wanted, 0.5), 2.0)

    def learn(self, chosen: Index) -> None:
        """Count the gaps of the sent elements; older counts decay, to follow the training."""
        self.counts *= 0.5
        np.add.at(self.counts, _with_the_one_before(chosen), 1)

    def bits(self) -> NDArray[np.float64]:
        """Bits ``(3, 32)`` by previous class and class: class, mantissa, sign and level."""
        prior = np.exp2(-np.arange(32.0) / 2)
        smoothed = self.counts + prior / prior.sum()
        share = smoothed / smoothed.sum(axis=1, keepdims=True)
        total: NDArray[np.float64] = -np.log2(share) + np.arange(32) + 1.5
        return total


def _with_the_one_before(chosen: Index) -> tuple[Index, Index]:
    """The previous class and the class of each gap."""
    classes = gap_classes(np.diff(chosen, prepend=-1))
    return np.minimum(np.concatenate([[0], classes[:-1]]), 2), classes


def gap_classes(gaps: Index) -> Index:
    """The position of the leading bit of each gap, 1 and above."""
    classes: Index = np.frexp(gaps.astype(np.float64))[1].astype(np.int64) - 1
    return classes


def only(values: Vector, chosen: Index) -> Vector:
    """``values`` at the indices ``chosen``, 0 elsewhere."""
    kept = np.zeros_like(values)
    kept[chosen] = values[chosen]
    return kept


def by_magnitude(update: Matrices, sparsity: float, costs: Costs) -> Choice:
    """The largest magnitudes over all matrices, as in the codec."""
    return Choice(only(update.values, largest(update.values, sparsity)))


def by_tensor(update: Matrices, sparsity: float, costs: Costs) -> Choice:
    """The largest magnitudes of each tensor, with equal densities; scaled by threshold."""
    values, exponents = np.zeros_like(update.values), []
    for part in update.slices():
        chosen = largest(update.values[part], sparsity)
        values[part] = only(update.values[part], chosen)
        exponents.append(_exponent(float(np.abs(values[part][chosen]).min(initial=np.inf))))
    return Choice(values, exponents)


def by_rms(update: Matrices, sparsity: float, costs: Costs) -> Choice:
    """The largest magnitudes relative to the RMS of their tensor; scaled by it."""
    relative, exponents = update.values.copy(), []
    for part in update.slices():
        rms = float(np.sqrt(np.square(relative[part], dtype=np.float64).mean()))
        exponents.append(_exponent(rms))
        relative[part] *= np.float32(1 / rms if rms else 1)
    return Choice(only(update.values, largest(relative, sparsity)), exponents)


def by_group(update: Matrices, sparsity: float, costs: Costs, share: int = 4) -> Choice:
    """The largest magnitudes in the groups of most energy, with ``share`` times as many elements.

    A group is a kernel of a convolution, or 16 neighbours in a row of another matrix. Clustered
    nonzeros take few bits.
    """
    energy = np.zeros_like(update.values)
    sizes = np.zeros(len(energy), np.int64)
    for part, shape in zip(update.slices(), update.shapes, strict=True):
        size = math.prod(shape[2:]) if len(shape) > 2 else 16
        squares = np.square(update.values[part])
        starts = np.arange(0, len(squares), size)
        lengths = np.diff(starts, append=len(squares))
        energy[part] = np.repeat(np.add.reduceat(squares, starts) / lengths, lengths)
        sizes[part] = np.repeat(lengths, lengths)
    groups = largest(energy, max(0.0, 1 - share * (1 - sparsity)))
    inside = only(update.values, groups)
    return Choice(only(inside, largest(inside, sparsity)))


def by_rate(update: Matrices, sparsity: float, costs: Costs, window: int = 32) -> Choice:
    """Rate-distortion optimization: the path through the candidates with the best gain for bits.

    It drops isolated elements and fills gaps in clusters; selected values below the threshold of
    top-k are raised to it. A Viterbi search among three times as many candidates as top-k sends,
    with a look-back of ``window`` candidates.
    """
    magnitude = np.abs(update.values)
    top = largest(update.values, sparsity)
    threshold = float(magnitude[top].min())
    if threshold == 0:
        return Choice(only(update.values, top))
    if not costs.counts.any():
        costs.learn(top)
    bits = costs.bits()
    worth = costs.price * threshold**2 / float(bits[_with_the_one_before(top)].mean())
    candidates = largest(magnitude, max(0.0, 1 - 3 * (1 - sparsity)))
    candidates = candidates[magnitude[candidates] >= 0.6 * threshold]
    m = magnitude[candidates].astype(np.float64)
    first = magnitude[top][magnitude[top] < threshold * (1 + 1 / AUTO_STEP_RATIO)].mean()
    gain = m**2 - np.where(m < threshold * (1 + 1 / AUTO_STEP_RATIO), (m - first) ** 2, 0)
    chosen = candidates[_cheapest_path(candidates, gain, worth * bits, window)]
    costs.learn(chosen)
    sent = np.copysign(np.maximum(magnitude, np.float32(threshold)), update.values)
    return Choice(only(sent, chosen))


def _cheapest_path(
    where: Index, gain: NDArray[np.float64], price: NDArray[np.float64], window: int
) -> Index:
    """The elements of the path with the largest sum of gains minus prices of gaps.

    A state is an element and the class of the previous gap: 0, 1, or 2 and above.
    """
    n = len(where)
    lookup = gap_classes(np.arange(1, int(where[-1]) + 3))
    at = np.concatenate([[-1], where])
    by_class = np.ascontiguousarray(price.T)
    total = np.full((n + 1, 3), -np.inf)  # of the best path to each state; the first is the start
    total[0, 0] = 0
    parent = np.zeros((n + 1, 3), np.int64)  # element and class as one number
    far, far_total = 0, 0.0  # the best element before the window
    for i in range(1, n + 1):
        low = max(0, i - window)
        if low and (left := float(total[low - 1].max())) > far_total:
            far, far_total = low - 1, left
        gaps = at[i] - at[low:i]
        options = total[low:i] - by_class[lookup[gaps - 1]]
        first, second = np.searchsorted(-gaps, (-3, -1)).tolist()  # gaps of class 1, of class 0
        for state, part in enumerate((slice(second, i - low), slice(first, second), slice(first))):
            if part.start != part.stop and part.stop:
                best = int(options[part].argmax())
                total[i, state] = options[part].flat[best]
                parent[i, state] = 3 * (low + (part.start or 0)) + best
        if low:
            jumps = total[far] - by_class[lookup[at[i] - at[far] - 1]]
            best = int(jumps.argmax())
            if jumps[best] > total[i, 2]:
                total[i, 2], parent[i, 2] = jumps[best], 3 * far + best
        total[i] += gain[i - 1]
    path = []
    place = int(total.argmax())
    while place >= 3:
        path.append(place // 3 - 1)
        place = int(parent[place // 3, place % 3])
    return np.array(path[::-1], np.int64)


def _exponent(scale: float) -> int:
    return math.floor(math.log2(scale)) if 0 < scale < math.inf else 0


RULES: dict[str, Callable[[Matrices, float, Costs], Choice]] = {
    "magnitude": by_magnitude,
    "rate": by_rate,
    "tensor": by_tensor,
    "rms": by_rms,
    "group": by_group,
}


class CodecSelect(UpdateMethod):
    """The codec's payloads for residuals in which a rule selects the elements of matrices.

    Predictions are the held models, as with "global" up and "previous" down. The codec selects
    elements of vectors. The residual of other elements is set to 0 before encoding, so payloads are
    real; they lack the link of a session, a few bytes. If a rule scales tensors, a byte for each
    is counted.

    Args:
        rule: A key of ``RULES``.
        sparsity: As in CodecConfig. "rate" sends about as many bytes as top-k, not as many
            elements: each direction adapts its price of a bit to the payloads.
        feedback: Error feedback in both directions.
    """

    def __init__(
        self, *start: Any, rule: str = "magnitude", sparsity: float = 0.99, feedback: bool = False
    ) -> None:
        if rule not in RULES:
            raise ValueError(f"rule {rule!r}: must be one of {', '.join(RULES)}")
        super().__init__(*start, feedback=feedback)
        self._rule, self._sparsity = rule, sparsity
        self._zeros = {n: np.zeros_like(v) for n, v in self.held[0].items() if STATISTICS not in n}
        self._matrices = sorted(name for name, value in self._zeros.items() if value.ndim > 1)
        self._costs = {is_up: Costs() for is_up in (True, False)}
        self._is_up = True
        self._errors: list[tuple[float, float]] = []

    def up(self, client: int, local: State) -> tuple[State, int]:
        self._is_up = True
        return super().up(client, local)

    def down(self, mean: State) -> list[int]:
        self._is_up = False
        return super().down(mean)

    def code(self, update: Vector) -> tuple[Vector, int]:
        state = like(self._zeros, update)
        payload, exponents = self._encode(state, self._rule)
        if self._rule == "rate":
            costs = self._costs[self._is_up]
            wanted = len(self._encode(state, "magnitude")[0])
            for _ in range(8 if costs.price == 1 else 0):
                costs.steer(len(payload), wanted)
                payload, exponents = self._encode(state, self._rule)
            costs.steer(len(payload), wanted)
        decoded = rfc.decode(payload, self._zeros)
        sent = flat({n: np.ldexp(decoded[n], exponents.get(n, 0)) for n in self._zeros})
        self._errors.append((float(np.square(update - sent).sum()), float(np.square(update).sum())))
        return sent, len(payload) + len(exponents)

    def _encode(self, state: State, rule: str) -> tuple[bytes, dict[str, int]]:
        """The payload of the selected elements, and exponents by name."""
        matrices = {name: state[name] for name in self._matrices}
        parts = Matrices(flat(matrices), [value.shape for value in matrices.values()])
        choice = RULES[rule](parts, self._sparsity, self._costs[self._is_up])
        exponents = dict(zip(matrices, choice.exponents or [], strict=bool(choice.exponents)))
        chosen = {**state, **like(matrices, choice.values)}
        scaled = {n: np.ldexp(v, -exponents.get(n, 0)) for n, v in chosen.items()}
        return encode_nonzeros(scaled, self._zeros, self._sparsity, self._matrices), exponents

    def notes(self) -> dict[str, float]:
        """Squared errors relative to the residual: of all clients, and down."""
        *up, down = self._errors
        self._errors = []
        error, energy = np.sum(up, axis=0)
        return {"error_up": float(error / energy), "error_down": down[0] / down[1]}


def encode_nonzeros(state: State, zeros: State, sparsity: float, matrices: list[str]) -> bytes:
    """Encode with all nonzeros of matrices."""
    current, base = views_of(state, "state"), views_of(zeros, "reference")
    specs = specs_of(base)
    roles = roles_of(specs)
    config = rfc.CodecConfig(sparsity=sparsity)
    tensors = tensors_of(specs, roles, arrays_of(base), current=arrays_of(current))
    options = codec.native_options(config, specs, roles, NO_OVERRIDES, tensors)
    options.k_matrix = sum(int(np.count_nonzero(state[name])) for name in matrices)
    options.digest = layout_digest(specs)
    return _native.encode(tensors, options)
