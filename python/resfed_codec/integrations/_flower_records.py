"""Models and parcels in Flower's records and messages."""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from resfed_codec.integrations._ends import HELD, MESSAGE, REQUEST, Parcel
from resfed_codec.integrations._setup import Model

STATE, SESSION, WARNED = "resfed_codec", "resfed_codec.session", "resfed_codec.warned"
"""Names of the records in ``Context.state`` in which clients keep setup and session, and whether
they have warned of models that come uncompressed."""

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
    """The name of the ArrayRecord, if there is exactly one."""
    names = list(content.array_records)
    return names[0] if len(names) == 1 else ""


def clipping_norm(content: RecordDict) -> float | None:
    """The norm to which a client's update must be clipped, if the message has one."""
    for record in content.config_records.values():
        norm = record.get(_CLIPPING_NORM)
        if isinstance(norm, (int, float)):
            return float(norm)
    return None


def parcel_in(content: RecordDict) -> tuple[str, Parcel]:
    """The parcel in a message and the name of its record, or an empty name and parcel."""
    for name, record in content.config_records.items():
        parcel = parcel_of(record)
        if any(key in parcel for key in (MESSAGE, REQUEST, HELD)):
            return name, parcel
    return "", {}


def parcel_of(record: ConfigRecord) -> Parcel:
    return {key: value for key, value in record.items() if isinstance(value, bytes)}


def record_of(parcel: Parcel) -> ConfigRecord:
    return ConfigRecord({**parcel})


def model_of(arrays: ArrayRecord) -> Model:
    return {name: array.numpy() for name, array in arrays.items()}


def arrays_of(model: Model) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in model.items()})
