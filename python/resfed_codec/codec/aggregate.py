"""Aggregator: the weighted mean of many clients' models, straight from their payloads."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from copy import copy as copy_of
from typing import Any, Generic, NamedTuple, NoReturn, TypeAlias, overload

import numpy as np

from resfed_codec import _native
from resfed_codec.codec.native_call import Aggregator as NativeAggregator
from resfed_codec.codec.native_call import Assignments, Plan, aggregator, tensors_of
from resfed_codec.codec.numbers import as_float
from resfed_codec.codec.payload import UPDATE, as_bytes
from resfed_codec.codec.update import Payload, parse_unlinked
from resfed_codec.errors import native_errors
from resfed_codec.tensors.dtypes import PARTS, PATTERNS
from resfed_codec.tensors.layout import ArrayT, Specs, State, StateT, check_same_layout, read_model
from resfed_codec.tensors.roles import roles_of
from resfed_codec.tensors.torch_tensors import untraced

MIN_WEIGHT, MAX_WEIGHT = 2.0**-40, 2.0**40
"""Between these, no weight is lost in the units of csrc/numeric/exact_mean.hpp."""

_WEIGHT_UNITS = 2.0**92  # a float64 of at least 2^-40 is a multiple of 2^-92


class Aggregator(Generic[StateT]):
    """The mean of models, weighted, as ``reference + sum(w * (model - reference)) / sum(w)``.

    Models come as payloads, which cost what they changed and not what the model holds, or as they
    are. Nothing is rounded while it is added up, so the result is the same, bit for bit, in
    whatever order models are added and with any number of threads::

        aggregator = rfc.Aggregator(reference)
        for payload, n_samples in received:
            aggregator.add(payload, n_samples)
        reference = aggregator.result()

    What a :class:`ClientSession` sends goes through :meth:`ServerSession.receive_into`.

    Numerics: a change is ``weight * (recovered - reference)``, both elements widened to float64,
    truncated to a multiple of 2^-80 and added up in 128 bits; the mean is rounded to the tensor's
    dtype at the end. It is that of float64 arithmetic on decoded models to within the last bit of
    float32 (float16, bfloat16), as long as ``count * 2**-80 / total_weight`` and a change's last
    bit in float64 are negligible.
    Complex numbers are averaged by their parts, in the same way.
    Integers and bool are added up exactly, with weights rounded to multiples of 2^-40, and their
    mean is rounded to the nearest, halves to even.

    Bounds: a change times its weight is at most 2^45, and is refused above, whatever else was
    added. Sums have no bound that could be reached, so no contribution makes another one be
    refused.

    Memory: a private copy of the reference, and 16 bytes for each element of the pages touched: at
    most four times a float32 model. Where a client sends changes above 2^20, 8 bytes more for each
    of the 65,536 elements around. :meth:`ServerSession.receive_into` keeps the payloads that it may
    have to take back. :meth:`reset` gives back all but the reference. Where the reference is on a
    CUDA device, all of it but the payloads is there, too, with 16 bytes for each element of the
    tensors touched.

    Several threads may call at once: they read payloads side by side and take turns at adding up.
    An instance can be neither copied nor pickled.

    Args:
        reference: The model that payloads were encoded against: a mapping from names to arrays, or
            a sequence of arrays, as in :func:`encode`. It is copied.

    Raises:
        TypeError: ``reference`` is of the wrong type, or a tensor's dtype is not supported: floats
            and integers of 8 bits and fewer that NumPy lacks have no mean here.
    """

    @overload
    def __init__(self: Aggregator[dict[str, ArrayT]], reference: Mapping[str, ArrayT]) -> None: ...
    @overload
    def __init__(self: Aggregator[list[ArrayT]], reference: Sequence[ArrayT]) -> None: ...
    @untraced
    def __init__(self, reference: State) -> None:
        sums = _Sums(reference)
        self._specs = sums.layout.specs
        self._lock = threading.RLock()
        self._state = _State(sums, {})

    @untraced
    def add(self, payload: Payload, weight: float = 1.0) -> None:
        """Add the model that ``payload`` encodes. All or nothing: an error changes nothing.

        Args:
            payload: What :func:`encode` returned for a model and this reference, with any options.
            weight: Its weight, an int or float in [2^-40, 2^40]; only ratios of weights matter.
                Or 0: the payload is verified, and counts nothing.

        Raises:
            PayloadError: The payload is damaged, truncated, or not of this codec; or a change times
                ``weight`` is not finite or 2^45 and more (the tensor is named).
            StateMismatchError: It was made for another layout or against another reference, or
                belongs to a stream or session.
            TypeError: An argument is of the wrong type.
            ValueError: ``weight`` is out of range.
        """
        value = _checked_weight(weight)
        data = as_bytes(payload, UPDATE)
        parsed = parse_unlinked(
            data,
            len(self._specs),
            self._state.sums.layout.digest,
            "receive_into() of the ServerSession",
        )
        add_from(self, None, payload_source(parsed), payload_source(parsed), value, len(data))

    @untraced
    def add_state(self, state: State, weight: float = 1.0) -> None:
        """Add a model that is not compressed; costs two passes and a copy. All or nothing.

        Args:
            state: A model of the reference's names, shapes and dtypes.
            weight: As in :meth:`add`.

        Raises:
            TypeError: An argument is of the wrong type.
            ValueError: The layouts differ (both sides are named), ``weight`` is out of range, or
                a change times it is not finite or 2^45 and more (the tensor is named).
        """
        source = model_source(state)
        add_from(self, None, source, source, _checked_weight(weight))

    @untraced
    def result(self) -> StateT:
        """The mean of what was added; more can be added afterwards.

        Returns:
            A new state of the reference's kind, which the caller owns, a dict or a list, with the
            same names in the same order, shapes, dtypes; torch where it was torch. Elements that
            nothing changed are the reference's.

        Raises:
            ValueError: Nothing was added, or with weight 0 only.
        """
        with self._lock:
            if self.count == 0:
                raise ValueError("result: nothing was added")
            sums = self._state.sums
            model = sums.layout.empty()
            with native_errors(self._specs):
                sums.native.result(model, self.total_weight)
        state: StateT = sums.layout.state_of(model)
        return state

    @untraced
    def reset(self, reference: State | None = None) -> None:
        """Forget what was added; with ``reference``, go on from another model.

        Args:
            reference: A model of the same names, shapes and dtypes; copied. Default: the same.

        Raises:
            TypeError: ``reference`` is of the wrong type.
            ValueError: ``reference`` has another layout (both sides are named).
        """
        if reference is None:
            with self._lock:
                state = self._state
                self._state = _State(state.sums.emptied(), {}, version=state.version)
            return
        sums = _Sums(reference)
        check_same_layout(sums.layout.specs, self._specs, "reference")
        with self._lock:
            self._state = _State(sums, {})

    @property
    def total_weight(self) -> float:
        """The exact sum of the weights added, rounded once."""
        return self._state.units / 2**92  # division of integers rounds correctly

    @property
    def count(self) -> int:
        """How many models were added; those of weight 0 and replaced ones do not count."""
        return self._state.n_models

    def __repr__(self) -> str:
        return f"<Aggregator of {self.count} models, total weight {self.total_weight:g}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an Aggregator can be neither copied nor pickled: its sums are native")

    def _plan(self, weight: float, before: _Replaceable | None, also: Assignments) -> Plan:
        """What becomes true when a model of this weight is added, and ``before`` taken back."""
        state = self._state
        units, n_models = _units(weight), int(weight > 0)
        if before is not None:
            units -= _units(before.weight)
            n_models -= int(before.weight > 0)
        after = state._replace(units=state.units + units, n_models=state.n_models + n_models)
        return lambda: [(self, "_state", after), *also]


def aggregator_of(reference: Any, version: int | None) -> Aggregator[Any]:
    """An empty aggregator; ``version`` is the digest of the version that its reference is."""
    aggregator = Aggregator(reference)
    aggregator._state = aggregator._state._replace(version=version)
    return aggregator


def is_of_version(aggregator: Aggregator, digest: int) -> bool:
    """Whether an aggregator's reference is the version with this digest."""
    return aggregator._state.version == digest


