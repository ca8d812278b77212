"""torch tensors on the CPU: torch states decode to torch states."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest

import resfed_codec as rfc
from models import clustered
from resfed_codec.codec.update import encode_and_recover

torch = pytest.importorskip("torch")


def pair(dtype: torch.dtype, rng: np.random.Generator) -> tuple[dict, dict]:
    reference = OrderedDict(
        w=torch.tensor(rng.standard_normal((40, 70))).to(dtype),
        b=torch.tensor(rng.standard_normal(40)).to(dtype),
        n=torch.tensor(5),
    )
    state = {
        "w": reference["w"] + torch.tensor(clustered((40, 70), rng)).to(dtype),
        "b": reference["b"] + torch.tensor(clustered((40,), rng)).to(dtype),
        "n": torch.tensor(6),
    }
    return state, reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_round_trip(dtype: torch.dtype, rng: np.random.Generator) -> None:
    state, reference = pair(dtype, rng)
    payload, recovered = encode_and_recover(state, reference, sparsity=0.9)
    decoded = rfc.decode(payload, reference)
    assert list(decoded) == list(reference)
    for name, value in decoded.items():
        assert value.dtype == reference[name].dtype
        assert value.shape == reference[name].shape
        assert torch.equal(value, recovered[name])
    assert decoded["n"] == 6
    moved = (state["w"].double() - reference["w"].double()).norm()
    assert (state["w"].double() - decoded["w"].double()).norm() < 0.6 * moved


def test_same_bytes_as_numpy(rng: np.random.Generator) -> None:
    state, reference = pair(torch.float32, rng)
    as_numpy = [{n: v.numpy() for n, v in s.items()} for s in (state, reference)]
    assert rfc.encode(state, reference) == rfc.encode(*as_numpy)
    assert rfc.encode(state, as_numpy[1]) == rfc.encode(*as_numpy)


def test_parameters_views_and_in_place(rng: np.random.Generator) -> None:
    model = torch.nn.Linear(30, 20)
    reference = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p += torch.tensor(clustered(tuple(p.shape), rng))
    payload = rfc.encode(dict(model.named_parameters()), reference, sparsity=0.5)
    decoded = rfc.decode(payload, reference)
    assert not decoded["weight"].requires_grad
    transposed = {"weight": reference["weight"].T.contiguous().T, "bias": reference["bias"]}
    assert torch.equal(rfc.decode(payload, transposed)["weight"], decoded["weight"])
    rfc.decode(payload, reference, out=dict(model.named_parameters()))
    assert torch.equal(model.weight, decoded["weight"])
    with pytest.raises(ValueError, match="out: tensor 'weight' is not C-contiguous"):
        rfc.decode(payload, reference, out=transposed)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(2, dtype=torch.bits16), "dtype torch.bits16 is not supported"),
        (torch.zeros(2, device="meta"), "lies on device meta"),
        (torch.zeros(2).to_sparse(), "layout torch.sparse_coo is not supported"),
    ],
)
def test_tensors_that_cannot_be_read(value: torch.Tensor, message: str) -> None:
    with pytest.raises(TypeError, match=f"state: tensor 'w': {message}"):
        rfc.encode({"w": value}, {"w": torch.zeros(2)})


def test_import_and_use_without_torch() -> None:
    code = """
import sys
sys.modules["torch"] = None  # any import of torch fails
import numpy as np, resfed_codec as rfc
reference = {"w": np.zeros((4, 5), np.float32)}
state = {"w": np.arange(20, dtype=np.float32).reshape(4, 5)}
decoded = rfc.decode(rfc.encode(state, reference, sparsity=0.5), reference)
assert np.count_nonzero(decoded["w"]) == 10
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_import_does_not_import_torch() -> None:
    code = "import sys, resfed_codec; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
