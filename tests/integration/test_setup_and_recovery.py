"""The ends of the integrations without a framework: setup of clients, and recovery."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc
from models import assert_same, cnn_pair
from resfed_codec.integrations._ends import HELD, MESSAGE, NOTHING_HELD, SETUP, Parcel, ServerEnd
from resfed_codec.integrations._setup import read_setup

LATER, FIRST = cnn_pair(np.random.default_rng(7))


def end(*, shared_initial: bool = False) -> ServerEnd:
    made = ServerEnd(None, None, history=4, shared_initial=shared_initial)
    assert made.update(FIRST)
    return made


def received(client: rfc.ClientSession, parcel: Parcel) -> Any:
    return client.receive(parcel[MESSAGE])


@pytest.mark.parametrize("shared_initial", [False, True])
def test_setup(shared_initial: bool) -> None:
    server = end(shared_initial=shared_initial)
    parcel = server.send("a")
    client = read_setup(parcel[SETUP], (lambda: FIRST) if shared_initial else None)
    assert_same(received(client, parcel), server.session.state)
    answer = {MESSAGE: client.send(LATER)}
    assert server.receive("a", answer) is not None
    assert server.update(LATER)
    parcel = server.send("a")
    assert SETUP not in parcel
    assert_same(received(client, parcel), server.session.state)
    assert server.receive("a", {HELD: client.acknowledge()}) is None


def test_a_client_without_a_session_gets_one() -> None:
    """A client that lost its state, and one without the first model that the server expects."""
    server = end(shared_initial=True)
    known = read_setup(server.send("a")[SETUP], lambda: FIRST)
    received(known, server.send("a"))
    assert server.receive("a", {MESSAGE: known.send(LATER)}) is not None
    for client_id in ("a", "b"):
        parcel = server.answer(client_id, NOTHING_HELD)
        client = read_setup(parcel[SETUP], None)
        assert_same(received(client, parcel), server.session.state)
    with pytest.raises(rfc.StateMismatchError, match="of another run"):
        known.receive(end().answer("a", NOTHING_HELD)[MESSAGE])
