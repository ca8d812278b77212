"""Aggregator: the weighted mean of many clients' models, straight from their payloads."""

from __future__ import annotations

import math
import threading
from copy import copy as copy_of
from typing import Any, NamedTuple

import numpy as np

from resfed_codec import _native
from resfed_codec.codec import Payload, check_stands_alone
from resfed_codec.device import Assignments, Plan, copy, empty_on_host, on_host, staging
from resfed_codec.dtypes import PATTERNS
from resfed_codec.errors import raise_from_native
from resfed_codec.history import tensor_row
from resfed_codec.layout import Layout, State, check_same_layout, roles_of
from resfed_codec.payload import UPDATE, as_bytes

MIN_WEIGHT, MAX_WEIGHT = 2.0**-40, 2.0**40
"""Between these, no weight is lost in the units of csrc/cpu/exact_mean.hpp."""

_WEIGHT_UNITS = 2.0**92  # a float64 of at least 2^-40 is a multiple of 2^-92


class Aggregator:
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
    bit in float64 are beneath notice.
    Integers and bool are added up exactly, with weights rounded to multiples of 2^-40, and their
    mean is rounded to the nearest, halves to even.

    Memory: a private copy of the reference, and 16 bytes for each element of the pages touched: at
    most four times a float32 model; of the host, also where the reference is on a CUDA device.
    There the reference, states that are added and results are copied between device and host.

    Several threads may call at once: they read payloads side by side and take turns at adding up.
    An instance can be neither copied nor pickled.

    Args:
        reference: The model that payloads were encoded against: a mapping from names to arrays, or
            a sequence of arrays, as in :func:`encode`. It is copied.

    Raises:
        TypeError: ``reference`` is of the wrong type, or a tensor's dtype is not supported.
    """

    def __init__(self, reference: State) -> None:
        core = _Core(reference)
        self._specs = core.layout.specs
        self._digest = core.layout.digest
        self._lock = threading.RLock()
        self._state = _State(core)

    @property
    def _origin(self) -> int | None:
        return self._state.origin

    def _set_origin(self, digest: int) -> None:
        """The reference is the version with this digest."""
        self._state = self._state._replace(origin=digest)

    def add(self, payload: Payload, weight: float = 1.0) -> None:
        """Add the model that ``payload`` encodes. All or nothing: an error changes nothing.

        Args:
            payload: What :func:`encode` returned for a model and this reference, with any options.
            weight: Its weight, an int or float in [2^-40, 2^40]; only ratios of weights matter.

        Raises:
            PayloadError: The payload is damaged, truncated, or not of this codec.
            StateMismatchError: It was made for another layout or against another reference, or
                belongs to a stream or session.
            TypeError: An argument is of the wrong type.
            ValueError: ``weight`` is out of range, or a change times its weight is not finite or
                so large that sums might reach 2^46 (the tensor is named).
        """
        value = _checked_weight(weight)
        data = as_bytes(payload, UPDATE)
        try:
            check_stands_alone(data, len(self._specs), "receive_into() of the ServerSession")
        except _native.NativeError as error:
            raise_from_native(error, (), len(data))
        self._add_predicted(data, self._digest, value)

    def _add_predicted(
        self, payload: bytes, digest: int, weight: float, also: Assignments = ()
    ) -> None:
        """Add a payload with this digest field, whose prediction is the reference itself.

        ``also`` is done in one step with it.
        """
        value = _checked_weight(weight)
        try:
            while True:
                core = self._state.core
                contribution = core.native.prepare(payload, digest, value)
                with self._lock:
                    if core is not self._state.core:
                        continue  # reset() went on meanwhile
                    core.native.add(contribution, self._plan(value, also))
                    return
        except _native.NativeError as error:
            raise_from_native(error, [spec.name for spec in self._specs], len(payload))

    def add_state(self, state: State, weight: float = 1.0) -> None:
        """Add a model that is not compressed; costs a pass over it. All or nothing.

        Args:
            state: A model of the reference's names, shapes and dtypes.
            weight: As in :meth:`add`.

        Raises:
            TypeError: An argument is of the wrong type.
            ValueError: The layouts differ (both sides are named), or as in :meth:`add`.
        """
        self._add_model(state, weight)

    def _add_model(self, state: State, weight: float, also: Assignments = ()) -> None:
        value = _checked_weight(weight)
        arrays = [on_host(memory) for memory in self._state.core.layout.model_of(state, "state")]
        with self._lock:
            try:
                self._state.core.native.add_state(arrays, value, self._plan(value, also))
            except _native.NativeError as error:
                raise_from_native(error, [spec.name for spec in self._specs])

    def result(self) -> Any:
        """The mean of what was added; more can be added afterwards.

        Returns:
            A new state of the reference's kind, which the caller owns, a dict or a list, with the
            same names in the same order, shapes, dtypes; torch where it was torch. Elements that
            nothing changed are the reference's.

        Raises:
            ValueError: Nothing was added.
        """
        with self._lock:
            if self.count == 0:
                raise ValueError("result: nothing was added")
            core = self._state.core
            model = core.layout.empty()
            arrays = [staging(memory) for memory in model]
            core.native.result(arrays, self.total_weight)
        for array, memory in zip(arrays, model, strict=True):
            copy(array, memory)
        return core.layout.state_of(model)

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
                self._state = _State(state.core.emptied(), origin=state.origin)
            return
        core = _Core(reference)
        check_same_layout(core.layout.specs, self._specs, "reference")
        with self._lock:
            self._state = _State(core)

    @property
    def total_weight(self) -> float:
        """The exact sum of the weights added, rounded once."""
        return self._state.units / 2**92  # division of integers rounds correctly

    @property
    def count(self) -> int:
        """How many models were added."""
        return self._state.n_models

    def __repr__(self) -> str:
        return f"<Aggregator of {self.count} models, total weight {self.total_weight:g}>"

    def _plan(self, weight: float, also: Assignments) -> Plan:
        """What becomes true when a model of this weight is added."""
        state = self._state
        units = state.units + int(weight * _WEIGHT_UNITS)
        after = state._replace(units=units, n_models=state.n_models + 1)
        return lambda: [(self, "_state", after), *also]


class _Core:
    """A private copy of a reference, and the native sums over it."""

    def __init__(self, reference: State) -> None:
        self.layout = Layout(reference, "reference")
        model = self.layout.model_of(reference, "reference")
        self.reference = [empty_on_host(memory) for memory in model]
        for memory, array in zip(model, self.reference, strict=True):
            copy(memory, array)
        for spec in self.layout.specs:
            if spec.dtype in PATTERNS and not spec.is_float:
                raise TypeError(
                    f"reference: tensor {spec.name!r}: {spec.dtype} has no mean here; leave the"
                    " tensor out, or decode the models and average them"
                )
        self.native = self._sums()

    def emptied(self) -> _Core:
        """The same reference, with nothing added."""
        new = copy_of(self)
        new.native = self._sums()
        return new

    def _sums(self) -> _native.Aggregator:
        specs = self.layout.specs
        rows = [
            tensor_row(spec, role, array, [(array, 1.0)], None, None, plain=True)
            for spec, role, array in zip(specs, roles_of(specs), self.reference, strict=True)
        ]
        return _native.Aggregator(rows, [spec.dtype.startswith("int") for spec in specs])


class _State(NamedTuple):
    """All that changes of an aggregator; calls replace it, in one step with the native sums.

    Attributes:
        core: The reference and the sums.
        units: The sum of the weights, in units of 2**-92.
        n_models: How many were added.
        origin: Digest of the version that is the reference, if one is.
    """

    core: _Core
    units: int = 0
    n_models: int = 0
    origin: int | None = None


def _checked_weight(weight: Any) -> float:
    if type(weight) is not float:
        if isinstance(weight, bool) or not isinstance(
            weight, (int, float, np.integer, np.floating)
        ):
            raise TypeError(f"weight={weight!r}: must be a number, not {type(weight).__name__}")
        try:
            weight = float(weight)
        except OverflowError:
            weight = math.inf
    value: float = weight
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"weight={value!r}: must be positive and finite")
    if not MIN_WEIGHT <= value <= MAX_WEIGHT:
        raise ValueError(f"weight={value!r}: must lie in [2**-40, 2**40]; only ratios matter")
    return value
