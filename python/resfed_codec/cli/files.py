"""Files of the command line: models as .safetensors, and atomic output."""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_NUMPY_DTYPES = frozenset(
    ["BOOL", "U8", "U16", "U32", "U64", "I8", "I16", "I32", "I64", "F16", "F32", "F64"]
)
"""safetensors names of the dtypes that NumPy and the codec both support."""


@dataclass(frozen=True)
class Model:
    """A .safetensors file: its tensors, and the safetensors module that can write them."""

    tensors: dict[str, Any]
    metadata: dict[str, str] | None
    library: Any


def load_model(path: Path) -> Model:
    try:
        import safetensors
    except ImportError:
        raise ImportError(
            'models need the package safetensors: pip install "resfed-codec[cli]"'
        ) from None
    with path.open("rb"):
        pass  # its errors are clearer than safe_open's
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
            dtypes = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        library = _library_for(path, dtypes)
        return Model(library.load_file(path), metadata, library)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a valid safetensors file: {error}") from None


def _library_for(path: Path, dtypes: dict[str, str]) -> Any:
    """The safetensors module for these dtypes: NumPy's, or torch's for bfloat16."""
    for name, dtype in dtypes.items():
        if dtype not in _NUMPY_DTYPES and dtype != "BF16":
            raise ValueError(f"{path}: tensor {name!r}: dtype {dtype} is not supported")
    if "BF16" in dtypes.values():
        if find_spec("torch") is not None:
            return importlib.import_module("safetensors.torch")
        if find_spec("ml_dtypes") is None:
            raise ImportError(
                f"{path}: bfloat16 tensors need an extra package:"
                " pip install torch, or pip install ml_dtypes"
            )
        importlib.import_module("ml_dtypes")  # registers the dtype with NumPy
    return importlib.import_module("safetensors.numpy")


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to the file, or raise OSError and leave everything unchanged."""
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)  # a device or a pipe; fails for a folder
            return
        target = Path(os.path.realpath(path))  # keep a link a link
        temporary = target.with_name(f".resfed-codec-{secrets.token_hex(8)}.tmp")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
