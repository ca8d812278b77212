"""Methods with an outer optimizer, for workers that train one model together."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

import resfed_codec as rfc
from benchmarks.federated.methods.base import Method, State, Vector, flat, like
from benchmarks.federated.methods.codec import Codec

CHUNK_SIDE = 64
"""SparseLoCo's chunks are 64 x 64 elements of a matrix, or 4,096 consecutive ones of a vector."""

CLAIMED_BITS = 14
PACKED_BITS = 20
"""Bits of a value that SparseLoCo sends: its paper counts 12 bits of position and 2 of value; its
public code packs the value into 8."""


class Outer:
    """SGD on the common model; its gradient is the model minus the mean of the workers' models.

    Nesterov momentum as in PyTorch: ``m = momentum m + g``, a step ``lr (g + momentum m)``.
    """

    def __init__(self, outer_lr: float = 1.0, outer_momentum: float = 0.0) -> None:
        self._lr, self._momentum = np.float32(outer_lr), np.float32(outer_momentum)
        self._mean: Vector | None = None

    def moved(self, model: State, mean: State) -> State:
        """The model after a step."""
        start = flat(model)
        return like(mean, start - self.step(start - flat(mean)))

    def step(self, gradient: Vector) -> Vector:
        """What to subtract from the model."""
        if not self._momentum:
            small: Vector = self._lr * gradient
            return small
        before = 0 if self._mean is None else self._momentum * self._mean
        self._mean = before + gradient
        step: Vector = self._lr * (gradient + self._momentum * self._mean)
        return step


class DiLoCo(Method):
    """Sends whole models as float32; the outer optimizer makes a step from their mean.

    Douillard et al., "DiLoCo: distributed low-communication training of language models",
    arXiv:2311.08105, with its outer learning rate and momentum.
    """

    def __init__(self, *start: Any, outer_lr: float = 0.7, outer_momentum: float = 0.9) -> None:
        super().__init__(*start)
        self._outer = Outer(outer_lr, outer_momentum)

    def up(self, client: int, local: State) -> tuple[State, int]:
        return local, sum(value.nbytes for value in local.values())

    def down(self, mean: State) -> list[int]:
        model = self._outer.moved(self.held[0], mean)
        return self._broadcast(model, flat(model).nbytes)


class Gathered(Method):
    """Every worker sends its update to all others, and each makes the same outer step.

    An update is the held model minus the local one, plus ``decay`` times what earlier updates left
    out. Bytes up are a worker's payload, bytes down those of all others.
    """

    def __init__(self, *start: Any, decay: float, **outer: float) -> None:
        super().__init__(*start)
        self._decay = np.float32(decay)
        self._outer = Outer(**outer)
        self._left: list[Vector | None] = [None] * len(self.held)
        self._sizes = [0] * len(self.held)

    @abstractmethod
    def code(self, update: State) -> tuple[State, int]:
        """The update as others decode it, and the bytes of its payload."""

    def up(self, client: int, local: State) -> tuple[State, int]:
        held = flat(self.held[client])
        update = held - flat(local)
        left = self._left[client]
        if left is not None:
            update += self._decay * left
        coded, self._sizes[client] = self.code(like(local, update))
        decoded = flat({name: coded[name] for name in local})
        self._left[client] = update - decoded
        return like(local, held - decoded), self._sizes[client]

    def down(self, mean: State) -> list[int]:
        self._broadcast(self._outer.moved(self.held[0], mean), 0)
        return [sum(self._sizes) - size for size in self._sizes]


