"""Interface of the peers: a name, the reason if one cannot run, and one encoding and decoding."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = dict[str, NDArray[np.float32]]
Levels: TypeAlias = dict[str, NDArray[np.int32]]


@dataclass(frozen=True)
class Update:
    """The input: state and reference with the same float32 matrices, C-contiguous."""

    state: Floats
    reference: Floats

    @property
    def n_elems(self) -> int:
        return sum(value.size for value in self.state.values())

    def first_tensor(self) -> Update:
        """One tensor, for tuning; the tensors of a synthetic model are alike."""
        name = next(iter(self.state))
        return Update({name: self.state[name]}, {name: self.reference[name]})


@dataclass(frozen=True)
class Turn:
    """One encoding and one decoding: bytes, seconds, and the receiver's model.

    Seconds are NaN for a scheme that only counts its bytes.
    """

    n_bytes: int
    encode_s: float
    decode_s: float
    recovered: Mapping[str, NDArray[Any]]


class Peer(ABC):
    """A codec in the comparison. Its adapter holds no state except its library's."""

    name: str
    package = ""
    """What it needs, if anything."""

    def missing(self) -> str:
        """Why this peer cannot run here; empty if it can."""
        if self.package and find_spec(self.package) is None:
            return f"the package {self.package} is not installed (pip install '.[bench]')"
        return ""

    def close(self) -> None:  # noqa: B027
        """End processes that turns have started; the next turn starts them again."""


class LossyPeer(Peer):
    """Codes an update with loss. ``knob``, from ``knobs[0]`` to ``knobs[1]``, sets how much.

    The error of the recovered model grows with ``knob``. A ``stepped`` peer takes only whole
    numbers, and its error need not grow with every step.
    """

    knobs: tuple[float, float]
    stepped = False

    @abstractmethod
    def turn(self, update: Update, knob: float) -> Turn:
        """Encode and decode once; ``recovered`` is the receiver's new model, in new arrays."""


class LossyCoder(LossyPeer):
    """A lossy peer that runs in this process."""

    @abstractmethod
    def encode(self, update: Update, knob: float) -> Any:
        """A payload, something with a length in bytes."""

    @abstractmethod
    def decode(self, payload: Any, reference: Floats) -> Floats: ...

    def turn(self, update: Update, knob: float) -> Turn:
        encode = partial(self.encode, update, knob)
        return _timed(encode, lambda payload: self.decode(payload, update.reference))


class LosslessPeer(Peer):
    """Codes integer levels, most of them zero, without loss."""

    @abstractmethod
    def turn(self, levels: Levels) -> Turn:
        """Encode and decode once; ``recovered`` is equal to ``levels``."""


class LosslessCoder(LosslessPeer):
    """A lossless peer that runs in this process."""

    @abstractmethod
    def encode(self, levels: Levels) -> Any:
        """A payload, something with a length in bytes."""

    @abstractmethod
    def decode(self, payload: Any, like: Levels) -> Levels:
        """The levels; ``like`` gives names, shapes and order, which payloads do not have."""

    def turn(self, levels: Levels) -> Turn:
        return _timed(partial(self.encode, levels), lambda payload: self.decode(payload, levels))


def _timed(encode: Callable[[], Any], decode: Callable[[Any], Floats | Levels]) -> Turn:
    begin = time.perf_counter()
    payload = encode()
    middle = time.perf_counter()
    recovered = decode(payload)
    return Turn(len(payload), middle - begin, time.perf_counter() - middle, recovered)


def flat_residual(update: Update) -> NDArray[np.float32]:
    """State minus reference, all tensors concatenated."""
    parts = [(value - update.reference[n]).ravel() for n, value in update.state.items()]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def split_like(flat: NDArray[Any], like: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Split concatenated tensors into tensors with names and shapes."""
    ends = np.cumsum([value.size for value in like.values()])
    parts = np.split(flat, ends[:-1])
    return {n: part.reshape(like[n].shape) for n, part in zip(like, parts, strict=True)}


def add_flat(reference: Floats, residual: NDArray[np.float32]) -> Floats:
    """Reference plus a residual of :func:`flat_residual`."""
    parts = split_like(residual, reference)
    return {name: value + parts[name] for name, value in reference.items()}
