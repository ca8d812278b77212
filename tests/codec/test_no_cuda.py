"""Without CUDA, a tensor on a CUDA device raises an error that says what is missing."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest

import resfed_codec as rfc
from resfed_codec import _native
from resfed_codec.tensors import cuda_support


class OnDevice:
    """An array that reports a CUDA device; reading it fails the test."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 3

    def __dlpack__(self, *, stream: int | None = None) -> object:
        raise AssertionError("exchanged, though CUDA cannot be used")


class OnHost(OnDevice):
    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


@pytest.mark.parametrize(
    ("reason", "with_cuda", "missing"),
    [
        ("it was built without CUDA", False, "built without CUDA; build it from source where nvcc"),
        ("no CUDA-capable device is detected", True, "it needs an NVIDIA GPU and its driver"),
    ],
)
def test_error_names_what_is_missing(
    reason: str, with_cuda: bool, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_native, "cuda_unavailable_reason", lambda: reason)
    if with_cuda:
        monkeypatch.setattr(_native, "encode_on_device", None, raising=False)
    else:
        monkeypatch.delattr(_native, "encode_on_device", raising=False)
    cuda_support.unavailable_reason.cache_clear()
    try:
        assert rfc.cuda_available() is False
        rfc.release_workspace()  # nothing to release
        where = f"state: tensor 'w' lies on cuda:3, which resfed_codec cannot use here: {reason}"
        with pytest.raises(TypeError, match=re.escape(where)) as caught:
            rfc.encode({"w": OnDevice()}, {"w": np.zeros(2)})
        assert missing in str(caught.value)
        assert ".cpu()" in str(caught.value)
    finally:
        cuda_support.unavailable_reason.cache_clear()


def test_arrays_on_other_devices() -> None:
    with pytest.raises(TypeError, match="an array on a CUDA device that speaks DLPack, not On"):
        rfc.encode({"w": OnHost()}, {"w": np.zeros(2)})


def test_models_on_the_host_need_no_code_for_devices() -> None:
    done = subprocess.run([sys.executable, "-c", ON_THE_HOST], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


ON_THE_HOST = """
import sys
import numpy as np
import resfed_codec as rfc

model = {"w": np.zeros((20, 30), np.float32), "n": np.arange(3)}
state = {"w": np.ones((20, 30), np.float32), "n": np.arange(3)}
payload = rfc.encode(state, model)
rfc.decode(payload, model)
rfc.decode_keyframe(rfc.encode_keyframe(state), model)
aggregator = rfc.Aggregator(model)
aggregator.add(payload)
aggregator.result()
server, client = rfc.ServerSession(model), rfc.ClientSession(model, client_id="a")
server.update(state)
client.receive(server.send("a"))
server.receive("a", client.send(state))
print([name for name in ("torch", "resfed_codec.tensors.device") if name in sys.modules])
"""
