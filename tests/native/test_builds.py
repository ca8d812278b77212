"""The same bytes from every build: GCC and Clang, with and without optimization, x86 and aarch64.

The package is one build (usually GCC -O3); tests/reference/test_golden.py checks its golden bytes.
Here other builds of csrc/cpu encode the same models with every kernel that the processor supports.
Needs the other compilers (Debian: clang; g++-aarch64-linux-gnu and qemu-user).
"""

from __future__ import annotations

import platform
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

import make
import resfed_codec as rfc
from programs import DEFINITIONS, FLAGS, ROOT, SOURCE_FLAGS, Library, find, find_clang, run
from resfed_codec import _native
from resfed_codec.codec.update import encode_and_recover
from resfed_codec.tensors.layout import views_of

DTYPES = [np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(float)]


class Build(NamedTuple):
    compiler: str | None
    options: Sequence[str]
    processor: str
    kernels: Sequence[str]
    emulator: Sequence[str | None] = ()


X86, ARM = ("scalar", "avx2", "avx512"), ("scalar", "neon")
AARCH64 = find("aarch64-linux-gnu-g++")
BUILDS = {
    "gcc-O0": Build(find("g++"), ("-O0",), "x86_64", X86),
    "clang-O0": Build(find_clang(), ("-O0",), "x86_64", X86),
    "clang-O3": Build(find_clang(), ("-O3",), "x86_64", X86),
    "aarch64": Build(AARCH64, ("-O1", "-static"), "aarch64", ARM, (find("qemu-aarch64"),)),
}


class Call(NamedTuple):
    """A call of the native encode and its expected result."""

    text: bytes
    expected: bytes


def number(*values: int) -> bytes:
    return b"".join(value.to_bytes(8, "little") for value in values)


def numbers(values: Sequence[int]) -> bytes:
    return number(len(values), *values)


def write_down(
    state: Any, reference: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Call:
    """Record the package's native encode call for these arguments, and its result."""
    seen: dict[str, Any] = {}
    real_encode, real_decode = _native.encode, _native.decode

    def encode(tensors: _native.Tensors, o: Any, commit: Any) -> bytes:
        seen.update(tensors=tensors, options=o)
        return real_encode(tensors, o, commit)

    def decode(
        payload: _native.Payload, digest: int, tensors: _native.Tensors, commit: Any
    ) -> None:
        seen.update(decoded=tensors)
        real_decode(payload, digest, tensors, commit)

    with monkeypatch.context() as patch:
        patch.setattr(_native, "encode", encode)
        patch.setattr(_native, "decode", decode)
        payload, recovered = encode_and_recover(state, reference, **options)
        rfc.decode(payload, reference)
    o = seen["options"]
    text = number(o.digest, o.k_matrix, o.k_vector, o.max_bytes) + struct.pack("<d", o.max_error)
    text += number(o.vector_share) + struct.pack("<d", o.step.ratio)
    text += number(o.step.bits, o.step.automatic, o.lane_log2, o.dense_bits)
    text += numbers(o.exclusions) + numbers(o.dense) + numbers(o.blocks)
    tensors, decoded = seen["tensors"], seen["decoded"]
    text += number(len(tensors))
    for i, (current, base) in enumerate(zip(tensors.current, tensors.reference, strict=True)):
        text += number(tensors.n_elems[i], tensors.row_lengths[i])
        text += number(base.itemsize, tensors.dtypes[i], tensors.roles[i])
        text += number(decoded.roles[i]) + current.tobytes() + base.tobytes()
    arrays = b"".join(view.array.tobytes() for view in views_of(recovered, "recovered"))
    return Call(text, number(len(payload)) + payload + arrays)


def random_pair(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """A pair larger than the golden ones, with rows of different scale."""
    rng = np.random.default_rng(0)
    shape = (101, 1003)
    reference = rng.standard_normal(shape).astype(dtype)
    scale = 0.01 * rng.lognormal(0, 1.5, (shape[0], 1))
    state = (reference.astype(float) + scale * rng.standard_normal(shape)).astype(dtype)
    return [state], [reference]


@pytest.fixture(scope="module")
def calls() -> Iterator[dict[str, Call]]:
    with pytest.MonkeyPatch.context() as patch:
        made = {name: write_down(*case, patch) for name, case in make.cases().items()}
        for dtype in DTYPES:
            made[f"random {dtype}"] = write_down(*random_pair(dtype), {"sparsity": 0.97}, patch)
        yield made


def test_the_calls_make_the_golden_bytes(calls: dict[str, Call]) -> None:
    for name in make.cases():
        golden = (make.FOLDER / f"{name}.rfd").read_bytes()
        assert calls[name].expected.startswith(number(len(golden)) + golden), name


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDS)
def test_same_bytes(name: str, calls: dict[str, Call], tmp_path: Path) -> None:
    build = BUILDS[name]
    if build.compiler is None or None in build.emulator:
        pytest.skip(f"{name}: the compiler or the emulator is not installed")
    if not build.emulator and platform.machine() != build.processor:
        pytest.skip(f"{name}: not this machine's processor")
    library = Library(tmp_path / "build", build.compiler, build.options, build.processor)
    program = library.program(ROOT / "tests/native/encode_calls.cpp")
    files = []
    for i, call in enumerate(calls.values()):
        files.append(tmp_path / f"call{i}")
        files[-1].write_bytes(call.text)
    ran = 0
    for kernels in build.kernels:
        done = subprocess.run([*map(str, build.emulator), program, kernels, *files])
        if done.returncode == 2:  # this processor does not support them
            continue
        assert done.returncode == 0, kernels
        ran += 1
        for (case, call), file in zip(calls.items(), files, strict=True):
            out = file.with_suffix(".out")
            assert out.read_bytes() == call.expected, f"{case}, {kernels}"
            out.unlink()
    assert ran >= 1


@pytest.mark.slow
@pytest.mark.parametrize("compiler", [find("g++"), find_clang()], ids=["gcc", "clang"])
def test_vector_objects_share_no_functions(compiler: str | None, tmp_path: Path) -> None:
    """A linker keeps one copy of a shared inline function: older processors must not get theirs."""
    nm = find("nm")
    if compiler is None or nm is None or platform.machine() != "x86_64":
        pytest.skip("needs the compiler, nm and an x86-64 processor")
    command = [compiler, *FLAGS, "-O3", DEFINITIONS["x86_64"], "-I", ROOT / "csrc", "-c"]
    for name, flags in SOURCE_FLAGS.items():
        target = tmp_path / f"{name}.o"
        run([*command, *flags, ROOT / f"csrc/cpu/{name}.cpp", "-o", target])
        symbols = subprocess.run([nm, target], check=True, capture_output=True, text=True).stdout
        assert not [line for line in symbols.splitlines() if line.split()[-2] == "W"], name
