"""State of streams and sessions as plain tensors, for state_dict() and load_state_dict().

The structure (numbers, texts, lists, mappings) is JSON in a tensor of bytes, behind a digest of it
and of all else; models, feedback and payloads are tensors beside it. Nothing is pickled, so any
tensor format can store the result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from resfed_codec._native import DeviceArray
from resfed_codec.device import on_host, placed
from resfed_codec.history import Version
from resfed_codec.torch_tensors import is_torch, plain_torch, tensor_over

STRUCTURE = "structure"

_DIGEST_BYTES = 16


class _Writer:
    def __init__(self) -> None:
        self.arrays: dict[str, Any] = {}
        self._versions: dict[int, tuple[str, Version]] = {}
        self._names: dict[int, tuple[str, Any]] = {}

    def plain(self, value: Any) -> Any:
        """``value`` as JSON knows it; arrays, bytes and versions by reference."""
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, bytes):
            return {"bytes": self._store(np.frombuffer(value, np.uint8))}
        if isinstance(value, (np.ndarray, DeviceArray)):
            if id(value) not in self._names:  # versions share models
                self._names[id(value)] = self._store(on_host(value)), value
            return {"array": self._names[id(value)][0]}
        if isinstance(value, Version):
            return {"version": self._version(value)}
        if isinstance(value, Mapping):
            return {"mapping": [[self.plain(k), self.plain(v)] for k, v in value.items()]}
        return [self.plain(item) for item in value]

    def _store(self, array: Any) -> str:
        name = f"tensor.{len(self.arrays)}"
        self.arrays[name] = array.copy()
        return name

    def _version(self, version: Version) -> Any:
        if id(version) in self._versions:
            return self._versions[id(version)][0]
        name = str(len(self._versions))
        self._versions[id(version)] = name, version
        fields = [version.number, version.digest, version.model, version.parent]
        return [name, [self.plain(field) for field in fields]]


class _Reader:
    def __init__(self, arrays: Mapping[str, Any], device: int | None) -> None:
        self._arrays, self._device = arrays, device
        self._copies: dict[str, Any] = {}
        self._versions: dict[str, Version] = {}

    def value(self, plain: Any) -> Any:
        if isinstance(plain, list):
            return [self.value(item) for item in plain]
        if not isinstance(plain, dict):
            return plain
        ((kind, content),) = plain.items()
        if kind == "bytes":
            return self._arrays[content].tobytes()
        if kind == "array":
            if content not in self._copies:
                self._copies[content] = placed(self._arrays[content].copy(), self._device)
            return self._copies[content]
        if kind == "version":
            return self._version(content)
        return {self.value(k): self.value(v) for k, v in content}

    def _version(self, content: Any) -> Version:
        if isinstance(content, str):
            return self._versions[content]
        name, fields = content
        number, digest, model, parent = (self.value(field) for field in fields)
        self._versions[name] = Version(number, digest, model, parent)
        return self._versions[name]


def write_snapshot(kind: str, fields: Mapping[str, Any], *, as_torch: bool) -> dict[str, Any]:
    """A flat mapping of tensors that :func:`read_snapshot` turns back into ``fields``."""
    writer = _Writer()
    structure = json.dumps({"kind": kind, "fields": writer.plain(fields)}).encode("ascii")
    head = _digest(structure, writer.arrays) + structure
    arrays = {STRUCTURE: np.frombuffer(head, np.uint8).copy(), **writer.arrays}
    if not as_torch:
        return arrays
    with plain_torch():
        return {name: tensor_over(array, array.dtype.name) for name, array in arrays.items()}


def read_snapshot(kind: str, state_dict: Mapping[str, Any], device: int | None) -> dict[str, Any]:
    """The fields that were written, their models and feedback on the device (None: the host).

    Raises:
        ValueError: No snapshot, or one of another class.
    """
    if not isinstance(state_dict, Mapping) or STRUCTURE not in state_dict:
        raise ValueError(f"state_dict: must be what {kind}.state_dict() returned")
    try:
        with plain_torch():
            arrays = {str(name): _array(value) for name, value in state_dict.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"state_dict: incomplete or damaged: {error}") from error
    head = arrays.pop(STRUCTURE).tobytes()
    digest, structure = head[:_DIGEST_BYTES], head[_DIGEST_BYTES:]
    if digest != _digest(structure, arrays):
        raise ValueError("state_dict: incomplete or damaged")
    saved = json.loads(structure)
    if saved["kind"] != kind:
        raise ValueError(f"state_dict: saved by a {saved['kind']}, not by a {kind}")
    fields: dict[str, Any] = _Reader(arrays, device).value(saved["fields"])
    return fields


def _array(value: Any) -> Any:
    return value.detach().cpu().numpy() if is_torch(value) else np.asarray(value)


def _digest(structure: bytes, arrays: Mapping[str, Any]) -> bytes:
    digest = hashlib.blake2b(structure, digest_size=_DIGEST_BYTES)
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.digest()
