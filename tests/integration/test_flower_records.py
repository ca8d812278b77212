"""The record that carries encoded models, cut into objects as Flower's engine sends it."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install 'resfed-codec[flower]'")

from flwr.app import Array, ConfigRecord, Message, RecordDict
from flwr.app.message import array as flwr_array
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from resfed_codec.errors import PayloadError
from resfed_codec.integrations._flower_records import parcel_in, record_of

pytestmark = pytest.mark.integration

PIECE = 1000


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flwr_array, "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", PIECE)
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1


@pytest.mark.parametrize("n_bytes", [1, PIECE - 4, PIECE, 10 * PIECE])
def test_no_object_is_larger_than_a_piece(n_bytes: int) -> None:
    """So the limits of an HTTP request, and of protobuf, do not limit a message."""
    data = np.random.default_rng(n_bytes).bytes(n_bytes)
    config = ConfigRecord({"lr": 0.1})
    parcel = {"resfed.message": data, "resfed.setup": b"{}"}
    content = RecordDict({"arrays": record_of(parcel), "config": config})
    message = Message(content, 1, "train")
    objects = get_all_nested_objects(message)
    kinds = [type(o).__name__ for o in objects.values()]
    assert kinds.count("Array") == kinds.count("ArrayRecord") == kinds.count("ConfigRecord") == 1
    n_parcel = sum(len(a.data) for a in content["arrays"].values())
    assert kinds.count("ArrayChunk") == -(-n_parcel // PIECE)
    assert n_bytes < n_parcel <= n_bytes + 12
    contents = {id_: o.deflate() for id_, o in objects.items()}
    assert max(map(len, contents.values())) <= PIECE + 100 + 65 * (n_parcel // PIECE)
    received = inflate_object_from_contents(message.object_id, contents)
    assert parcel_in(received.content) == ("arrays", parcel)


def test_flower_refuses_to_read_it_as_an_array() -> None:
    (array,) = record_of({"resfed.message": b"abc"}).values()
    assert isinstance(array, Array)
    with pytest.raises(TypeError, match=r"'resfed_codec\.1'"):
        array.numpy()


def test_every_flipped_bit_and_every_cut_is_refused() -> None:
    """Of settings and of which tensors there are as well, which no message protects."""
    parcel = {"resfed.message": b"abc", "resfed.tensors": b"\6", "resfed.uplink": b'{"bits": 3}'}
    record = record_of(parcel)
    (array,) = record.values()
    whole = array.data
    assert parcel_in(RecordDict({"a": record})) == ("a", parcel)
    flipped = [
        bytes(byte ^ (1 << bit) if i == at else byte for i, byte in enumerate(whole))
        for at in range(len(whole))
        for bit in range(8)
    ]
    for damaged in [*flipped, *(whole[:n] for n in range(len(whole)))]:
        array.data = damaged
        with pytest.raises(PayloadError, match="record"):
            parcel_in(RecordDict({"a": record}))
