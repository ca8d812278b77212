"""Sessions with models on a CUDA device, compared with the same sessions on the host.

Every end exists twice (gpu.py). Both must send the same bytes and recover the same models. Losses,
crashes and restores are random.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc
from federation import RULES, Federation
from gpu import LIBRARIES, ONE, Gpu, Twin, needs_cuda
from models import State, assert_same
from published_rules import moved, random_model

pytestmark = [pytest.mark.cuda, needs_cuda]


@pytest.fixture(params=LIBRARIES)
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(request.param, monkeypatch)


one_gpu = pytest.mark.parametrize("gpu", ONE, indirect=True)


class Twins(Federation):
    """A federation in which every end exists on the host and on the device."""

    def __init__(self, gpu: Gpu, rules: tuple[str, str], feedback: bool = False) -> None:
        self.gpu = gpu
        super().__init__(rules, feedback)

    def _twin(self, kind: Any, initial: State) -> Any:
        return Twin(
            self.gpu, kind(initial, *self.configs), kind(self.gpu.state(initial), *self.configs)
        )

    def new_server(self, initial: State | None = None) -> Any:
        return self._twin(rfc.ServerSession, initial or self.initial)

    def new_client(self, initial: State | None = None, **arguments: Any) -> Any:
        return self._twin(rfc.ClientSession, initial or self.initial)

    def restored(self, end: Any, saved: dict[str, Any] | None = None) -> Any:
        is_server = isinstance(end.host, rfc.ServerSession)
        new = self.new_server() if is_server else self.new_client()
        new.load_state_dict(saved or end.state_dict())
        return new


@one_gpu
@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES.keys())
def test_losses_and_crashes(gpu: Gpu, rules: tuple[str, str], feedback: bool) -> None:
    fed = Twins(gpu, rules, feedback)
    rng = np.random.default_rng(5)
    clients = {name: fed.new_client() for name in ("a", "b")}
    saved: dict[str, Any] = {}
    for _ in range(30):
        name = str(rng.choice(list(clients)))
        client = clients[name]
        match rng.integers(8):
            case 0 | 1:
                fed.update()
            case 2:
                fed.down(client, name, answers=None)
            case 3:
                fed.down(client, name, answers=None)
                fed.up(client, name, answers=None)
            case 4:
                client.send(moved(client.state, rng))  # lost
            case 5:
                fed.server.send(name)  # lost
            case 6:
                saved[name] = client.state_dict()
            case 7:
                clients[name] = fed.restored(client, saved.get(name))
    for name, client in clients.items():
        fed.update()
        fed.down(client, name, answers=None)
        fed.up(client, name, answers=None)
    fed.server = fed.restored(fed.server)
    fed.update()
    for name, client in clients.items():
        fed.down(client, name, answers=None)


@one_gpu
@pytest.mark.parametrize("rules", ["default", "adaptive"])
def test_a_lost_uplink_is_sent_again(gpu: Gpu, rules: str) -> None:
    """Error feedback restores an uplink when the server reports that it did not arrive."""
    fed = Twins(gpu, RULES[rules], feedback=True)
    client = fed.new_client()
    fed.rounds(client, 1)
    client.send(moved(client.state, fed.rng))  # lost
    fed.up(client)
    before = client.host._state.feedback[3].copy()
    fed.update()
    fed.down(client)
    assert (client.host._state.feedback[3] != before).any()
    client.state_dict()  # compares the two
    fed.up(client)


@one_gpu
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES.keys())
def test_all_dtypes(gpu: Gpu, rules: tuple[str, str], rng: np.random.Generator) -> None:
    fed = Twins(gpu, rules)
    fed.initial = random_model(rng)
    fed.server, client = fed.new_server(), fed.new_client()
    for _ in range(4):
        fed.update()
        received = client.receive(fed.server.send("a"))
        fed.server.receive("a", client.send(moved(received, rng)))


@pytest.mark.parametrize("rules", ["default", "own history", "own downlinks"])
def test_mean_of_uplinks(gpu: Gpu, rules: str) -> None:
    fed = Twins(gpu, RULES[rules])
    clients = {name: fed.new_client() for name in ("a", "b")}
    for _ in range(3):
        fed.update()
        mean = fed.server.aggregator()
        for weight, (name, client) in enumerate(clients.items(), start=1):
            fed.down(client, name)
            payload = client.send(moved(client.state, fed.rng))
            assert fed.server.receive_into(name, payload, mean, weight) is True
            assert fed.server.receive_into(name, payload, mean, weight) is False
        fed.server.update(mean.result())
    assert fed.server.memory()["global"] > 0


@one_gpu
@pytest.mark.parametrize("rules", ["default", "own history"])
def test_a_clients_newest_uplink_replaces_those_before(gpu: Gpu, rules: str) -> None:
    fed = Twins(gpu, RULES[rules])
    clients = {name: fed.new_client() for name in ("a", "b")}
    fed.update()
    mean = fed.server.aggregator()
    for name, client in clients.items():
        fed.down(client, name)
    for weight in (300.0, 2, 0.5):
        for name, client in clients.items():
            payload = client.send(moved(client.state, fed.rng))
            assert fed.server.receive_into(name, payload, mean, weight) is True
            assert mean.total_weight >= weight
            mean.result()
    assert mean.count == 2
    payload = clients["a"].send(moved(clients["a"].state, fed.rng))
    fed.server.receive_into("a", payload, mean, 0)
    assert mean.count == 1
    fed.server.update(mean.result())


def test_into_the_callers_arrays(gpu: Gpu) -> None:
    fed = Twins(gpu, RULES["default"])
    client = fed.new_client()
    fed.update()
    out = gpu.empty_like(fed.initial)
    assert client.device.receive(fed.server.send("a"), out=out) is out
    assert_same(gpu.host(out), fed.server.state)
    payload = client.device.send(out)
    local = gpu.empty_like(fed.initial)
    assert fed.server.device.receive("a", payload, out=local) is local
    assert_same(gpu.host(local), fed.server.host.receive("a", payload))
