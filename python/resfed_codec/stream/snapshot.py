"""State of streams and sessions as plain tensors, for state_dict() and load_state_dict().

The structure (numbers, texts, lists, mappings) is JSON in a tensor of bytes, after a digest of the
structure and all other tensors. Models, feedback and payloads are tensors of their own. Nothing is
pickled, so any tensor format can store the result.

A saved state is untrusted input. :func:`read_snapshot` only turns it back into Python values;
schema.py checks which of them may be loaded.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from resfed_codec._native import DeviceArray
from resfed_codec.stream.versions import Version
from resfed_codec.tensors.layout import TensorSpec
from resfed_codec.tensors.memory import on_host
from resfed_codec.tensors.torch_tensors import is_torch, plain_torch, tensor_over

STRUCTURE = "structure"

FORMAT = 1
"""Version of the format of saved states; other versions are refused."""

_DIGEST_BYTES = 16

_SHOWN = 200
"""An error shows at most this many characters of a value."""


class _Writer:
    def __init__(self) -> None:
        self.arrays: dict[str, Any] = {}
        self.models: list[list[str | None]] = []
        self.versions: list[list[int | None]] = []
        self._places: dict[int, tuple[int, Any]] = {}  # of models and versions, by identity

    def plain(self, value: Any) -> Any:
        """``value`` in the types of JSON; models, bytes and versions become references."""
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, bytes):
            return {"bytes": self._store(np.frombuffer(value, np.uint8)) if value else None}
        if isinstance(value, Version):
            return {"version": self._version(value)}
        if isinstance(value, Mapping):
            return {"mapping": [[self.plain(k), self.plain(v)] for k, v in value.items()]}
        if any(isinstance(item, (np.ndarray, DeviceArray)) for item in value):
            return {"model": self._model(value)}
        return [self.plain(item) for item in value]

    def _store(self, array: Any) -> str:
        name = f"tensor.{len(self.arrays)}"
        self.arrays[name] = array.copy()
        return name

    def _model(self, model: Any) -> int:
        if id(model) not in self._places:  # versions share models
            names = [None if array is None else self._store(on_host(array)) for array in model]
            self._places[id(model)] = len(self.models), model
            self.models.append(names)
        return self._places[id(model)][0]

    def _version(self, version: Version) -> int:
        for v in reversed(version.lineage(sys.maxsize)):  # parents first
            if id(v) not in self._places:
                model = None if v.model is None else self._model(v.model)
                parent = None if v.parent is None else self._places[id(v.parent)][0]
                self._places[id(v)] = len(self.versions), v
                self.versions.append([v.number, v.digest, model, parent])
        return self._places[id(version)][0]


class _Reader:
    """Turns a structure back into values; raises some exception if no writer can have made it."""

    def __init__(self, saved: Mapping[str, Any], arrays: dict[str, Any]) -> None:
        self._arrays = arrays
        self._models = [
            [None if name is None else arrays.pop(name) for name in names]
            for names in saved["models"]
        ]
        self._versions: list[Version] = []
        for number, digest, model, parent in saved["versions"]:
            version = Version(number, digest, self._at(self._models, model))
            version.parent = self._at(self._versions, parent)
            self._versions.append(version)

    @staticmethod
    def _at(places: list[Any], place: Any) -> Any:
        if place is None:
            return None
        if type(place) is not int or place < 0:
            raise IndexError(f"{place!r} is no place")
        return places[place]

    def value(self, plain: Any) -> Any:
        if isinstance(plain, list):
            return [self.value(item) for item in plain]
        if not isinstance(plain, dict):
            return plain
        ((kind, content),) = plain.items()
        if kind == "bytes":
            return b"" if content is None else _bytes_of(self._arrays.pop(content))
        if kind == "model":
            return self._at(self._models, content)
        if kind == "version":
            return self._at(self._versions, content)
        if kind != "mapping":
            raise KeyError(kind)
        mapping = {self.value(k): self.value(v) for k, v in content}
        if len(mapping) != len(content):
            raise KeyError("a key twice")
        return mapping


def write_snapshot(
    kind: str, depends: Mapping[str, Any], fields: Mapping[str, Any], *, as_torch: bool
) -> dict[str, Any]:
    """A flat mapping of tensors that :func:`read_snapshot` turns back into ``fields``.

    ``depends`` has the properties, by name, in which an object that loads the state must agree with
    the saved one. Its values have the types that JSON returns.
    """
    writer = _Writer()
    content = {
        "kind": kind,
        "format": FORMAT,
        "depends": depends,
        "fields": writer.plain(fields),
        "models": writer.models,
        "versions": writer.versions,
    }
    structure = json.dumps(content).encode("ascii")
    head = _digest(structure, writer.arrays) + structure
    arrays = {STRUCTURE: np.frombuffer(head, np.uint8).copy(), **writer.arrays}
    if not as_torch:
        return arrays
    with plain_torch():
        return {name: tensor_over(array, array.dtype.name) for name, array in arrays.items()}


def read_snapshot(kind: str, depends: Mapping[str, Any], state_dict: Mapping[str, Any]) -> Any:
    """The fields that were written, not yet checked; their arrays are those of ``state_dict``.

    Raises:
        ValueError: ``state_dict`` is not a snapshot, or has another class or format, or a property
            in ``depends`` differs; the error names it, with both sides.
    """
    if not isinstance(state_dict, Mapping) or STRUCTURE not in state_dict:
        raise ValueError(f"state_dict: must be what {kind}.state_dict() returned")
    try:
        with plain_torch():
            arrays = {str(name): _array(value) for name, value in state_dict.items()}
        head = _bytes_of(arrays.pop(STRUCTURE))
    except Exception as error:  # an array of any library may raise anything
        raise ValueError(f"state_dict: incomplete or damaged: {error}") from error
    digest, structure = head[:_DIGEST_BYTES], head[_DIGEST_BYTES:]
    if digest != _digest(structure, arrays):
        raise ValueError("state_dict: incomplete or damaged")
    try:
        saved = json.loads(structure)
        saved_kind, saved_format = saved["kind"], saved["format"]
        theirs = dict(saved["depends"])
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise _damaged(error) from error
    if saved_kind != kind:
        raise ValueError(f"state_dict: saved by a {saved_kind!s:.{_SHOWN}}, not by a {kind}")
    if saved_format != FORMAT:
        raise ValueError(
            f"state_dict: of format {_short(saved_format)}; this version of resfed_codec reads"
            f" format {FORMAT}"
        )
    _compare(theirs, depends)
    try:
        fields = _Reader(saved, arrays).value(saved["fields"])
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise _damaged(error) from error
    if arrays:
        raise ValueError(f"state_dict: holds {_short(min(arrays))}, which nothing refers to")
    return fields


def _compare(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for name, own in ours.items():
        saved = theirs.get(name)
        if saved == own and type(saved) is type(own):
            continue
        if name == "layout":
            their_tensor, own_tensor = _first_difference(saved, own)
            raise ValueError(f"state_dict: saved with {their_tensor}; this object has {own_tensor}")
        if name == "initial_state":
            raise ValueError("state_dict: saved from another initial state: its values differ")
        argument, _, place = name.partition(" of ")
        where = f" in {place}" if place else ""
        raise ValueError(
            f"state_dict: saved with {argument}={_short(saved)}; this object has"
            f" {_short(own)}{where}"
        )
    if theirs.keys() != ours.keys():
        raise ValueError("state_dict: incomplete or damaged")


def _first_difference(theirs: Any, ours: Any) -> tuple[str, str]:
    pairs = zip_longest(theirs if isinstance(theirs, list) else [], ours)
    return next((_tensor(a), _tensor(b)) for a, b in pairs if a != b or a is None)


def _tensor(plain: Any) -> str:
    if plain is None:
        return "no tensor more"
    try:
        name, dtype, shape = plain
        return f"tensor {TensorSpec(str(name), tuple(shape), str(dtype))}"[:_SHOWN]
    except (TypeError, ValueError):
        return _short(plain)


def layout_of(specs: Sequence[TensorSpec]) -> list[list[Any]]:
    """A layout for ``depends``."""
    return [[spec.name, spec.dtype, list(spec.shape)] for spec in specs]


def _short(value: Any) -> str:
    text = repr(tuple(value) if isinstance(value, list) else value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _damaged(error: Exception) -> ValueError:
    return ValueError(f"state_dict: incomplete or damaged: {type(error).__name__}: {error}"[:500])


def _array(value: Any) -> Any:
    array = value.detach().cpu().numpy() if is_torch(value) else np.asarray(value)
    if array.dtype.hasobject:
        raise TypeError(f"an array of dtype {array.dtype}")
    steps = sum((n - 1) * abs(s) for n, s in zip(array.shape, array.strides, strict=True))
    if array.size and array.nbytes > array.itemsize + steps:
        raise TypeError(f"an array of shape {array.shape} whose elements share memory")
    return array


def _bytes_of(array: Any) -> bytes:
    if array.dtype != np.uint8 or array.ndim != 1:
        raise TypeError(f"bytes of dtype {array.dtype} and shape {array.shape}")
    data: bytes = array.tobytes()
    return data


def _digest(structure: bytes, arrays: Mapping[str, Any]) -> bytes:
    digest = hashlib.blake2b(structure, digest_size=_DIGEST_BYTES)
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode("utf-8", "surrogatepass"))
        digest.update(array.tobytes())
    return digest.digest()
