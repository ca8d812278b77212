"""Modes that a caller enables in torch change neither bytes nor models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

import resfed_codec as rfc

torch = pytest.importorskip("torch")


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def fake_mode() -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()


def function_mode() -> Any:
    class Refuses(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
            raise AssertionError(f"the codec calls {func} of torch under the caller's mode")

    return Refuses()


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "default device": lambda: default_device("meta"),
    "device context": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "inference": torch.inference_mode,
    "no grad": torch.no_grad,
    "fake": fake_mode,
    "function": function_mode,
    "autocast": lambda: torch.autocast("cpu"),
}


def states() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)

    def state() -> dict[str, Any]:
        w, c = (torch.randn(6, 9, generator=generator) for _ in range(2))
        return {
            "w": torch.nn.Parameter(w.T),
            "b": c.to(torch.bfloat16).T,
            "c": torch.complex(w, c).conj(),
            "n": torch.tensor(3),
        }

    return [state() for _ in range(3)]


def results(reference: Any, state: Any, other: Any) -> list[Any]:
    """Bytes and models of every function that takes or returns tensors."""
    payload, keyframe = rfc.encode(state, reference), rfc.encode_keyframe(state)
    server, client = rfc.ServerSession(reference), rfc.ClientSession(reference)
    decoder = rfc.Decoder(reference)
    server.update(state)
    message = server.send("c")
    received = client.receive(message)
    uplink = client.send(other)
    saved = server.state_dict()
    resumed = rfc.ServerSession(reference)
    resumed.load_state_dict(saved)
    aggregator = rfc.Aggregator({k: v for k, v in reference.items() if k != "c"})
    aggregator.add_state({k: v for k, v in state.items() if k != "c"})
    return [
        payload,
        keyframe,
        message,
        uplink,
        rfc.decode(payload, reference),
        rfc.decode_keyframe(keyframe, reference),
        received,
        client.receive(message, copy=False),
        server.receive("c", uplink),
        resumed.state,
        decoder.state,
        aggregator.result(),
        saved,
    ]


@pytest.mark.parametrize("mode", MODES)
def test_results_do_not_depend_on(mode: str) -> None:
    arguments = states()
    expected = results(*arguments)
    with MODES[mode]():
        found = results(*arguments)
    for a, b in zip(expected, found, strict=True):
        if isinstance(a, bytes):
            assert a == b
            continue
        for name, tensor in b.items():
            assert type(tensor) is torch.Tensor
            assert not tensor.is_inference()
            assert (tensor.device.type, tensor.dtype) == ("cpu", a[name].dtype)
            assert torch.equal(tensor, a[name])


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap])
def test_inside_a_transform(transform: Callable[..., Any]) -> None:
    arguments = states()
    expected = results(*arguments)
    found: list[Any] = []

    def function(x: Any) -> Any:
        found.extend(results(*arguments))
        return x.sum()

    transform(function)(torch.ones(2, 2))
    assert [r for r in found if isinstance(r, bytes)] == [
        r for r in expected if isinstance(r, bytes)
    ]
    assert torch.equal(found[4]["w"], expected[4]["w"])


def test_trains_on_what_was_decoded_in_inference_mode() -> None:
    reference, state, _ = states()
    payload = rfc.encode(state, reference)
    with torch.inference_mode():
        weight = rfc.decode(payload, reference)["w"]
    weight.requires_grad_()
    (weight * weight).sum().backward()
    assert torch.equal(weight.grad, 2 * weight.detach())


@pytest.mark.filterwarnings("ignore:Dynamo")  # from torch: what it cannot trace
def test_inside_a_compiled_function() -> None:
    reference, state, _ = states()
    payload = rfc.encode(state, reference)
    expected = rfc.decode(payload, reference)

    @torch.compile(backend="eager")
    def function(x: Any) -> Any:
        doubled = 2 * x
        decoded = rfc.decode(payload, reference)
        return doubled.sum() + decoded["w"].sum(), decoded, rfc.encode(state, reference)

    _, decoded, again = function(torch.ones(3))
    assert again == payload
    assert all(torch.equal(decoded[name], expected[name]) for name in expected)


def everything() -> tuple[Any, ...]:
    """Results of sessions (one restored from its state), streams, keyframes and a mean."""
    reference, state, _ = states()
    server, client = rfc.ServerSession(reference), rfc.ClientSession(reference)
    server.update(state)
    local = client.receive(server.send("a"))
    restored = rfc.ClientSession(reference)
    restored.load_state_dict(client.state_dict())
    mean = server.aggregator()
    assert server.receive_into("a", restored.send(local), mean)
    encoder, decoder = rfc.Encoder(reference), rfc.Decoder(reference)
    decoded = decoder.decode(encoder.encode(state))
    out = rfc.decode_keyframe(rfc.encode_keyframe(reference), reference)
    rfc.decode_keyframe(rfc.encode_keyframe(state), reference, out=out)
    return local, mean.result(), decoded, out, server.state, restored.acknowledge()


def traced_by_dynamo(function: Callable[[], Any]) -> None:
    torch.compile(lambda x: (function(), x + 1)[1], backend="eager")(torch.ones(3))


def traced_by_jit(function: Callable[[], Any]) -> None:
    torch.jit.trace(lambda x: (function(), x + 1)[1], torch.ones(3))


@pytest.mark.filterwarnings("ignore")  # from torch: what it cannot trace
@pytest.mark.parametrize("trace", [traced_by_dynamo, traced_by_jit])
def test_tracers_do_not_enter_the_codec(trace: Callable[[Callable[[], Any]], None]) -> None:
    expected, got = everything(), []
    trace(lambda: got.append(everything()))
    assert len(got) >= 1
    for ours, theirs in zip(expected, got[0], strict=True):
        if isinstance(ours, bytes):
            assert ours == theirs
        else:
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)
