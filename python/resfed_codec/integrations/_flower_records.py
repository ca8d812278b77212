"""Models and parcels in Flower's records and messages."""

from __future__ import annotations

import hashlib
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict

from resfed_codec import _native
from resfed_codec.errors import PayloadError
from resfed_codec.integrations._ends import HELD, MESSAGE, REQUEST, SETUP, TENSORS, UPLINK, Parcel
from resfed_codec.integrations._setup import Model
from resfed_codec.stream.wire import WireReader, varint

STATE, SESSION, WARNED = "resfed_codec", "resfed_codec.session", "resfed_codec.warned"
"""Names of the records in ``Context.state`` in which clients keep setup and session, and whether
they have warned of models that come uncompressed."""

_STYPE = "resfed_codec."
PARCEL_STYPE = f"{_STYPE}1"
"""How a parcel's array is serialized: Flower refuses, with this name, to read it as an array."""

_KEY = "resfed_codec"
_KINDS = {MESSAGE: 1, SETUP: 2, REQUEST: 3, HELD: 4, TENSORS: 5, UPLINK: 6}

_CHECKSUM_BYTES = 4

_CLIPPING_NORM = "clipping_norm"
"""Key under which Flower's strategies send clients a norm, to which their updates are clipped."""


def kind(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def like(message: Message, content: RecordDict) -> Message:
    """A message to the same node with other content."""
    metadata = message.metadata
    return Message(
        content,
        metadata.dst_node_id,
        metadata.message_type,
        ttl=metadata.ttl,
        group_id=metadata.group_id,
        dst_task_id=metadata.dst_task_id,
    )


def replaced(content: RecordDict, name: str, record: Any) -> RecordDict:
    """A copy with another record of that name, or without it if ``record`` is None."""
    records = {key: record if key == name else value for key, value in content.items()}
    return RecordDict({key: value for key, value in records.items() if value is not None})


def name_of_model(content: RecordDict) -> str:
    """The name of the model, if there is exactly one."""
    names = list(models_in(content))
    return names[0] if len(names) == 1 else ""


def clipping_norm(content: RecordDict) -> float | None:
    """The norm to which a client's update must be clipped, if the message has one."""
    for record in content.config_records.values():
        norm = record.get(_CLIPPING_NORM)
        if isinstance(norm, (int, float)):
            return float(norm)
    return None


def is_parcel(record: object) -> bool:
    """Whether a record holds a parcel, of whatever version."""
    if not isinstance(record, ArrayRecord) or len(record) != 1:
        return False
    (array,) = record.values()
    return str(array.stype).startswith(_STYPE)


def models_in(content: RecordDict) -> dict[str, ArrayRecord]:
    """The ArrayRecords in a message that are models."""
    return {n: record for n, record in content.array_records.items() if not is_parcel(record)}


def parcel_in(content: RecordDict) -> tuple[str, Parcel]:
    """The parcel in a message and the name of its record, or an empty name and parcel.

    Raises:
        PayloadError: It is damaged, or of another version.
    """
    for name, record in content.array_records.items():
        if is_parcel(record):
            (array,) = record.values()
            if array.stype != PARCEL_STYPE:
                raise PayloadError(
                    f"payload: a record of type {array.stype!r:.50}, of another version of"
                    f" resfed_codec; this one reads {PARCEL_STYPE!r}"
                )
            return name, _parcel_from(array.data)
    return "", {}


def record_of(parcel: Parcel) -> ArrayRecord:
    """A parcel as one array, whose type of serialization has the version of what it holds."""
    data = b"".join(
        part
        for kind, content in parcel.items()
        for part in (bytes([_KINDS[kind]]), varint(len(content)), content)
    )
    data += _native.crc32c(data).to_bytes(_CHECKSUM_BYTES, "little")
    return ArrayRecord({_KEY: Array("uint8", (len(data),), PARCEL_STYPE, data)})


def _parcel_from(data: bytes) -> Parcel:
    parcel: Parcel = {}
    data, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if _native.crc32c(data) != int.from_bytes(checksum, "little"):
        raise PayloadError("record: damaged: its checksum does not match")
    reader = WireReader(data, "record")
    while not reader.at_end:
        number = reader.byte()
        kind = next((name for name, n in _KINDS.items() if n == number), "")
        if not kind or kind in parcel:
            raise reader.error(f"holds an unknown entry {number}, or the same twice")
        parcel[kind] = reader.take(reader.varint())
    if len(parcel.keys() & {MESSAGE, REQUEST, HELD}) != 1:
        raise reader.error("holds neither a message nor what its sender holds, or both")
    return parcel


class _SharedArray(Array):
    """An Array that a process keeps once, however often it unpickles one of the same contents.

    In the simulation engine one process holds the contexts of all nodes, and these hold the same
    global model.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        if "_digest" not in self.__dict__:
            self.__dict__["_digest"] = hashlib.blake2b(self.data, digest_size=16).digest()
        return _shared, (self.__dict__["_digest"], self.dtype, self.shape, self.stype, self.data)


_shared_arrays: WeakValueDictionary[Any, Array] = WeakValueDictionary()


def _shared(digest: bytes, dtype: str, shape: tuple[int, ...], stype: str, data: bytes) -> Array:
    key = digest, dtype, shape, stype
    return _shared_arrays.setdefault(key, _SharedArray(dtype, shape, stype, data))


def shared_arrays_of(state: Model) -> ArrayRecord:
    """A record for ``Context.state``."""
    record = ArrayRecord()
    for name, array in arrays_of(state).items():
        record[name] = _SharedArray(array.dtype, array.shape, array.stype, array.data)
    return record


def model_of(arrays: ArrayRecord) -> Model:
    return {name: array.numpy() for name, array in arrays.items()}


def arrays_of(model: Model) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in model.items()})
