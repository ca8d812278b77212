"""Errors of the command line: messages, exit codes, and atomic output files."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import resfed_codec as rfc
from resfed_codec.cli.main import main

pytest.importorskip("safetensors")
from safetensors.numpy import load_file, save_file

from cli_files import Files, assert_fails, assert_same, model, start, write_raw

# Errors


def nan_in_new(files: Files) -> None:
    broken = model(1)
    broken["net.weight"][0, 3] = np.nan
    save_file(broken, files.new)


def damaged(files: Files) -> None:
    data = bytearray(files.payload.read_bytes())
    data[len(data) // 2] ^= 1
    files.payload.write_bytes(data)


def folder_as_model(files: Files) -> None:
    files.old.unlink()
    files.old.mkdir()


def other_layout(files: Files) -> None:
    save_file({"w": np.zeros(3)}, files.old)


BROKEN: list[tuple[str, Callable[[Files], object], list[str]]] = [
    ("encode", nan_in_new, ["'net.weight'", "index 3", "finite"]),
    ("encode", other_layout, ["lacks", "'w'"]),
    ("decode", lambda f: save_file(model(2), f.old), ["another reference"]),
    ("decode", other_layout, ["another layout"]),
    ("decode", damaged, ["payload: damaged"]),
    ("encode", lambda f: f.new.write_bytes(bytes(50)), ["new.safetensors", "safetensors file"]),
    (
        "encode",
        lambda f: write_raw(f.new, "F8_E4M3", np.zeros((2, 3), np.uint8)),
        ["new.safetensors", "'w'", "F8_E4M3"],
    ),
    ("encode", lambda f: f.new.unlink(), ["new.safetensors: No such file"]),
    ("decode", lambda f: f.payload.unlink(), ["payload: No such file"]),
    ("decode", folder_as_model, ["old.safetensors: a folder without .safetensors files"]),
]


@pytest.mark.parametrize(("command", "spoil", "parts"), BROKEN)
def test_broken_files(
    files: Files,
    capsys: pytest.CaptureFixture[str],
    command: str,
    spoil: Callable[[Files], object],
    parts: list[str],
) -> None:
    spoil(files)
    before = files.names()
    assert_fails(getattr(files, command)(), capsys, *parts)
    assert files.names() == before


def test_output_that_cannot_be_written(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    before = files.names()
    missing = os.path.join("missing", "out: No such file")
    assert_fails(files.encode(files.folder / "missing" / "out"), capsys, missing)
    assert_fails(files.decode(files.folder), capsys, "Is a directory")
    assert files.names() == before


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ("--max-bytes 5", ["max_bytes", "too small"]),
        ("--max-bytes 0", ["max_bytes=0"]),
        ("--sparsity 1.5", ["sparsity=1.5"]),
        ("--sparsity nan", ["sparsity=nan"]),
        ("--max-error 0", ["max_error=0"]),
        ("--bits 17", ["bits=17"]),
        ("--step 1e9", ["step=1"]),
        ("--exclude nothing*", ["'nothing*'"]),
        ("--threads 0", ["--threads", "0"]),
    ],
)
def test_options_out_of_range(
    files: Files, capsys: pytest.CaptureFixture[str], options: str, parts: list[str]
) -> None:
    before = files.names()
    assert_fails(files.encode(None, *options.split()), capsys, *parts)
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


def test_demo_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_fails(["demo", "--rounds", "0"], capsys, "rounds")
    assert_fails(["demo", "--clients", "1"], capsys, "clients")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert_fails(["demo"], capsys, "sklearn", 'pip install "resfed-codec[demo]"')


# Atomic output files


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
    output = files.folder / "out"
    output.write_bytes(b"as it was")
    assert main(files.decode(output)) == 0
    assert_same(load_file(output), rfc.decode(files.payload.read_bytes(), model(0)))


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("encode", ["new.safetensors", "old.safetensors"]),
        ("decode", ["payload", "old.safetensors"]),
    ],
)
@pytest.mark.parametrize("by", ["name", "link", "other spelling"])
def test_inputs_are_not_written_over(
    files: Files, capsys: pytest.CaptureFixture[str], command: str, names: list[str], by: str
) -> None:
    for name in names:
        given = files.folder / name
        before = given.read_bytes()
        output = files.folder / ".." / files.folder.name / name if by == "other spelling" else given
        if by == "link":
            output = files.folder / f"link to {name}"
            output.symlink_to(given)
        assert_fails(getattr(files, command)(output), capsys, f"{output}: is an input")
        assert given.read_bytes() == before


@pytest.mark.parametrize(
    ("command", "spoil", "names"),
    [
        ("encode", nan_in_new, ["new", "old"]),
        ("encode", other_layout, ["new", "old"]),
        ("decode", damaged, ["payload", "old"]),
        ("decode", lambda f: save_file(model(2), f.old), ["payload", "old"]),
        ("inspect", damaged, ["payload"]),
    ],
)
def test_errors_name_the_files(
    files: Files,
    capsys: pytest.CaptureFixture[str],
    command: str,
    spoil: Callable[[Files], object],
    names: list[str],
) -> None:
    spoil(files)
    inspect = ["inspect", f"{files.payload}"]
    argv = inspect if command == "inspect" else getattr(files, command)()
    paths = ", ".join(f"{getattr(files, name)}" for name in names)
    assert_fails(argv, capsys, f"resfed-codec: error: {paths}: ")


def test_warnings_are_lines_on_standard_error(files: Files) -> None:
    save_file({**model(1), "lr": np.float32([0.1])}, files.new)
    save_file({**model(0), "lr": np.float32([0.2])}, files.old)
    with start(*files.encode(None, "--quiet"), stdout=subprocess.PIPE) as process:
        out, err = process.communicate()
    assert (process.returncode, out) == (0, b"")
    assert err.startswith(b"resfed-codec: warning: tensor 'lr' looks like an optimizer's state")
    assert err.count(b"\n") == 1


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


# Interrupts, pipes, and the module as a script


def test_as_script(files: Files) -> None:
    with start("inspect", files.payload, stdout=subprocess.PIPE) as process:
        out, err = process.communicate()
    text = str(rfc.inspect(files.payload.read_bytes()))
    assert (process.returncode, out.decode().split("\n"), err) == (0, [*text.split("\n"), ""], b"")
    with start("inspect", files.new, stdout=subprocess.PIPE) as process:
        out, err = process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert err.startswith(f"resfed-codec: error: {files.new}: payload: ".encode())
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


@pytest.mark.skipif(os.name != "posix", reason="pipes as in POSIX")
def test_demo_broken_pipe() -> None:
    for name in ("sklearn", "matplotlib", "rich"):
        pytest.importorskip(name)
    assert_broken_pipe("demo", "--rounds", "1", "--clients", "3", "--no-plot")
