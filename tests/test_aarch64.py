"""The same bytes from an aarch64 processor, emulated: scalar and NEON.

Needs a cross compiler and qemu's user mode (Debian: g++-aarch64-linux-gnu, qemu-user).
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import resfed_codec as rfc
from resfed_codec.codec import encode_and_recover
from resfed_codec.layout import layout_digest, views_of

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
ROOT = Path(__file__).parents[1]
DTYPES = [np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(float)]

pytestmark = pytest.mark.skipif(
    not shutil.which(COMPILER) or not shutil.which(EMULATOR),
    reason=f"needs {COMPILER} and {EMULATOR}",
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("aarch64") / "encode_file"
    unwanted = {"residual_avx2", "residual_avx512", "aggregate", "keyframe"}
    sources = [f for f in (ROOT / "csrc/cpu").glob("*.cpp") if f.stem not in unwanted]
    sources.append(ROOT / "tests/native/encode_file.cpp")
    options = ["-O1", "-std=c++20", "-ffp-contract=off", "-static", "-pthread", "-DRESFED_NEON"]
    command = [COMPILER, *options, "-I", ROOT / "csrc", *sources, "-o", path]
    subprocess.run(command, check=True)
    return path


@pytest.mark.parametrize("kernels", ["scalar", "neon"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bytes(
    program: Path, tmp_path: Path, dtype: np.dtype[np.generic], kernels: str
) -> None:
    rng = np.random.default_rng(0)
    shape = (101, 1003)
    reference = rng.standard_normal(shape).astype(dtype)
    scale = 0.01 * rng.lognormal(0, 1.5, (shape[0], 1))
    state = (reference.astype(float) + scale * rng.standard_normal(shape)).astype(dtype)
    payload, recovered = encode_and_recover([state], [reference], sparsity=0.97)

    state.tofile(tmp_path / "state")
    reference.tofile(tmp_path / "reference")
    digest = layout_digest(view.spec for view in views_of([reference], "reference"))
    dtype_code = views_of([reference], "reference")[0].spec.dtype_code
    k = rfc.inspect(payload).n_nonzero
    numbers = map(str, (dtype_code, state.size, k, digest))
    files = [tmp_path / name for name in ("state", "reference", "recovered")]
    command = [EMULATOR, program, kernels, *numbers, *files]
    result = subprocess.run(command, capture_output=True, check=True)
    assert result.stdout == payload
    assert (tmp_path / "recovered").read_bytes() == recovered[0].tobytes()