class SparseLoCo(Gathered):
    """The ``k`` largest magnitudes of each chunk of 4,096, in two bits.

    Sarfi, Thérien, Lidin, Belilovsky, "Communication efficient LLM pre-training with SparseLoCo",
    arXiv:2508.15706. Our interpretation of the quantizer follows its public code: the values that a
    tensor sends are sorted into four bins, 1.5 standard deviations wide, by their distance from
    the mean, and each is replaced by its bin's mean.

    Bytes are computed, not produced: 14 bits a value as in the paper; ``up_packed`` has the 20 bits
    of its public code. Neither counts the bins' means.
    """

    def __init__(self, *start: Any, k: int = 64, decay: float = 0.95, **outer: float) -> None:
        super().__init__(*start, decay=decay, **outer)
        self._k = k

    def code(self, update: State) -> tuple[State, int]:
        decoded, sent = {}, 0
        for name, value in update.items():
            chosen = largest_of_chunks(value, self._k)
            decoded[name] = np.zeros_like(value)
            decoded[name][chosen] = quantize(value[chosen])
            sent += int(chosen.sum())
        return decoded, math.ceil(sent * CLAIMED_BITS / 8)

    def notes(self) -> dict[str, float]:
        return {"up_packed": round(sum(self._sizes) * PACKED_BITS / CLAIMED_BITS)}


def largest_of_chunks(value: Vector, k: int) -> NDArray[np.bool_]:
    """A mask of the ``k`` largest magnitudes of each chunk, with the shape of ``value``.

    A matrix whose sides are multiples of 64 is cut into squares, other tensors into rows. A chunk
    shorter than 4,096 sends a proportional number, at least one.
    """
    side, size = CHUNK_SIDE, CHUNK_SIDE * CHUNK_SIDE
    places = np.arange(value.size)
    if value.ndim == 2 and value.shape[0] % side == 0 and value.shape[1] % side == 0:
        squares = places.reshape(value.shape[0] // side, side, value.shape[1] // side, side)
        places = squares.swapaxes(1, 2).reshape(-1)
    magnitudes = np.abs(value.reshape(-1))[places]
    chosen = np.zeros(value.size, bool)
    for start in range(0, value.size, size):
        chunk = magnitudes[start : start + size]
        share = max(1, k * chunk.size // size)
        chosen[places[start + np.argpartition(chunk, chunk.size - share)[-share:]]] = True
    return chosen.reshape(value.shape)


def quantize(values: Vector) -> Vector:
    """Two bits: each value becomes the mean of its bin."""
    if values.size < 2 or values.min() == values.max():
        return values
    mean, std = values.mean(), values.std(ddof=1)
    bins = np.clip(np.rint((values - mean) / (1.5 * std) + 2), 0, 3).astype(np.int64)
    counts = np.maximum(1, np.bincount(bins, minlength=4))
    means = (np.bincount(bins, values, minlength=4) / counts).astype(np.float32)
    quantized: Vector = means[bins]
    return quantized


class CodecGathered(Gathered):
    """This codec's payloads instead of SparseLoCo's; bytes are their lengths.

    Args:
        options: More fields of CodecConfig.
    """

    def __init__(
        self,
        *start: Any,
        sparsity: float = 1 - 64 / 4096,
        decay: float = 1.0,
        outer_lr: float = 1.0,
        outer_momentum: float = 0.0,
        **options: object,
    ) -> None:
        super().__init__(*start, decay=decay, outer_lr=outer_lr, outer_momentum=outer_momentum)
        self._config = rfc.CodecConfig(sparsity=sparsity, **options)  # type: ignore[arg-type]
        self._zeros = {name: np.zeros_like(value) for name, value in self.held[0].items()}

    def code(self, update: State) -> tuple[State, int]:
        payload = rfc.encode(update, self._zeros, config=self._config)
        return rfc.decode(payload, self._zeros), len(payload)


class CodecDiLoCo(Codec):
    """This codec's sessions, with an outer optimizer on the server, which keeps the exact model.

    Feedback up but not down, where the server sends the exact model minus the clients' model.
    """

    def __init__(
        self,
        *start: Any,
        outer_lr: float = 1.0,
        outer_momentum: float = 0.0,
        sparsity: float = 1 - 64 / 4096,
        down_sparsity: float | None = None,
    ) -> None:
        super().__init__(*start, up_feedback=True, sparsity=sparsity, down_sparsity=down_sparsity)
        self._outer = Outer(outer_lr, outer_momentum)
        self._exact = flat(self.held[0])

    def down(self, mean: State) -> list[int]:
        held = flat({name: self.held[0][name] for name in mean})
        self._exact = self._exact - self._outer.step(held - flat(mean))
        return super().down(like(mean, self._exact))
