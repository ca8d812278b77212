"""What sessions count, log and show of their traffic."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc
from federation import RULES, Federation
from resfed_codec.session.traffic import bytes_text

MODEL_BYTES = 30 * 40 * 4 + 30 * 2 + 8 + 2 * 8


def sum_of(ends: list[Any]) -> dict[str, int]:
    return {key: sum(end.stats[key] for end in ends) for key in ends[0].stats}


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_both_ends_count_the_same(rules: tuple[str, str]) -> None:
    fed = Federation(rules)
    clients = {name: fed.new_client() for name in "ab"}
    n_bytes = {"down": 0, "up": 0}
    for _ in range(3):
        fed.update()
        for name, client in clients.items():
            down = fed.server.send(name)
            up = client.send(client.receive(down))
            fed.server.receive(name, up)
            n_bytes["down"] += len(down)
            n_bytes["up"] += len(up)
    assert fed.server.stats == sum_of(list(clients.values()))
    assert fed.server.stats == {
        "messages_down": 6,
        "bytes_down": n_bytes["down"],
        "keyframes_down": 0,
        "messages_up": 6,
        "bytes_up": n_bytes["up"],
        "keyframes_up": 0,
        "uncompressed_bytes": 12 * MODEL_BYTES,
    }


def test_the_mean_counts_as_single_models_do(fed: Federation) -> None:
    client = fed.new_client()
    fed.update()
    client.receive(fed.server.send("a"))
    mean = fed.server.aggregator()
    up = client.send(client.state)
    assert fed.server.receive_into("a", up, mean)
    assert not fed.server.receive_into("a", up, mean)
    stats = fed.server.stats
    assert (stats["messages_up"], stats["bytes_up"]) == (2, 2 * len(up)), "the second came, too"


def test_keyframes_answers_and_acknowledgements(fed: Federation) -> None:
    fed.update(3)
    client = fed.new_client({n: a + a.dtype.type(1) for n, a in fed.initial.items()})
    message = fed.server.send("a")
    with pytest.raises(rfc.StateMismatchError) as refused:
        client.receive(message)
    assert client.stats["messages_down"] == 0, "a refused message"
    answer = fed.server.answer("a", refused.value.request)
    client.receive(answer)
    held = client.acknowledge()
    fed.server.acknowledged("a", held)
    assert client.stats == {
        "messages_down": 1,
        "bytes_down": len(answer),
        "keyframes_down": 1,
        "messages_up": 0,
        "bytes_up": len(held),
        "keyframes_up": 0,
        "uncompressed_bytes": MODEL_BYTES,
    }
    assert fed.server.stats == {
        **client.stats,
        "messages_down": 2,
        "bytes_down": len(message) + len(answer),
        "uncompressed_bytes": 2 * MODEL_BYTES,
    }


def test_an_uplink_as_a_keyframe() -> None:
    fed = Federation(RULES["own history"])
    client = fed.new_client()
    fed.rounds(client, 2)
    fed.server = fed.new_server()
    fed.server.update(fed.initial)
    client.receive(fed.server.answer("a", client.acknowledge()))
    message = client.send(client.state)
    with pytest.raises(rfc.StateMismatchError) as refused:
        fed.server.receive("a", message)
    fed.server.receive("a", client.answer(refused.value.request))
    assert client.stats["keyframes_up"] == fed.server.stats["keyframes_up"] == 1
    assert client.stats["messages_up"] == 4
    assert fed.server.stats["messages_up"] == 1


def test_a_payload_for_everybody_counts_where_it_is_received() -> None:
    fed = Federation()
    client = fed.new_client()
    payload = fed.server.update(fed.initial)
    client.receive(payload)
    assert client.stats["bytes_down"] == len(payload)
    assert fed.server.stats["bytes_down"] == 0


def test_stats_begin_again_and_are_the_callers_own(fed: Federation) -> None:
    client = fed.new_client()
    fed.rounds(client, 2)
    for end in (fed.server, client):
        copied = copy.deepcopy(end)
        end.stats["bytes_up"] += 1
        assert end.stats == copied.stats
        end.reset_stats()
        assert end.stats == dict.fromkeys(copied.stats, 0)
        assert copied.stats["messages_down"] == 2
    fed.rounds(client, 1)
    assert fed.server.stats == client.stats
    assert client.stats["messages_up"] == 1


def test_a_line_for_each_round(fed: Federation, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "resfed_codec")
    clients = {name: fed.new_client() for name in "ab"}
    fed.update()
    assert caplog.messages == [], "nothing has been sent"
    for name, client in clients.items():
        fed.down(client, name)
        fed.up(client, name)
    counts = fed.server.stats
    fed.server.reset_stats()
    fed.update()
    down, up = (bytes_text(round(counts[f"bytes_{way}"] / 2)) for way in ("down", "up"))
    ratio = 4 * MODEL_BYTES / (counts["bytes_down"] + counts["bytes_up"])
    assert caplog.messages == [
        f"global model 1: 2 messages down of {down}, 2 messages up of {up}, {ratio:.3g}x less than"
        f" models, 0 keyframes, feedback off"
    ]
    fed.down(clients["a"])
    fed.update()
    assert len(caplog.messages) == 2
    assert caplog.messages[1].startswith("global model 2: 1 message down of ")


@pytest.mark.parametrize(
    ("up", "down", "text"),
    [
        (None, False, "feedback up"),
        (False, True, "feedback down"),
        (True, True, "feedback up and down"),
        (False, False, "feedback off"),
    ],
)
def test_the_line_says_where_feedback_is_on(
    up: bool | None, down: bool | None, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "resfed_codec")
    configs = [rfc.CodecConfig(error_feedback=on) for on in (up, down)]
    server = rfc.ServerSession({"w": np.zeros((3, 4), np.float32)}, *configs)
    server.update(server.state)
    server.send("a")
    server.update(server.state)
    assert caplog.messages[0].endswith(f"keyframes, {text}")


def test_a_repr_says_model_clients_and_bytes() -> None:
    first = {"w": np.zeros((300, 300), np.float32)}
    server, client = rfc.ServerSession(first), rfc.ClientSession(first)
    assert repr(server) == "<ServerSession: global model 0, 0 clients, 0 B down, 0 B up>"
    server.update({"w": np.ones((300, 300), np.float32)})
    down = server.send("a")
    client.receive(down)
    up = client.send(client.state)
    server.receive("a", up)
    sizes = f"{bytes_text(len(down))} down, {bytes_text(len(up))} up"
    ratio = f"{720_000 / (len(down) + len(up)):,.0f}x less than models"
    assert repr(server) == f"<ServerSession: global model 1, 1 client, {sizes}, {ratio}>"
    assert repr(client) == f"<ClientSession: global model 1, 1 uplink, {sizes}, {ratio}>"


@pytest.mark.parametrize(
    ("n", "text"),
    [
        *((0, "0 B"), (999, "999 B"), (1000, "1 kB"), (10_190, "10.2 kB"), (999_600, "1 MB")),
        *((3_330_000, "3.33 MB"), (4 * 10**9, "4 GB"), (12 * 10**12, "12 TB")),
    ],
)
def test_sizes_have_three_digits(n: int, text: str) -> None:
    assert bytes_text(n) == text
