"""Arrays that change during a call: the result may be a torn model, but nothing worse."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc
from programs import ROOT, Library, find
from resfed_codec import _native
from resfed_codec.codec import native_call
from resfed_codec.codec.native_call import tensors_of
from resfed_codec.codec.update import native_options
from resfed_codec.tensors.layout import specs_of, views_of
from resfed_codec.tensors.roles import RoleOverrides, roles_of


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it moves pages out of reach")
def test_passes_that_disagree(tmp_path: Path) -> None:
    """Each page changes whenever a pass reads it; see tests/native/changing_memory.cpp."""
    compiler = find("g++", "c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    library = Library(tmp_path, compiler, ["-O1"])
    program = library.program(ROOT / "tests/native/changing_memory.cpp")
    run = subprocess.run([program, "60"], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, f"{run.returncode}: {run.stderr}"
    assert run.stdout == "60 calls of each kind\n"


CALLS: dict[str, Any] = {
    "encode": lambda s, r: rfc.encode(s, r),
    "encode half": lambda s, r: rfc.encode(s, r, sparsity=0.5),
    "max_bytes": lambda s, r: rfc.encode(s, r, max_bytes=3000),
    "max_error": lambda s, r: rfc.encode(s, r, max_error=0.9),
    "keyframe": lambda s, r: rfc.encode_keyframe(s),
    "add_state": lambda s, r: rfc.Aggregator(r).add_state(s),
}


@pytest.mark.parametrize("call", CALLS)
def test_another_thread_writes(call: str) -> None:
    rng = np.random.default_rng(0)
    reference = {"w": np.zeros((400, 500), np.float32), "n": np.zeros(5000, np.int64)}
    state = {name: array.copy() for name, array in reference.items()}
    ties = [np.sign(rng.standard_normal((400, 500))) * 2.0**k for k in range(-3, 4)]
    stop = threading.Event()
    seen: list[str] = []

    def write() -> None:
        i = 0
        while not stop.is_set():
            i += 1
            state["w"][:] = ties[i % len(ties)]
            state["n"][:] = i

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(40):
            try:
                CALLS[call](state, reference)
            except (RuntimeError, ValueError) as error:
                seen.append(str(error))
    finally:
        stop.set()
        writer.join()
    assert all(re.match("state: another thread|max_error: the bound", text) for text in seen)


def test_both_ends_agree_despite_a_writer() -> None:
    """Encoder and decoder hold the same model; feedback stays valid."""
    rng = np.random.default_rng(1)
    start = {"w": np.zeros((300, 400), np.float32)}
    state = {"w": start["w"].copy()}
    encoder = rfc.Encoder(start, sparsity=0.9, error_feedback=True)
    decoder = rfc.Decoder(start)
    models = [rng.standard_normal((300, 400)).astype(np.float32) * 10.0**k for k in range(-2, 3)]
    models[0][::7] = np.nan
    stop = threading.Event()

    def write() -> None:
        i = 0
        while not stop.is_set():
            i += 1
            np.copyto(state["w"], models[i % len(models)])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(40):
            try:
                payload = encoder.encode(state)
            except (RuntimeError, ValueError):
                continue
            assert np.array_equal(decoder.decode(payload)["w"], encoder.state["w"])
    finally:
        stop.set()
        writer.join()
    payload = encoder.encode(start)  # the feedback of a torn model can still be sent
    assert np.isfinite(decoder.decode(payload)["w"]).all()


def test_arrays_keep_their_memory_during_a_call() -> None:
    """NumPy refuses to resize them; tried after encoding, before the outputs are written."""
    new, base = ({"w": np.full((30, 40), v, np.float32)} for v in (1, 0))
    sliced = {"w": np.zeros((60, 40), np.float32)}
    refused = []

    def resize(*_: Any) -> list[Any]:
        for array in (new["w"], base["w"], sliced["w"]):
            with pytest.raises(ValueError, match="cannot resize"):
                array.resize(10, refcheck=False)
            refused.append(array.shape)
        return []

    specs = specs_of(views_of(base, "state"))
    roles = roles_of(specs)
    arrays = {"current": [new["w"]], "out": [sliced["w"][:30]]}
    tensors = tensors_of(specs, roles, [base["w"]], **arrays)
    options = native_options(rfc.CodecConfig(), specs, roles, RoleOverrides(), tensors)
    payload = native_call.encode(tensors, options, None, resize)
    assert len(refused) == 3
    native_call.decode(_native.Payload(payload), options.digest, tensors, None, resize)
    assert len(refused) == 6
    for array in (new["w"], base["w"], sliced["w"]):
        array.resize(10, refcheck=False)  # after the call the caller can resize them


@pytest.mark.parametrize("dtype", ["f4", "i8", "c8"])
def test_views_of_arrays_that_were_resized(dtype: str) -> None:
    reference = {"w": np.zeros(100_000, dtype)}
    array = np.ones(100_000, dtype)
    view = array[:]
    array.resize(10, refcheck=False)
    for call in CALLS.values():
        with pytest.raises(ValueError, match="a view of an array that was resized"):
            call({"w": view}, reference)
