"""Keras variables, with each backend in a process of its own, for a backend is chosen at import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

if find_spec("keras") is None:
    pytest.skip("needs Keras: pip install keras", allow_module_level=True)


@pytest.mark.parametrize("backend", ["jax", "torch", "numpy"])
def test_variables(backend: str) -> None:
    if find_spec(backend) is None:
        pytest.skip(f"needs {backend}")
    script = Path(__file__).parent / "keras_states.py"
    settings = {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"}
    subprocess.run(
        [sys.executable, "-W", "ignore", script], env={**os.environ, **settings}, check=True
    )


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_example(backend: str) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    if find_spec(backend) is None:
        pytest.skip(f"needs {backend}")
    example = Path(__file__).parents[2] / "examples" / "keras" / "train.py"
    settings = {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"}
    output = subprocess.check_output([sys.executable, example], env={**os.environ, **settings})
    report = json.loads(output)
    assert report["accuracies"][-1] > 0.9
    assert 100 * report["bytes"] < report["plain_bytes"]