def aggregator_specs(aggregator: Aggregator) -> Specs:
    return aggregator._specs


def add_from(
    aggregator: Aggregator,
    client: str | int | None,
    source: Source,
    again: Source,
    weight: float,
    n_bytes: int = 0,
    also: Assignments = (),
) -> None:
    """Add the contribution that ``source`` prepares, and make assignments in one step with it.

    It replaces an earlier contribution of the ``client``, if one is given; ``again`` prepares it
    once more, to subtract it when it is replaced. ``n_bytes`` is the length of its payload.
    """
    value = _checked_weight(weight)
    with native_errors(aggregator._specs, n_bytes):
        while True:
            sums, members = aggregator._state.sums, aggregator._state.members
            before = None if client is None else members.get(client)
            contribution = source(sums, value)
            replaced = None if before is None else before.again(sums, before.weight)
            with aggregator._lock:
                if sums is not aggregator._state.sums or (
                    client is not None and members.get(client) is not before
                ):
                    continue  # reset(), or another call for this client, came in between
                plan = list(also)
                if client is not None:
                    plan.append((members, client, _Replaceable(value, again)))
                commit = aggregator._plan(value, before, plan)
                sums.native.add(contribution, replaced, commit)
                return


Source: TypeAlias = "Callable[[_Sums, float], Any]"
"""Prepares the contribution of one model with a weight, to be added to these sums.

May raise CodecError or NativeError.
"""


