"""Tensors without values in memory: a TypeError names the tensor and suggests a fix."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc

torch = pytest.importorskip("torch")


def refused(value: Any, advice: str) -> None:
    good = {"w": np.zeros((2, 2), np.float32)}
    payload, keyframe = rfc.encode(good, good), rfc.encode_keyframe(good)
    calls: dict[str, Callable[[Any], object]] = {
        "state": lambda bad: rfc.encode(bad, bad),
        "reference": lambda bad: rfc.decode(payload, bad),
        "out": lambda bad: rfc.decode(payload, good, out=bad),
        "like": lambda bad: rfc.decode_keyframe(keyframe, bad),
        "initial_state": lambda bad: rfc.ServerSession(bad),
    }
    for argument, call in calls.items():
        pattern = f"{argument}: tensor 'w': .*{re.escape(advice)}"
        with pytest.raises(TypeError, match=pattern):
            call({"w": value})


def fake() -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.ones(2, 2)


def functional() -> Any:
    from torch._subclasses.functional_tensor import FunctionalTensorMode

    with FunctionalTensorMode():
        return torch.ones(2, 2) + 1


def transformed(transform: Callable[..., Any]) -> Any:
    seen = []

    def remember(x: Any) -> Any:
        seen.append(x)
        return x.sum()

    transform(remember)(torch.ones(2, 2))
    return seen[0]


def freed(first: int, n_bytes: int, stride: int = 1) -> Any:
    storage = torch.ones(8)
    view = storage[first::stride]
    storage.untyped_storage().resize_(n_bytes)
    return view


def masked() -> Any:
    from torch.masked import masked_tensor

    return masked_tensor(torch.ones(2), torch.tensor([True, False]))


def nested(**layout: Any) -> Any:
    return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], **layout)


EYE = torch.eye(4)
STRANGE: dict[str, tuple[Callable[[], Any], str]] = {
    "fake": (fake, "is a FakeTensor, which has no values"),
    "meta": (lambda: torch.ones(3, device="meta"), "on device meta"),
    "nested": (nested, "is nested; pass its parts (unbind())"),
    "jagged": (lambda: nested(layout=torch.jagged), "is nested; pass its parts"),
    "lazy": (torch.nn.UninitializedParameter, "is not initialized yet; run the module once"),
    "lazy buffer": (torch.nn.UninitializedBuffer, "is not initialized yet"),
    "coo": (EYE.to_sparse, "layout torch.sparse_coo is not supported; call to_dense()"),
    "csr": (EYE.to_sparse_csr, "layout torch.sparse_csr is not supported; call to_dense()"),
    "csc": (EYE.to_sparse_csc, "layout torch.sparse_csc is not supported; call to_dense()"),
    "bsr": (lambda: EYE.to_sparse_bsr((2, 2)), "layout torch.sparse_bsr is not supported"),
    "bsc": (lambda: EYE.to_sparse_bsc((2, 2)), "layout torch.sparse_bsc is not supported"),
    "mkldnn": (EYE.to_mkldnn, "layout torch._mkldnn is not supported; call to_dense()"),
    "quantized": (
        lambda: torch.quantize_per_tensor(EYE, 0.1, 0, torch.qint8),
        "dtype torch.qint8 is not supported; call dequantize()",
    ),
    "functional": (functional, "FunctionalTensor of a trace"),
    "functional of C++": (lambda: torch._to_functional_tensor(EYE), "without memory"),
    "masked": (masked, "its mask would be lost; call to_tensor()"),
    "zero": (lambda: torch._efficientzerotensor(3), "without memory; call clone()"),
    "freed": (lambda: freed(0, 0), "its storage has been freed or shrunk"),
    "freed view": (lambda: freed(4, 0), "its storage has been freed or shrunk"),
    "shrunk": (lambda: freed(0, 16), "its storage has been freed or shrunk"),
    "shrunk, strided": (lambda: freed(0, 16, 7), "its storage has been freed or shrunk"),
    "grad": (lambda: transformed(torch.func.grad), "transform"),
    "vmap": (lambda: transformed(torch.func.vmap), "transform"),
}


@pytest.mark.filterwarnings("ignore")  # from torch: some of these kinds are prototypes
@pytest.mark.parametrize("kind", STRANGE)
def test_torch(kind: str) -> None:
    make, advice = STRANGE[kind]
    refused(make(), advice)


def test_subclasses_with_memory() -> None:
    class Named(torch.Tensor):
        @classmethod
        def __torch_function__(cls, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError("the codec calls no function of a subclass")

    reference = {"w": torch.zeros(5).as_subclass(Named)}
    state = {"w": torch.ones(5).as_subclass(Named)}
    decoded = rfc.decode(rfc.encode(state, reference, sparsity=0), reference)
    assert type(decoded["w"]) is torch.Tensor
    assert torch.equal(decoded["w"], torch.ones(5))


def test_negative_views() -> None:
    z = torch.complex(torch.zeros(4), torch.arange(4.0)).conj().imag
    reference = {"w": torch.zeros(4)}
    decoded = rfc.decode(rfc.encode({"w": z}, reference, exclude="w"), reference)
    assert torch.equal(decoded["w"], -torch.arange(4.0))
    with pytest.raises(ValueError, match="out: tensor 'w' is not C-contiguous"):
        rfc.decode(rfc.encode({"w": z}, reference), reference, out={"w": z})


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (np.array([1, "x", None], object), "dtype object is not supported; convert to numbers"),
        (np.zeros(2, [("a", "f4"), ("b", "i4")]), "pass each field as a tensor of its own"),
        (np.array(["ab"]), "is not supported; convert to numbers"),
        (np.array(["2020-01-01"], "M8[D]"), "is not supported; convert to numbers"),
        (np.zeros(2, np.longdouble), "convert with astype('float64')"),
        (np.zeros(2, np.clongdouble), "convert with astype('complex128')"),
        (np.zeros(2, ">f4"), "astype(dtype.newbyteorder('='))"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), "would lose its mask; call filled()"),
        (np.ma.masked_array([1.0, 2.0]), "would lose its mask; call filled()"),
    ],
    ids=str,
)
def test_numpy(value: Any, advice: str) -> None:
    refused(value, advice)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_numpy_subclasses_with_memory(tmp_path: os.PathLike[str]) -> None:
    state = {"w": np.matrix([[1.0, 2.0], [3.0, 4.0]], np.float32), "n": np.float32(3)}
    zeros = {"w": np.zeros((2, 2), np.float32), "n": np.zeros((), np.float32)}
    payload = rfc.encode(state, zeros, exclude=["w", "n"])
    assert np.array_equal(rfc.decode(payload, zeros)["w"], np.array(state["w"]))
    mapped = np.lib.format.open_memmap(
        f"{tmp_path}/w.npy", mode="w+", dtype=np.float32, shape=(2, 2)
    )
    mapped[:] = state["w"]
    read_only = np.load(f"{tmp_path}/w.npy", mmap_mode="r")
    assert rfc.encode({**state, "w": read_only}, zeros, exclude=["w", "n"]) == payload
    for out, problem in (
        ({**zeros, "w": read_only}, "out: tensor 'w' is read-only"),
        ({**zeros, "w": np.broadcast_to(np.float32(1), (2, 2))}, "out: tensor 'w' is not C-contig"),
        ({**zeros, "n": np.float32(0)}, "out: tensor 'n'"),
    ):
        with pytest.raises(ValueError, match=problem):
            rfc.decode(payload, zeros, out=out)
