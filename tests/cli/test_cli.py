"""The command line: results, output and options of each command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc
from resfed_codec.cli import demo
from resfed_codec.cli import main as cli
from resfed_codec.cli.main import main

pytest.importorskip("safetensors")
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from cli_files import METADATA, Files, assert_fails, assert_same, bfloat16_words, model, write_raw

COMMANDS = ["encode", "decode", "inspect", "bench", "demo"]


# encode and decode


def test_round_trip(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    before = files.names()
    update, recovered = files.folder / "update.rfd", files.folder / "recovered.safetensors"
    assert main(files.encode(update)) == 0
    payload = update.read_bytes()
    assert payload == rfc.encode(model(1), model(0))
    out, err = capsys.readouterr()
    n_bytes = sum(array.nbytes for array in model(1).values())
    assert err == (
        f"{len(payload):,} bytes, {n_bytes / len(payload):.1f} times smaller than the"
        f" {n_bytes:,} bytes of the tensors\n"
    )
    assert out == ""

    argv = ["decode", f"{update}", "-r", f"{files.old}", "--output", f"{recovered}"]
    assert main(argv) == 0
    assert capsys.readouterr() == ("", "")
    assert_same(load_file(recovered), rfc.decode(payload, model(0)))
    with safe_open(recovered, "numpy") as file:
        assert file.metadata() == METADATA
    assert files.names() == before | {"update.rfd", "recovered.safetensors"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--sparsity 0.5", {"sparsity": 0.5}),
        ("--max-bytes 400", {"max_bytes": 400}),
        ("--max-error 0.25", {"max_error": 0.25}),
        ("--step 3.5", {"step": 3.5}),
        ("--bits 5", {"bits": 5}),
        ("--sparsity 0.9 --bits 3", {"sparsity": 0.9, "bits": 3}),
        ("--exclude=net.b*", {"exclude": ("net.b*",)}),
        ("--exclude net.b* --exclude half", {"exclude": ("net.b*", "half")}),
        ("--dense net.b*", {"dense": ("net.b*",)}),
        (
            "--dense net.b* --dense half --dense-bits 6",
            {"dense": ("net.b*", "half"), "dense_bits": 6},
        ),
    ],
)
def test_encode_options(files: Files, options: str, expected: dict[str, Any]) -> None:
    output = files.folder / "out"
    assert main(files.encode(output, *options.split())) == 0
    assert output.read_bytes() == rfc.encode(model(1), model(0), **expected)
    assert output.read_bytes() != files.payload.read_bytes()


def test_running_statistics_are_dense_by_default(files: Files) -> None:
    new, old = ({**model(seed), "n.running_var": model(seed)["net.bias"]} for seed in (1, 0))
    save_file(new, files.new)
    save_file(old, files.old)
    output = files.folder / "out"
    assert main(files.encode(output)) == 0
    assert output.read_bytes() == rfc.encode(new, old, dense="n.running_var")
    assert main([*files.encode(output), "--no-dense"]) == 0
    assert output.read_bytes() == rfc.encode(new, old, dense=())
    assert main([*files.encode(output), "--exclude", "*running*"]) == 0
    assert output.read_bytes() == rfc.encode(new, old, exclude="*running*")


def test_options_come_before_or_after_files(files: Files) -> None:
    output = files.folder / "out"
    command, new, *rest = files.encode(output)
    options = ["--exclude", "half", "--dense", "net.b*", "--bits", "4"]
    expected = rfc.encode(model(1), model(0), exclude="half", dense="net.b*", bits=4)
    for argv in ([command, *options, new, *rest], [command, *rest, *options, new]):
        assert main(argv) == 0
        assert output.read_bytes() == expected


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
def test_threads(files: Files, before: bool) -> None:
    threads = rfc.get_num_threads() + 3
    option = ["--threads", f"{threads}"]
    argv = files.encode()
    assert main(option + argv if before else argv + option) == 0
    assert rfc.get_num_threads() == threads


@pytest.mark.parametrize("hide_torch", [False, True])
def test_bfloat16(files: Files, monkeypatch: pytest.MonkeyPatch, hide_torch: bool) -> None:
    torch = pytest.importorskip("torch")  # also makes the expected results
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


def test_imports_no_large_packages() -> None:
    large = {"safetensors", "torch", "rich"}
    code = f"import sys, resfed_codec.cli.main; print({large} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# Help


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([option]) == 0
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