def payload_source(payload: _native.Payload) -> Source:
    """The source of a payload. The caller has checked that it predicts from the reference alone."""
    return lambda sums, weight: sums.native.prepare(payload, payload.digest, weight)


def model_source(state: State) -> Source:
    """The source of a model that is not encoded."""

    def prepare(sums: _Sums, weight: float) -> Any:
        return sums.native.prepare_state(sums.layout.model_of(state, "state"), weight)

    return prepare


class _Sums:
    """A private copy of a reference, and the native sums over it."""

    def __init__(self, reference: State) -> None:
        self.layout, model = read_model(reference, "reference")
        self.reference = self.layout.copy_of(model)
        for spec in self.layout.specs:
            if spec.dtype in PATTERNS and not spec.is_float and spec.dtype not in PARTS:
                raise TypeError(
                    f"reference: tensor {spec.name!r}: {spec.dtype} has no mean here; leave the"
                    " tensor out, or decode the models and average them"
                )
        self.native = self._new_sums()

    def emptied(self) -> _Sums:
        """The same reference, with nothing added."""
        new = copy_of(self)
        new.native = self._new_sums()
        return new

    def _new_sums(self) -> NativeAggregator:
        specs = self.layout.specs
        tensors = tensors_of(specs, roles_of(specs), self.reference)
        is_signed = [spec.dtype.startswith("int") for spec in specs]
        is_complex = [spec.dtype in PARTS for spec in specs]
        with native_errors(specs):
            return aggregator(tensors, is_signed, is_complex, self.layout.device)


class _Replaceable(NamedTuple):
    """A client's model in the sums, and how to prepare it again to take it back."""

    weight: float
    again: Source


class _State(NamedTuple):
    """All that changes of an aggregator; calls replace it, in one step with the native sums.

    Attributes:
        sums: The reference and the sums.
        members: By client, of those that may be replaced.
        units: The sum of the weights, in units of 2**-92.
        n_models: How many were added.
        version: Digest of the version that is the reference, if one is.
    """

    sums: _Sums
    members: dict[str | int, _Replaceable]
    units: int = 0
    n_models: int = 0
    version: int | None = None


def _units(weight: float) -> int:
    return int(weight * _WEIGHT_UNITS)


def _checked_weight(weight: Any) -> float:
    if type(weight) is not float:
        if isinstance(weight, bool) or not isinstance(
            weight, (int, float, np.integer, np.floating)
        ):
            raise TypeError(f"weight={weight!r}: must be a number, not {type(weight).__name__}")
        weight = as_float(weight)
    value: float = weight
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"weight={value!r}: must be positive and finite, or 0")
    if value and not MIN_WEIGHT <= value <= MAX_WEIGHT:
        raise ValueError(
            f"weight={value!r}: must lie in [2**-40, 2**40], or be 0; only ratios matter"
        )
    return value
