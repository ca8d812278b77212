"""Shared fixtures, and the fixed hypothesis profile."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import resfed_codec as rfc
from resfed_codec import _native

if TYPE_CHECKING:
    from cli_files import Files

# Background processes of a shell ignore SIGINT, and the processes that tests start inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "fixed",
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def _same_settings_after() -> Iterator[None]:
    """Restore the number of threads and the kernels after each test."""
    threads, kernels = rfc.get_num_threads(), _native.kernels()
    yield
    rfc.set_num_threads(threads)
    assert _native.choose_kernels(kernels)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20221)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Model files and a payload for the command line."""
    pytest.importorskip("safetensors")
    from cli_files import make_files

    return make_files(tmp_path)


@pytest.fixture(scope="session")
def snapshots() -> dict[str, dict[str, np.ndarray]]:
    """Models of a real federated run by name: g4 ... g8, l0_5 ... l0_8."""
    path = Path(os.environ.get("RESFED_DATA", "")) / "fedavg_cnn.npz"
    if not os.environ.get("RESFED_DATA") or not path.exists():
        pytest.skip("RESFED_DATA names no folder with fedavg_cnn.npz")
    models: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as data:
        for key in data.files:
            snapshot, name = key.split("|", 1)
            models.setdefault(snapshot, {})[name] = data[key]
    return models
