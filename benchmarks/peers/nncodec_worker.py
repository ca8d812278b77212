"""Worker process that runs NNCodec, in an environment that has it.

    python -I nncodec_worker.py

Reads requests from standard input and writes an answer to each on standard output. A message is a
length of 8 bytes (little-endian) and an .npz of that many bytes. Requests hold the arrays to code
as ``x|NAME``, ``qp`` and ``use_dq``. Answers hold ``payload``, ``seconds`` (encoding, decoding),
``scratch`` (bytes of peak memory above the inputs while encoding) and the decoded arrays as
``x|NAME``. float32 arrays are quantized with qp and use_dq, int32 arrays coded without loss.

It imports nothing from this repository, because NNCodec's environment has an older NumPy. -I hides
this folder, whose nncodec.py is another module.
"""

from __future__ import annotations

import io
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import IO, Any
from unittest.mock import MagicMock

import numpy as np


class _Unused(ModuleType):
    """A module that NNCodec imports for training and that coding never calls."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock()


def import_nncodec() -> Any:
    """The module nncodec.nnc, with stubs for packages that coding never calls."""
    submodules = {"torchvision": ("datasets", "transforms"), "ptflops": (), "h5py": ()}
    for package in [name for name in submodules if find_spec(name) is None]:
        for name in (package, *(f"{package}.{part}" for part in submodules[package])):
            sys.modules[name] = _Unused(name)
    from nncodec import nnc

    return nnc


def memory_kib(key: str) -> int:
    """VmRSS or VmHWM of this process, in KiB; 0 without /proc."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith(key + ":")), 0)


def forget_peak() -> None:
    """Reset VmHWM to VmRSS."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def answer(nnc: Any, request: Any) -> dict[str, Any]:
    arrays = {key[2:]: request[key] for key in request.files if key.startswith("x|")}
    forget_peak()
    before = memory_kib("VmRSS")
    begin = time.perf_counter()
    payload = nnc.compress(
        arrays,
        bitstream_path=None,
        qp=int(request["qp"]),
        use_dq=bool(request["use_dq"]),
        param_opt=True,
        row_skipping=True,
        return_bitstream=True,
    )
    middle = time.perf_counter()
    scratch = 1024 * (memory_kib("VmHWM") - before)
    decode_begin = time.perf_counter()
    decoded = nnc.decompress(payload)
    end = time.perf_counter()
    return {
        "payload": np.frombuffer(bytes(payload), np.uint8),
        "seconds": np.array([middle - begin, end - decode_begin]),
        "scratch": np.array(scratch),
        **{f"x|{name}": decoded[name] for name in arrays},
    }


def send(stream: IO[bytes], arrays: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    stream.write(buffer.getbuffer().nbytes.to_bytes(8, "little"))
    stream.write(buffer.getbuffer())
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """The next message, or None at the end of the stream."""
    length = stream.read(8)
    if len(length) < 8:
        return None
    return np.load(io.BytesIO(stream.read(int.from_bytes(length, "little"))))


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # NNCodec's prints must not mix with answers
    nnc = import_nncodec()
    import torch

    torch.set_num_threads(1)
    while (request := receive(sys.stdin.buffer)) is not None:
        send(answers, answer(nnc, request))


if __name__ == "__main__":
    main()
