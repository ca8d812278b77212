"""Helpers of the tests of the command line: model files, and the program as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import models
import resfed_codec as rfc
from resfed_codec.cli.main import main

pytest.importorskip("safetensors")
from safetensors.numpy import save_file

METADATA = {"format": "pt", "epoch": "3"}

Arrays = dict[str, np.ndarray[Any, Any]]


class Files(NamedTuple):
    """A new model, its reference, and the payload of the default options."""

    folder: Path
    new: Path
    old: Path
    payload: Path

    def encode(self, output: Path | None = None, *options: str) -> list[str]:
        output = output or self.folder / "out"
        return ["encode", f"{self.new}", "--reference", f"{self.old}", "-o", f"{output}", *options]

    def decode(self, output: Path | None = None) -> list[str]:
        output = output or self.folder / "out"
        return ["decode", f"{self.payload}", "--reference", f"{self.old}", "-o", f"{output}"]

    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


def model(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        "net.weight": rng.standard_normal((40, 50), np.float32),
        "net.bias": rng.standard_normal(50, np.float32),
        "half": rng.standard_normal((7, 9)).astype(np.float16),
        "mask": rng.random((3, 5)) < 0.5,
        "steps": np.array(seed, np.int64),
        "empty": np.zeros((0, 4), np.float32),
    }


def write_raw(path: Path, dtype: str, words: np.ndarray[Any, Any]) -> None:
    """Write a safetensors file with one tensor "w" of any dtype, without the library."""
    header = {
        "__metadata__": METADATA,
        "w": {"dtype": dtype, "shape": words.shape, "data_offsets": [0, words.nbytes]},
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + words.tobytes())


def bfloat16_words(seed: int) -> np.ndarray[Any, Any]:
    values = np.random.default_rng(seed).standard_normal((30, 40), np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def make_files(folder: Path) -> Files:
    f = Files(folder, *(folder / n for n in ("new.safetensors", "old.safetensors", "payload")))
    save_file(model(1), f.new, {"from": "new"})
    save_file(model(0), f.old, METADATA)
    f.payload.write_bytes(rfc.encode(model(1), model(0)))
    return f


def assert_fails(argv: list[str], capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    """Check for exit code 1 and one line on standard error with all ``parts``."""
    assert main(argv) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("resfed-codec: error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


def assert_same(actual: Arrays, expected: Any) -> None:
    models.assert_same(dict(sorted(actual.items())), dict(sorted(expected.items())))


def start(*argv: str | Path, **kwargs: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "resfed_codec.cli", *map(str, argv)]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=environ, **kwargs)
