"""The command line: round trips, messages, exit codes, and output files that are all or nothing."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import resfed_codec as rfc
from resfed_codec import cli, demo
from resfed_codec.cli import main

pytest.importorskip("safetensors")
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

COMMANDS = ["encode", "decode", "inspect", "bench", "demo"]
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
    """A safetensors file of one tensor "w", of any dtype, made by hand."""
    header = {
        "__metadata__": METADATA,
        "w": {"dtype": dtype, "shape": words.shape, "data_offsets": [0, words.nbytes]},
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + words.tobytes())


def bfloat16_words(seed: int) -> np.ndarray[Any, Any]:
    values = np.random.default_rng(seed).standard_normal((30, 40), np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    f = Files(tmp_path, *(tmp_path / n for n in ("new.safetensors", "old.safetensors", "payload")))
    save_file(model(1), f.new, {"from": "new"})
    save_file(model(0), f.old, METADATA)
    f.payload.write_bytes(rfc.encode(model(1), model(0)))
    return f


@pytest.fixture
def threads() -> Iterator[int]:
    before = rfc.get_num_threads()
    yield before
    rfc.set_num_threads(before)


def assert_fails(argv: list[str], capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    """Exit code 1 and one line on standard error, with all ``parts``."""
    assert main(argv) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("resfed-codec: error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


def assert_same(actual: Arrays, expected: Any) -> None:
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype
        assert actual[name].shape == array.shape
        assert actual[name].tobytes() == array.tobytes()


# encode and decode


def test_round_trip(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    before = files.names()
    update, recovered = files.folder / "update.rfc", files.folder / "recovered.safetensors"
    assert main(files.encode(update)) == 0
    payload = update.read_bytes()
    assert payload == rfc.encode(model(1), model(0))
    out, err = capsys.readouterr()
    n_bytes = sum(array.nbytes for array in model(1).values())
    assert out == (
        f"{len(payload):,} bytes, {n_bytes / len(payload):.1f} times smaller than the"
        f" {n_bytes:,} bytes of the tensors\n"
    )
    assert err == ""

    argv = ["decode", f"{update}", "-r", f"{files.old}", "--output", f"{recovered}"]
    assert main(argv) == 0
    assert capsys.readouterr() == ("", "")
    assert_same(load_file(recovered), rfc.decode(payload, model(0)))
    with safe_open(recovered, "numpy") as file:
        assert file.metadata() == METADATA
    assert files.names() == before | {"update.rfc", "recovered.safetensors"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--sparsity 0.5", {"sparsity": 0.5}),
        ("--max-bytes 400", {"max_bytes": 400}),
        ("--max-error 0.25", {"max_error": 0.25}),
        ("--step 3.5", {"step": 3.5}),
        ("--bits 5", {"bits": 5}),
        ("--sparsity 0.9 --bits 3", {"sparsity": 0.9, "bits": 3}),
        ("--exclude net.b* half", {"exclude": ("net.b*", "half")}),
        ("--exclude net.b* --exclude half", {"exclude": ("net.b*", "half")}),
    ],
)
def test_encode_passes_its_options_on(files: Files, options: str, expected: dict[str, Any]) -> None:
    output = files.folder / "out"
    assert main(files.encode(output, *options.split())) == 0
    assert output.read_bytes() == rfc.encode(model(1), model(0), **expected)
    assert output.read_bytes() != files.payload.read_bytes()


def test_step_auto_is_the_default(files: Files) -> None:
    output = files.folder / "out"
    assert main(files.encode(output, "--step", "auto")) == 0
    assert output.read_bytes() == files.payload.read_bytes()


def test_encode_quiet(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(files.encode(None, "--quiet")) == 0
    assert capsys.readouterr() == ("", "")


def test_decode_without_metadata(files: Files) -> None:
    save_file(model(0), files.old)
    output = files.folder / "out"
    assert main(files.decode(output)) == 0
    with safe_open(output, "numpy") as file:
        assert not file.metadata()


@pytest.mark.parametrize("before", [True, False])
def test_threads(files: Files, threads: int, before: bool) -> None:
    option = ["--threads", f"{threads + 3}"]
    argv = files.encode()
    assert main(option + argv if before else argv + option) == 0
    assert rfc.get_num_threads() == threads + 3


@pytest.mark.parametrize("hide_torch", [False, True])
def test_bfloat16(files: Files, monkeypatch: pytest.MonkeyPatch, hide_torch: bool) -> None:
    torch = pytest.importorskip("torch")  # also makes what is expected
    if hide_torch:
        pytest.importorskip("ml_dtypes")
    new, old = (bfloat16_words(seed) for seed in (1, 0))
    tensors = [torch.from_numpy(w.view(np.int16)).view(torch.bfloat16) for w in (new, old)]
    payload = rfc.encode({"w": tensors[0]}, {"w": tensors[1]}, sparsity=0.5)
    recovered: Any = rfc.decode(payload, {"w": tensors[1]})
    expected = recovered["w"].view(torch.int16).numpy().view(np.uint16)
    write_raw(files.new, "BF16", new)
    write_raw(files.old, "BF16", old)
    if hide_torch:
        monkeypatch.setitem(sys.modules, "torch", None)

    assert main(files.encode(files.payload, "--sparsity", "0.5")) == 0
    assert files.payload.read_bytes() == payload
    output = files.folder / "out"
    assert main(files.decode(output)) == 0
    with safe_open(output, "numpy") as file:
        assert file.get_slice("w").get_dtype() == "BF16"
        assert file.metadata() == METADATA
    data = output.read_bytes()
    assert data[8 + int.from_bytes(data[:8], "little") :] == expected.tobytes()
    assert not np.array_equal(expected, old)


def test_bfloat16_needs_torch_or_ml_dtypes(
    files: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    write_raw(files.new, "BF16", bfloat16_words(1))
    assert_fails(files.encode(), capsys, f"{files.new}", "bfloat16", "torch", "ml_dtypes")
    write_raw(files.old, "BF16", bfloat16_words(0))
    assert_fails(files.decode(), capsys, f"{files.old}", "bfloat16", "torch", "ml_dtypes")


def test_needs_safetensors(
    files: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for argv in (files.encode(), files.decode()):
        assert_fails(argv, capsys, 'pip install "resfed-codec[cli]"')
    assert main(["inspect", f"{files.payload}"]) == 0


def test_imports_nothing_large() -> None:
    code = "import sys, resfed_codec.cli; print({'safetensors', 'torch', 'rich'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# Failures


def nan_in_new(files: Files) -> list[str]:
    broken = model(1)
    broken["net.weight"][0, 3] = np.nan
    save_file(broken, files.new)
    return files.encode()


def other_layout(files: Files) -> list[str]:
    save_file({"w": np.zeros(3)}, files.old)
    return files.encode()


def other_reference(files: Files) -> list[str]:
    save_file(model(2), files.old)
    return files.decode()


def other_reference_layout(files: Files) -> list[str]:
    save_file({"w": np.zeros(3)}, files.old)
    return files.decode()


def damaged(files: Files) -> list[str]:
    data = bytearray(files.payload.read_bytes())
    data[len(data) // 2] ^= 1
    files.payload.write_bytes(data)
    return files.decode()


def no_safetensors(files: Files) -> list[str]:
    files.new.write_bytes(b"no safetensors file, but a few bytes")
    return files.encode()


def float8(files: Files) -> list[str]:
    write_raw(files.new, "F8_E4M3", np.zeros((2, 3), np.uint8))
    return files.encode()


def missing_model(files: Files) -> list[str]:
    files.new.unlink()
    return files.encode()


def missing_payload(files: Files) -> list[str]:
    files.payload.unlink()
    return files.decode()


def folder_as_model(files: Files) -> list[str]:
    files.old.unlink()
    files.old.mkdir()
    return files.decode()


def no_output_folder(files: Files) -> list[str]:
    return files.encode(files.folder / "missing" / "out")


def folder_as_output(files: Files) -> list[str]:
    return files.decode(files.folder)


def options(*extra: str) -> Callable[[Files], list[str]]:
    return lambda files: files.encode(None, *extra)


@pytest.mark.parametrize(
    ("prepare", "parts"),
    [
        (nan_in_new, ["'net.weight'", "index 3", "finite"]),
        (other_layout, ["lacks", "'w'"]),
        (other_reference, ["another reference"]),
        (other_reference_layout, ["another layout"]),
        (damaged, ["payload: damaged"]),
        (no_safetensors, ["new.safetensors", "safetensors file"]),
        (float8, ["new.safetensors", "'w'", "F8_E4M3"]),
        (missing_model, ["new.safetensors: No such file"]),
        (missing_payload, ["payload: No such file"]),
        (folder_as_model, ["old.safetensors: Is a directory"]),
        (no_output_folder, [os.path.join("missing", "out: No such file")]),
        (folder_as_output, ["Is a directory"]),
        (options("--max-bytes", "5"), ["max_bytes", "too small"]),
        (options("--max-bytes", "0"), ["max_bytes=0"]),
        (options("--sparsity", "1.5"), ["sparsity=1.5"]),
        (options("--sparsity", "nan"), ["sparsity=nan"]),
        (options("--max-error", "0"), ["max_error=0"]),
        (options("--bits", "17"), ["bits=17"]),
        (options("--step", "1e9"), ["step=1"]),
        (options("--exclude", "nothing*"), ["'nothing*'"]),
        (options("--threads", "0"), ["--threads", "0"]),
    ],
)
def test_failures(
    files: Files,
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[Files], list[str]],
    parts: list[str],
) -> None:
    argv = prepare(files)
    before = files.names()
    assert_fails(argv, capsys, *parts)
    assert files.names() == before


def test_out_of_memory(
    files: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_memory(*_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(rfc, "encode", no_memory)
    assert_fails(files.encode(), capsys, "out of memory")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "frobnicate",
        "--threads x inspect f",
        "encode new",
        "encode new --reference old",
        "encode --reference old -o out",
        "encode new -r old -o out --sparsity 0.5 --max-bytes 9",
        "encode new -r old -o out --sparsity 0.5 --max-error 0.5",
        "encode new -r old -o out --step 2 --bits 4",
        "encode new -r old -o out --step fine",
        "encode new -r old -o out --max-bytes 1.5",
        "encode new -r old -o out --max-byte 5",
        "decode file -o out",
        "decode file -r old",
        "inspect",
        "bench --elements many",
        "bench --pair new",
        "bench --pair new old --elements 5",
        "demo --rounds many",
        "demo --plot a.png --no-plot",
    ],
)
def test_wrong_usage(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: resfed-codec")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr() == (f"resfed-codec {rfc.__version__}\n", "")


def test_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert all(f"\n    {command} " in out for command in COMMANDS)
    documented = out.partition("exit codes:\n")[2]
    assert [c for c in (0, 1, 2, 130, 141) if f"\n  {c} " in f"\n{documented}"] == [
        0, cli.FAILED, 2, cli.INTERRUPTED, cli.BROKEN_PIPE
    ]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_commands(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"example:\n  resfed-codec {command}" in out
    assert max(map(len, out.splitlines())) <= 80


# Output files are all or nothing


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("command", ["encode", "decode"])
@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("error", "code"),
    [(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1), (KeyboardInterrupt(), 130)],
)
def test_failed_write_changes_nothing(
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    existing: bool,
    command: str,
    function: str,
    error: BaseException,
    code: int,
) -> None:
    output = files.folder / "out"
    if existing:
        output.write_bytes(b"as it was")
    before = files.names()
    called = []

    def fail(*_: object) -> None:
        assert files.names() > before  # the temporary file is in the same folder
        called.append(True)
        raise error

    monkeypatch.setattr(os, function, fail)
    assert main(getattr(files, command)(output)) == code
    assert called
    assert files.names() == before
    if existing:
        assert output.read_bytes() == b"as it was"
    line = f"resfed-codec: error: {output}: No space left on device\n"
    assert capsys.readouterr() == ("", line if code == 1 else "")


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on file sizes")
def test_write_that_stops_half_way(files: Files) -> None:
    import resource

    output = files.folder / "out"
    output.write_bytes(b"as it was")
    before = files.names()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    done = subprocess.run(
        [sys.executable, "-B", "-m", "resfed_codec.cli", *files.decode(output)],
        capture_output=True,
        text=True,
        preexec_fn=limit,
    )
    assert done.returncode == 1
    assert done.stderr == f"resfed-codec: error: {output}: {os.strerror(errno.EFBIG)}\n"
    assert files.names() == before
    assert output.read_bytes() == b"as it was"


def test_output_replaces_a_file(files: Files) -> None:
    assert main(files.decode(files.old)) == 0  # even the reference itself
    assert_same(load_file(files.old), rfc.decode(files.payload.read_bytes(), model(0)))


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_output_has_usual_permissions(files: Files) -> None:
    output = files.folder / "out"
    mask = os.umask(0o027)
    try:
        assert main(files.encode(output)) == 0
    finally:
        os.umask(mask)
    assert stat.S_IMODE(output.stat().st_mode) == 0o640


@pytest.mark.skipif(os.name != "posix", reason="symbolic links, named pipes")
def test_output_through_links_and_pipes(files: Files) -> None:
    folder = files.folder / "elsewhere"
    folder.mkdir()
    target, link, pipe = folder / "target", files.folder / "link", files.folder / "pipe"
    target.write_bytes(b"old")
    link.symlink_to(target)
    assert main(files.encode(link)) == 0
    assert link.is_symlink()
    assert target.read_bytes() == files.payload.read_bytes()

    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        assert main(files.encode(pipe)) == 0
        assert os.read(end, 1 << 16) == files.payload.read_bytes()
    finally:
        os.close(end)
    assert pipe.is_fifo()


# inspect


def test_inspect(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", f"{files.payload}"]) == 0
    text = str(rfc.inspect(files.payload.read_bytes()))
    assert capsys.readouterr() == (text + "\n", "")


def test_inspect_json(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    payload = rfc.encode(model(1), model(0), sparsity=0.5, exclude=["half"])
    files.payload.write_bytes(payload)
    assert main(["inspect", "--json", f"{files.payload}"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    info = json.loads(out)
    parts = ["header", "quantizer", "table", "lossy", "lossless", "checksum"]
    assert sum(info[f"{part}_bytes"] for part in parts) == info["n_bytes"] == len(payload)
    assert sum(info["lossy_slices"]) == info["lossy_bytes"]
    assert sum(info["lossless_slices"]) == info["lossless_bytes"]
    assert (info["n_matrix"], info["n_vector"]) == (40 * 50, 50)
    assert info["n_lossless"] == 7 * 9 + 3 * 5 + 1
    assert info["k_matrix"] == 40 * 50 // 2
    assert info["exclusions"] == [sorted(model(0)).index("half")]
    original = rfc.inspect(payload)
    assert info["digest"] == original.digest
    assert original.matrix is not None
    assert info["matrix"]["threshold"] == original.matrix.threshold
    assert info["matrix"]["offsets"] == list(original.matrix.offsets)


def test_inspect_absent_quantizers(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    files.payload.write_bytes(rfc.encode(model(0), model(0)))
    assert main(["inspect", "--json", f"{files.payload}"]) == 0
    assert json.loads(capsys.readouterr().out)["matrix"] is None


@pytest.mark.parametrize("keep", [0, 1, 10, -5, -1])
def test_inspect_truncated(files: Files, capsys: pytest.CaptureFixture[str], keep: int) -> None:
    files.payload.write_bytes(files.payload.read_bytes()[:keep])
    for option in ([], ["--json"]):
        assert_fails(["inspect", f"{files.payload}", *option], capsys, "payload: ")


# The process: interrupts, pipes, the module as a script


def start(*argv: str | Path, **kwargs: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "resfed_codec.cli", *map(str, argv)]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=environ, **kwargs)


def test_as_script(files: Files) -> None:
    with start("inspect", files.payload, stdout=subprocess.PIPE) as process:
        out, err = process.communicate()
    text = str(rfc.inspect(files.payload.read_bytes()))
    assert (process.returncode, out.decode().split("\n"), err) == (0, [*text.split("\n"), ""], b"")
    with start("inspect", files.new, stdout=subprocess.PIPE) as process:
        out, err = process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert err.startswith(b"resfed-codec: error: payload: ")
    assert err.count(b"\n") == 1


def assert_broken_pipe(*argv: str | Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with start(*argv, stdout=writing) as process:
        os.close(writing)
        _, err = process.communicate()
    assert (process.returncode, err) == (141, b"")


@pytest.mark.skipif(os.name != "posix", reason="pipes as in POSIX")
def test_broken_pipe(files: Files) -> None:
    assert_broken_pipe("inspect", files.payload)
    assert_broken_pipe("--help")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_standard_output_full(files: Files) -> None:
    with open("/dev/full", "wb") as full, start("inspect", files.payload, stdout=full) as process:
        _, err = process.communicate()
    assert (process.returncode, err) == (1, b"resfed-codec: error: No space left on device\n")


@pytest.mark.skipif(os.name != "posix", reason="named pipes and signals")
def test_interrupt(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with start("inspect", pipe, stdout=subprocess.PIPE) as process:
        end = os.open(pipe, os.O_WRONLY)  # waits until the command reads from it
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        os.close(end)
    assert (process.returncode, out, err) == (130, b"", b"")


# demo


@pytest.fixture
def demo_packages() -> None:
    for name in ("sklearn", "matplotlib", "rich"):
        pytest.importorskip(name)


@pytest.mark.usefixtures("demo_packages")
def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "plot.svg"
    assert main(f"demo --rounds 2 --clients 3 --sparsity 0.9 --seed 5 --plot {plot}".split()) == 0
    out = capsys.readouterr().out
    assert "3 clients" in out
    assert "sparsity 0.9" in out
    assert "rounds: 2" in out
    assert f"{plot}" in out
    assert "<svg" in plot.read_text(encoding="utf-8")


@pytest.mark.usefixtures("demo_packages")
def test_demo_quiet_without_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--rounds", "1", "--clients", "3", "--no-plot", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="pipes as in POSIX")
@pytest.mark.usefixtures("demo_packages")
def test_demo_broken_pipe() -> None:
    assert_broken_pipe("demo", "--rounds", "1", "--clients", "3", "--no-plot")


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("demo", {}),
        (
            "demo --rounds 7 --clients 4 --sparsity 0.5 --seed 9 --plot p.png --quiet",
            {"rounds": 7, "clients": 4, "sparsity": 0.5, "seed": 9, "plot": Path("p.png")}
            | {"quiet": True},
        ),
        ("demo --no-plot", {"plot": None}),
    ],
)
def test_demo_arguments(
    monkeypatch: pytest.MonkeyPatch, line: str, changed: dict[str, Any]
) -> None:
    given: dict[str, Any] = {}
    defaults = dict(demo.run.__kwdefaults__ or {})
    monkeypatch.setattr(demo, "run", lambda **kwargs: given.update(kwargs))
    assert main(line.split()) == 0
    assert given == defaults | changed


def test_demo_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_fails(["demo", "--rounds", "0"], capsys, "rounds")
    assert_fails(["demo", "--clients", "1"], capsys, "clients")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert_fails(["demo"], capsys, "sklearn", 'pip install "resfed-codec[demo]"')
