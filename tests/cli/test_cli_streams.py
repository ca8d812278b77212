"""The command line with standard input and output, and with models in several files."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import resfed_codec as rfc
from resfed_codec.cli.main import main

pytest.importorskip("safetensors")
from safetensors import safe_open
from safetensors.numpy import load, load_file, save_file

from cli_files import METADATA, Files, assert_fails, assert_same, bfloat16_words, model, write_raw


def run(*argv: str | Path, given: bytes = b"") -> tuple[int, bytes, str]:
    command = [sys.executable, "-m", "resfed_codec.cli", *map(str, argv)]
    done = subprocess.run(command, input=given, capture_output=True, check=False)
    return done.returncode, done.stdout, done.stderr.decode()


# Standard input and output


def test_each_file_may_be_standard_input_or_output(files: Files) -> None:
    new, old, payload = (path.read_bytes() for path in (files.new, files.old, files.payload))
    code, out, err = run("encode", "-", "-r", files.old, "-o", "-", given=new)
    assert (code, out) == (0, payload)
    assert err.startswith(f"{len(payload):,} bytes, "), "the report"
    assert run("encode", files.new, "-r", "-", "-o", "-", "--quiet", given=old) == (0, payload, "")

    expected = rfc.decode(payload, model(0))
    for argv, given in (
        (["-", "-r", files.old], payload),
        ([files.payload, "-r", "-"], old),
    ):
        code, out, err = run("decode", *argv, "-o", "-", given=given)
        assert (code, err) == (0, "")
        assert_same(load(out), expected)
    text = f"{rfc.inspect(payload)}\n"
    assert run("inspect", "-", given=payload) == (0, text.encode(), "")
    bench = ["bench", "--pair", "-", files.old, "--turns", "1", "--json"]
    code, out, err = run(*bench, given=new)
    assert (code, err) == (0, "")
    json.loads(out)


def test_a_pipeline(files: Files) -> None:
    program = f"{sys.executable} -m resfed_codec.cli"
    line = (
        f"cat {files.new} | {program} encode - -r {files.old} -o - --quiet"
        f" | {program} decode - -r {files.old} -o -"
    )
    done = subprocess.run(["sh", "-c", line], capture_output=True, check=True)
    assert_same(load(done.stdout), rfc.decode(files.payload.read_bytes(), model(0)))


def test_bfloat16_from_standard_input(files: Files) -> None:
    pytest.importorskip("torch")
    write_raw(files.new, "BF16", bfloat16_words(1))
    write_raw(files.old, "BF16", bfloat16_words(0))
    assert main(files.encode(files.payload)) == 0
    given = files.new.read_bytes()
    code, out, _ = run("encode", "-", "-r", files.old, "-o", "-", given=given)
    assert (code, out) == (0, files.payload.read_bytes())


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_standard_input_twice(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = "standard input (-) can be one input only"
    assert_fails([command, "-", "-r", "-", "-o", "out"], capsys, message)
    assert_fails(["bench", "--pair", "-", "-"], capsys, message)


def test_errors_in_standard_input(files: Files) -> None:
    for argv in (
        ["inspect", "-"],
        ["decode", "-", "-r", files.old, "-o", "-"],
        ["encode", "-", "-r", files.old, "-o", "-"],
    ):
        code, out, err = run(*argv, given=b"nonsense")
        assert (code, out) == (1, b"")
        assert err.startswith("resfed-codec: error: standard input")
        assert err.count("\n") == 1


def test_a_terminal_gets_no_bytes(files: Files) -> None:
    mine, theirs = pty.openpty()
    command = [sys.executable, "-m", "resfed_codec.cli", *files.encode(Path("-"))]
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True, check=False)
    os.close(theirs)
    os.close(mine)
    assert done.returncode == 1
    assert "standard output is a terminal" in done.stderr


# Sharded models

SHARDS = {
    "model-00001-of-00002.safetensors": ["net.weight", "half"],
    "model-00002-of-00002.safetensors": ["net.bias", "mask", "steps", "empty"],
}
INDEX = "model.safetensors.index.json"


def sharded(folder: Path, tensors: dict[str, Any], *, index: bool = True) -> Path:
    folder.mkdir()
    for file, names in SHARDS.items():
        save_file({name: tensors[name] for name in names}, folder / file, METADATA)
    if index:
        listed = {name: file for file, names in SHARDS.items() for name in names}
        (folder / INDEX).write_text(
            json.dumps({"metadata": {"total_size": 1}, "weight_map": listed})
        )
    return folder


@pytest.mark.parametrize("index", [True, False])
def test_sharded_models(files: Files, index: bool) -> None:
    new = sharded(files.folder / "new", model(1), index=index)
    old = sharded(files.folder / "old", model(0), index=index)
    payload, output = files.folder / "update.rfd", files.folder / "received"
    assert main(["encode", f"{new}", "-r", f"{old}", "-o", f"{payload}"]) == 0
    assert payload.read_bytes() == files.payload.read_bytes()
    assert main(["decode", f"{payload}", "-r", f"{old}", "-o", f"{output}"]) == 0
    expected = rfc.decode(payload.read_bytes(), model(0))
    assert {path.name for path in output.iterdir()} == {path.name for path in old.iterdir()}
    for file, names in SHARDS.items():
        assert_same(load_file(output / file), {name: expected[name] for name in names})
        with safe_open(output / file, "numpy") as opened:
            assert opened.metadata() == METADATA
    if index:
        assert (output / INDEX).read_bytes() == (old / INDEX).read_bytes()
    assert not list(files.folder.glob(".*")), "a temporary folder was left"


def test_an_index_and_one_file(files: Files) -> None:
    """A sharded model and one in one file are the same model."""
    old = sharded(files.folder / "old", model(0))
    output = files.folder / "out.safetensors"
    argv = ["decode", f"{files.payload}", "-r", f"{old / INDEX}", "-o", f"{output}"]
    assert main(argv) == 0
    assert_same(load_file(output), rfc.decode(files.payload.read_bytes(), model(0)))
    code, out, _ = run(*argv[:-1], "-")
    assert code == 0
    assert_same(load(out), load_file(output))  # the order of metadata in the header may differ
    assert (
        main(["decode", f"{files.payload}", "-r", f"{old}", "-o", f"{files.folder / 'new'}"]) == 0
    )
    assert (files.folder / "new").is_dir()


def test_a_folder_is_not_written_over(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    old = sharded(files.folder / "old", model(0))
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    decode = ["decode", f"{files.payload}", "-r", f"{old}", "-o"]
    other = files.folder / "other"
    other.mkdir()
    (other / "kept").write_bytes(b"as it was")
    assert_fails([*decode, f"{old}"], capsys, f"{old}: is an input")
    assert_fails([*decode, f"{other}"], capsys, f"{other}: Directory not empty")
    for name in before:
        assert_fails([*decode, f"{old / name}"], capsys, f"{name}: is an input")
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before
    assert [path.name for path in other.iterdir()] == ["kept"]
    assert not list(files.folder.glob(".*"))


def second_index(folder: Path) -> None:
    (folder / "other.safetensors.index.json").write_text("{}")


def no_shard(folder: Path) -> None:
    (folder / min(SHARDS)).unlink()


def no_tensor(folder: Path) -> None:
    save_file({"half": model(0)["half"]}, folder / min(SHARDS))


def twice(folder: Path) -> None:
    (folder / INDEX).unlink()
    save_file({"half": model(0)["half"]}, folder / "more.safetensors")


def index_of(text: str) -> Any:
    return lambda folder: (folder / INDEX).write_text(text)


BROKEN = [
    (second_index, ["old: has several indexes (model.safetensors.index.json, other"]),
    (no_shard, ["model-00001-of-00002.safetensors: No such file"]),
    (no_tensor, ["model-00001-of-00002.safetensors lacks tensor 'net.weight'"]),
    (twice, ["more.safetensors: tensor 'half' is in model-00001-of-00002.safetensors, too"]),
    (index_of("no json"), [INDEX, "not an index of .safetensors files"]),
    (index_of("[]"), [INDEX, "not an index of .safetensors files"]),
    (index_of('{"weight_map": {"w": "../w"}}'), [INDEX, "'../w' is not the name of a file"]),
    (index_of('{"weight_map": {"w": 3}}'), [INDEX, "3 is not the name of a file"]),
]


@pytest.mark.parametrize(("spoil", "parts"), BROKEN)
def test_broken_shards(
    files: Files, capsys: pytest.CaptureFixture[str], spoil: Any, parts: list[str]
) -> None:
    old = sharded(files.folder / "old", model(0))
    spoil(old)
    argv = ["decode", f"{files.payload}", "-r", f"{old}", "-o", f"{files.folder / 'out'}"]
    assert_fails(argv, capsys, *parts)
    assert not (files.folder / "out").exists()
