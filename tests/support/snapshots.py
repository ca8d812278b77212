"""Saved state of streams and sessions: as bytes for comparison, and in common file formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc


def snapshot(end: Any) -> dict[str, bytes]:
    """The whole state of a stream's or session's end, for comparison."""
    return {name: np.asarray(value).tobytes() for name, value in end.state_dict().items()}


def refused(error: type[Exception], match: str, call: Any, *args: Any, **kwargs: Any) -> Any:
    """The error of a method of an end, or a partial of one; it must change nothing."""
    end = getattr(call, "func", call).__self__
    before = snapshot(end)
    with pytest.raises(error, match=match) as caught:
        call(*args, **kwargs)
    assert snapshot(end) == before, "a refused call changed the state"
    return caught.value


def mismatched(match: str, call: Any, *args: Any) -> Any:
    return refused(rfc.StateMismatchError, match, call, *args)


def _npz(state_dict: dict[str, Any], path: Path) -> Any:
    np.savez(path.with_suffix(".npz"), **state_dict)
    return dict(np.load(path.with_suffix(".npz"), allow_pickle=False))


def _torch(state_dict: dict[str, Any], path: Path) -> Any:
    torch = pytest.importorskip("torch")
    torch.save({n: torch.from_numpy(v) for n, v in state_dict.items()}, path)
    return torch.load(path, weights_only=True)


def _safetensors(state_dict: dict[str, Any], path: Path) -> Any:
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file(state_dict, path)
    return numpy.load_file(path)


def _safetensors_torch(state_dict: dict[str, Any], path: Path) -> Any:
    torch = pytest.importorskip("torch")
    storage = pytest.importorskip("safetensors.torch")
    storage.save_file({n: torch.from_numpy(v) for n, v in state_dict.items()}, path)
    return storage.load_file(path)


SAVERS: dict[str, Callable[[dict[str, Any], Path], Any]] = {
    "as it is": lambda state_dict, path: state_dict,
    "npz": _npz,
    "torch": _torch,
    "safetensors": _safetensors,
    "safetensors.torch": _safetensors_torch,
}
"""Functions that store a state_dict and return it after loading."""
