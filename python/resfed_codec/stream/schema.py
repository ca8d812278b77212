"""Checks of the values in a saved state, composed as the values are.

A check takes a value and its name, and returns the value to load. It raises ValueError, with the
name and what the value must be, if the value has the wrong type or is out of range.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from resfed_codec._native import MAX_DEPTH, DeviceArray, Role
from resfed_codec.stream.message import MAX_VERSION, VersionId
from resfed_codec.stream.versions import Feedback, Model, Version, new_feedback
from resfed_codec.tensors.layout import Layout
from resfed_codec.tensors.memory import Memory, copy

Check: TypeAlias = "Callable[[Any, str], Any]"


def invalid(where: str, value: Any, wanted: str) -> ValueError:
    return ValueError(f"state_dict: {where}={reprlib.repr(value)}: must be {wanted}")


def require(condition: bool, where: str) -> None:
    """Raise ValueError unless fields that depend on each other are consistent."""
    if not condition:
        raise ValueError(f"state_dict: {where} contradicts what is saved with it")


def integer(low: int, high: int) -> Check:
    def check(value: Any, where: str) -> int:
        if type(value) is not int or not low <= value <= high:
            raise invalid(where, value, f"an integer in [{low}, {high}]")
        return value

    return check


NUMBER = integer(0, MAX_VERSION)
BITS64 = integer(0, 2**64 - 1)


def instance(kind: type) -> Check:
    def check(value: Any, where: str) -> Any:
        if type(value) is not kind:
            raise invalid(where, value, f"of type {kind.__name__}")
        return value

    return check


FLAG, BYTES, _TEXT = instance(bool), instance(bytes), instance(str)


def client_name(value: Any, where: str) -> str | int:
    """The name of a client, a str or an integer."""
    return value if type(value) is int else _TEXT(value, where)


def optional(one: Check) -> Check:
    return lambda value, where: None if value is None else one(value, where)


def list_of(one: Check, at_most: int | None = None) -> Check:
    """A list of values that pass ``one``."""

    def check(value: Any, where: str) -> list[Any]:
        if type(value) is not list or (at_most is not None and len(value) > at_most):
            raise invalid(where, value, "a list" if at_most is None else f"at most {at_most} items")
        return [one(item, f"{where}[{i}]") for i, item in enumerate(value)]

    return check


def mapping_of(key: Check, one: Check) -> Check:
    """A mapping whose keys pass ``key`` and whose values pass ``one``."""

    def check(value: Any, where: str) -> dict[Any, Any]:
        if type(value) is not dict:
            raise invalid(where, value, "a mapping")
        return {key(k, f"key of {where}"): one(v, f"{where}[{k!r}]") for k, v in value.items()}

    return check


def tuple_of(make: Callable[..., Any], **checks: Check) -> Check:
    """A list with one value for each check, which ``make`` turns into an object."""

    def check(value: Any, where: str) -> Any:
        if type(value) is not list or len(value) != len(checks):
            raise invalid(where, value, f"a list of {', '.join(checks)}")
        pairs = zip(checks.items(), value, strict=True)
        return make(*(one(item, f"{where}.{name}") for (name, one), item in pairs))

    return check


VERSION_ID = tuple_of(VersionId, version=NUMBER, digest=BITS64)


def checked_fields(value: Any, checks: Mapping[str, Check]) -> dict[str, Any]:
    """A mapping with exactly these names."""
    if type(value) is not dict or set(value) != set(checks):
        raise invalid("fields", value, f"{', '.join(checks)}")
    return {name: check(value[name], name) for name, check in checks.items()}


class TensorChecks:
    """Checks of values that depend on a layout. They return copies on the layout's device.

    Versions and models that several places of the saved state share are shared in the result, too.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._models: dict[int, tuple[Any, Model]] = {}
        self._versions: dict[int, tuple[Version, Version]] = {}

    def model(self, value: Any, where: str) -> Model:
        if id(value) not in self._models:
            self._models[id(value)] = value, self._filled(self._layout.empty(), value, where)
        return self._models[id(value)][1]

    def feedback(self, roles: Sequence[Role]) -> Check:
        def check(value: Any, where: str) -> Feedback:
            feedback = new_feedback(self._layout, roles)
            self._filled(feedback, value, where)
            return feedback

        return check

    def kept_feedback(self, roles: Sequence[Role], is_kept: bool) -> Check:
        """Feedback with finite values, or None if the object keeps none."""

        def check(value: Any, where: str) -> Feedback | None:
            if value is None or not is_kept:
                require((value is None) != is_kept, where)
                return None
            feedback: Feedback = self.feedback(roles)(value, where)
            for spec, array in zip(self._layout.specs, value, strict=True):
                if array is not None and not np.isfinite(array).all():
                    raise invalid(f"{where}: tensor {spec.name!r}", array, "finite")
            return feedback

        return check

    def _filled(self, targets: Any, value: Any, where: str) -> Any:
        specs = self._layout.specs
        if type(value) is not list or len(value) != len(specs):
            raise invalid(where, value, f"{len(specs)} tensors")
        for spec, target, array in zip(specs, targets, value, strict=True):
            name = f"{where}: tensor {spec.name!r}"
            if target is None or not isinstance(array, np.ndarray):
                if target is None and array is None:
                    continue
                raise invalid(name, array, "absent" if target is None else "an array")
            shape, dtype = tuple(target.shape), _dtype_of(target)
            if array.shape != shape or array.dtype != dtype:
                found = f"{array.dtype} {list(array.shape)}"
                raise invalid(name, found, f"{dtype} {list(shape)}")
            copy(array, target)
        return targets

    def version(self, *, with_model: bool = True) -> Check:
        """A version and its lineage, all of them with models or all without."""

        def check(value: Any, where: str) -> Version:
            if type(value) is not Version:
                raise invalid(where, value, "a version")
            lineage = value.lineage(MAX_DEPTH + 1)
            if len(lineage) > MAX_DEPTH:
                raise invalid(where, value.number, f"a version with {MAX_DEPTH} models at most")
            version: Version | None = None
            for v in reversed(lineage):
                version = self._one(v, version, with_model, where)
            assert version is not None
            return version

        return check

    def _one(self, v: Version, parent: Version | None, with_model: bool, where: str) -> Version:
        known = self._versions.get(id(v))
        if known is None:
            number = NUMBER(v.number, f"{where}.number")
            digest = BITS64(v.digest, f"{where}.digest")
            require(parent is None or parent.number < number, f"{where}.number")
            model = None if v.model is None else self.model(v.model, f"{where}.model")
            known = self._versions[id(v)] = v, Version(number, digest, model, parent)
        if (known[1].model is not None) != with_model:
            raise invalid(f"{where}.model", v.model, "there" if with_model else "absent")
        return known[1]

    def versions(self, *, at_most: int) -> Check:
        """Versions by number."""
        of_numbers = mapping_of(NUMBER, self.version())

        def check(value: Any, where: str) -> dict[int, Version]:
            versions: dict[int, Version] = of_numbers(value, where)
            require(all(v.number == n for n, v in versions.items()), where)
            if len(versions) > at_most:
                raise invalid(where, sorted(versions), f"at most {at_most} versions")
            return versions

        return check


def _dtype_of(target: Memory) -> np.dtype[Any]:
    if isinstance(target, DeviceArray):
        return np.dtype("uint16" if target.dtype == "bfloat16" else target.dtype)
    return target.dtype
