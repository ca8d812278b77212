"""Files of the command line: models as .safetensors, standard input and output, atomic output."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_NUMPY_DTYPES = frozenset(
    ["BOOL", "U8", "U16", "U32", "U64", "I8", "I16", "I32", "I64", "F16", "F32", "F64"]
)
"""safetensors names of the dtypes that NumPy and the codec both support."""

STDIO = Path("-")
"""Standard input or output as a path."""


def shown(path: Path) -> str:
    return "standard input" if path == STDIO else str(path)


def read(path: Path) -> bytes:
    return sys.stdin.buffer.read() if path == STDIO else path.read_bytes()


@dataclass(frozen=True)
class Model:
    """A model in one .safetensors file or in several, its shards.

    Attributes:
        tensors: All tensors.
        files: The files that it was read from.
        shards: Names of tensors by the name of the shard that has them; empty if there is one file.
        metadata: Metadata in the headers, by shard; under "" of a single file.
        index: The file that lists the shards' tensors, if there is one.
        library: The safetensors module that can write the tensors.
    """

    tensors: dict[str, Any]
    files: list[Path]
    shards: dict[str, list[str]]
    metadata: dict[str, dict[str, str]]
    index: Path | None
    library: Any

    def saved(self, tensors: Mapping[str, Any]) -> bytes:
        """Other tensors of the same names as one file, with the first file's metadata."""
        first = next(iter(self.metadata.values()))
        data: bytes = self.library.save(dict(tensors), metadata=first or None)
        return data

    def saved_shards(self, tensors: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
        """Names and contents of the shards' files with other tensors, and of the index."""
        for shard, names in self.shards.items():
            part = {name: tensors[name] for name in names}
            yield shard, self.library.save(part, metadata=self.metadata[shard] or None)
        if self.index is not None:
            yield self.index.name, self.index.read_bytes()


def load_model(path: Path) -> Model:
    """The model in a .safetensors file, in a folder of such files, or listed by an index."""
    try:
        import safetensors
    except ImportError:
        raise ImportError(
            'models need the package safetensors: pip install "resfed-codec[cli]"'
        ) from None
    index, listed = _shards_of(path)
    files = [path.parent / name if index == path else path / name for name in listed] or [path]
    found: dict[str, list[str]] = {}
    metadata: dict[str, dict[str, str]] = {}
    dtypes: dict[str, tuple[Path, str]] = {}
    tensors: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        local = {file: stack.enter_context(_mappable(file)) for file in files}
        for file in files:
            try:
                with safetensors.safe_open(local[file], framework="numpy") as opened:
                    name = file.name if listed else ""
                    found[name] = list(opened.keys())
                    metadata[name] = opened.metadata() or {}
                    for tensor in found[name]:
                        if tensor in dtypes:
                            raise ValueError(
                                f"{file}: tensor {tensor!r} is in {dtypes[tensor][0].name}, too"
                            )
                        dtypes[tensor] = file, opened.get_slice(tensor).get_dtype()
            except safetensors.SafetensorError as error:
                raise ValueError(f"{shown(file)}: not a valid safetensors file: {error}") from None
        for name, names in listed.items():
            missing = set(names) - set(found[name])
            if missing:
                raise ValueError(f"{shown(path)}: {name} lacks tensor {min(missing)!r}")
        library = _library_for(dtypes)
        for file in files:
            tensors |= library.load_file(local[file])
    read_from = [*files, *([index] if index else [])]
    return Model(tensors, read_from, found if listed else {}, metadata, index, library)


def _shards_of(path: Path) -> tuple[Path | None, dict[str, list[str]]]:
    """The index and, by file, the tensors that it lists; both empty for a single file."""
    if path.is_dir():
        indexes = sorted(path.glob("*.safetensors.index.json"))
        if len(indexes) > 1:
            names = ", ".join(index.name for index in indexes)
            raise ValueError(f"{path}: has several indexes ({names}); give one of them")
        if not indexes:
            files: dict[str, list[str]] = {f.name: [] for f in sorted(path.glob("*.safetensors"))}
            if not files:
                raise ValueError(f"{path}: a folder without .safetensors files")
            return None, files
        index = indexes[0]
    elif path.suffix == ".json":
        index = path
    else:
        return None, {}
    shards: dict[str, list[str]] = {}
    try:
        for tensor, file in json.loads(index.read_bytes())["weight_map"].items():
            if not isinstance(file, str) or Path(file).name != file:
                raise ValueError(f"{file!r} is not the name of a file beside it")
            shards.setdefault(file, []).append(tensor)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: not an index of .safetensors files: {error}") from None
    return index, shards


@contextlib.contextmanager
def _mappable(path: Path) -> Iterator[Path]:
    """A file of the same contents that can be mapped to memory; standard input cannot."""
    if path != STDIO:
        with path.open("rb"):
            pass  # its errors are clearer than safe_open's
        if path.is_file():
            yield path
            return
    with tempfile.NamedTemporaryFile(prefix="resfed-codec-") as file:
        if path == STDIO:
            shutil.copyfileobj(sys.stdin.buffer, file)
        else:
            with path.open("rb") as pipe:
                shutil.copyfileobj(pipe, file)
        file.flush()
        yield Path(file.name)


def _library_for(dtypes: Mapping[str, tuple[Path, str]]) -> Any:
    """The safetensors module for these dtypes: NumPy's, or torch's for bfloat16."""
    for name, (path, dtype) in dtypes.items():
        if dtype not in _NUMPY_DTYPES and dtype != "BF16":
            raise ValueError(f"{shown(path)}: tensor {name!r}: dtype {dtype} is not supported")
    bfloat16 = [path for path, dtype in dtypes.values() if dtype == "BF16"]
    if bfloat16:
        if find_spec("torch") is not None:
            return importlib.import_module("safetensors.torch")
        if find_spec("ml_dtypes") is None:
            raise ImportError(
                f"{shown(bfloat16[0])}: bfloat16 tensors need an extra package:"
                " pip install torch, or pip install ml_dtypes"
            )
        importlib.import_module("ml_dtypes")  # registers the dtype with NumPy
    return importlib.import_module("safetensors.numpy")


def check_output(path: Path, inputs: list[Path]) -> None:
    """Raise ValueError if writing to ``path`` would destroy an input, or fill a terminal."""
    if path == STDIO:
        if sys.stdout.isatty():
            raise ValueError("standard output is a terminal; redirect it, or give a file")
        return
    for given in inputs:
        if given != STDIO and path.exists() and given.exists() and path.samefile(given):
            raise ValueError(f"{path}: is an input; give another output")


def write(path: Path, data: bytes) -> None:
    """Write to the file, or raise OSError and leave everything unchanged; or to standard output."""
    if path == STDIO:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    with _told_of(path):
        if path.exists() and not path.is_file():
            path.write_bytes(data)  # a device or a pipe; fails for a folder
            return
        target = Path(os.path.realpath(path))  # keep a link a link
        temporary = _beside(target)
        try:
            _write_new(temporary, data)
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def write_folder(path: Path, files: Iterator[tuple[str, bytes]]) -> None:
    """Write a new folder with these files, or raise OSError and leave everything unchanged."""
    with _told_of(path):
        temporary = _beside(Path(os.path.realpath(path)))
        try:
            temporary.mkdir()
            for name, data in files:
                _write_new(temporary / name, data)
            os.rename(temporary, path)  # fails if the folder exists and has files
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _beside(target: Path) -> Path:
    return target.with_name(f".resfed-codec-{secrets.token_hex(8)}.tmp")


def _write_new(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """A context in which errors of the system name this file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
