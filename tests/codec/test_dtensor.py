"""DTensors: each rank sends its part of each tensor, and gets DTensors of its parts back."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import resfed_codec as rfc

torch = pytest.importorskip("torch")
dist = torch.distributed
if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("needs torch.distributed with gloo", allow_module_level=True)

from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.tensor import (  # noqa: E402
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
)


def start(folder: Path, rank: int = 0, n_ranks: int = 1) -> Any:
    where = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=n_ranks)
    return init_device_mesh("cpu", (n_ranks,))


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    yield start(tmp_path)
    dist.destroy_process_group()


def model(seed: int, mesh: Any) -> dict[str, Any]:
    torch.manual_seed(seed)
    return {
        "rows": distribute_tensor(torch.randn(41, 33), mesh, [Shard(0)]),
        "columns": distribute_tensor(torch.randn(33, 7).bfloat16(), mesh, [Shard(1)]),
        "few": distribute_tensor(torch.randn(1, 3), mesh, [Shard(0)]),
        "norm": distribute_tensor(torch.randn(41), mesh, [Replicate()]),
        "steps": torch.tensor(seed),
    }


def parts(state: dict[str, Any]) -> dict[str, Any]:
    """What lies here, as plain tensors."""
    return {n: v.to_local() if isinstance(v, DTensor) else v for n, v in state.items()}


def check_same(state: dict[str, Any], expected: dict[str, Any], like: dict[str, Any]) -> None:
    """The parts here equal the expected plain ones, of DTensors like those of ``like``."""
    for name, value in like.items():
        assert type(state[name]) is type(value)
        assert state[name].shape == value.shape
        if isinstance(value, DTensor):
            assert state[name].placements == value.placements
            assert state[name].device_mesh == value.device_mesh
        assert torch.equal(parts(state)[name], expected[name])


def check(mesh: Any) -> None:
    old, new = model(0, mesh), model(1, mesh)
    payload = rfc.encode(new, old, sparsity=0.5)
    assert payload == rfc.encode(parts(new), parts(old), sparsity=0.5)
    expected = rfc.decode(payload, parts(old))
    check_same(rfc.decode(payload, old), expected, old)
    target = {name: value.clone() for name, value in old.items()}
    assert rfc.decode(payload, target, out=target) is target
    check_same(target, expected, old)
    server, client = rfc.ServerSession(old), rfc.ClientSession(parts(old))
    server.update(new)
    check_same(server.state, client.receive(server.send("a")), old)
    uplink = client.send(parts(new))
    aggregator = server.aggregator()
    server.receive_into("a", uplink, aggregator)
    check_same(aggregator.result(), parts(server.receive("a", uplink)), old)
    check_same(pickle.loads(pickle.dumps(server)).state, parts(server.state), old)


def test_one_process(mesh: Any) -> None:
    check(mesh)


def test_partial_sums_are_refused(mesh: Any) -> None:
    value = DTensor.from_local(torch.ones(3), mesh, [Partial()])
    with pytest.raises(TypeError, match="state: tensor 'a': is a DTensor of partial sums"):
        rfc.encode_keyframe({"a": value})


def test_trainable_parameters(mesh: Any) -> None:
    """FSDP's state_dict has DTensors; load_state_dict takes what decode returns."""
    fully_shard = pytest.importorskip("torch.distributed.fsdp").fully_shard
    net = torch.nn.Linear(8, 8)
    fully_shard(net, mesh=mesh)
    old = {name: value.detach().clone() for name, value in net.state_dict().items()}
    new = {name: value + 1 for name, value in net.named_parameters()}
    decoded = rfc.decode(rfc.encode(new, old, sparsity=0.0, bits=16), old)
    net.load_state_dict(decoded)
    for name, value in net.named_parameters():
        assert torch.equal(value.to_local(), decoded[name].to_local())


def _rank(rank: int, folder: Path) -> None:
    check(start(folder, rank, 2))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """41 rows are 21 and 20, so each rank has another layout."""
    torch.multiprocessing.spawn(_rank, (tmp_path,), 2)
