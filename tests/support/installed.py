"""Test an installed wheel in an environment with only NumPy:

    python tests/support/installed.py

Run it with the environment's Python; it needs no test runner. `make wheel-test` and the wheel
builds of a release run it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import resfed_codec as rfc

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))


def command(*arguments: str) -> tuple[int, str]:
    """Exit code and output of the installed command."""
    program = Path(sysconfig.get_path("scripts")) / "resfed-codec"
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def check_environment() -> None:
    for name in ("torch", "safetensors", "sklearn", "flwr", "nvflare"):
        assert find_spec(name) is None, f"{name} is installed: this says nothing of a bare install"
    installed = Path(sysconfig.get_path("platlib"))
    assert installed in Path(rfc.__file__).parents, f"{rfc.__file__} is not the installed package"


def check_metadata() -> None:
    distribution = metadata.distribution("resfed-codec")
    assert distribution.version == rfc.__version__
    files = {str(file) for file in distribution.files or []}
    assert {"resfed_codec/py.typed", "resfed_codec/_native.pyi"} <= files
    assert any(file.endswith("licenses/LICENSE") for file in files)
    folders = {file.split("/")[0] for file in files} - {"resfed_codec", ".."}
    assert all(folder.endswith(".dist-info") for folder in folders), folders


def check_nothing_imports_torch() -> None:
    code = """
import numpy as np, resfed_codec as rfc, resfed_codec.cli.main
a, b = np.zeros((9, 9), "f4"), np.ones((9, 9), "f4")
rfc.inspect(rfc.encode([b], [a])); rfc.decode(rfc.encode([b], [a]), [a])
rfc.Decoder([a]).decode(rfc.Encoder([a]).encode([b]))
"""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "torch.py").write_text("raise SystemExit('torch was imported')")
        subprocess.run(
            [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": folder}
        )


def check_golden_payloads() -> None:
    make = import_module("make")
    for name, (state, reference, options) in make.cases().items():
        payload = (make.FOLDER / f"{name}.rfd").read_bytes()
        assert rfc.encode(state, reference, **options) == payload, name
        decoded = make.arrays_of(rfc.decode(payload, reference))
        with np.load(make.FOLDER / f"{name}.npz") as stored:
            for i, array in enumerate(decoded):
                expected = stored[f"arr_{i}"]
                assert np.asarray(array).tobytes() == expected.tobytes(), f"{name}, tensor {i}"
        assert rfc.inspect(payload).n_bytes == len(payload)


def check_golden_keyframes() -> None:
    make = import_module("make_keyframes")
    for name, (state, options) in make.cases().items():
        payload = (make.FOLDER / f"{name}.rfk").read_bytes()
        assert rfc.encode_keyframe(state, **options) == payload, name
        decoded = rfc.decode_keyframe(payload, state)
        with np.load(make.FOLDER / f"{name}.npz") as stored:
            assert all(decoded[n].tobytes() == stored[n].tobytes() for n in state), name


def check_sessions() -> None:
    first = {"w": np.zeros((40, 30), np.float32)}
    server, client = rfc.ServerSession(first), rfc.ClientSession(first)
    server.update({"w": np.arange(1200, dtype=np.float32).reshape(40, 30)})
    model = client.receive(server.send("ada"))
    assert model["w"].tobytes() == server.state["w"].tobytes()
    mean = server.aggregator()
    assert server.receive_into("ada", client.send({"w": model["w"] + 1}), mean)
    assert mean.result()["w"].shape == (40, 30)


def check_the_command() -> None:
    assert command("--version") == (0, f"resfed-codec {rfc.__version__}\n")
    for name in ("encode", "decode", "inspect", "bench", "demo"):
        code, text = command(name, "--help")
        assert code == 0, text
        assert text.startswith(f"usage: resfed-codec {name}"), text
    code, text = command("inspect", str(GOLDEN / "v1" / "default.rfd"))
    assert (code, "checksum" in text) == (0, True), text
    code, text = command("bench", "--elements", "100000", "--turns", "1")
    assert (code, "in place" in text) == (0, True), text


def check_what_is_missing_is_named() -> None:
    code, text = command("demo")
    assert (code, 'pip install "resfed-codec[demo]"' in text) == (1, True), text
    code, text = command("encode", "a", "-r", "b", "-o", "c")
    assert (code, 'pip install "resfed-codec[cli]"' in text) == (1, True), text
    for framework in ("flower", "nvflare"):
        code = f"import resfed_codec.integrations.{framework}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 1
        assert f"pip install 'resfed-codec[{framework}]'" in done.stderr, done.stderr


def main() -> int:
    checks = [value for name, value in globals().items() if name.startswith("check_")]
    for check in checks:
        check()
        print(f"{check.__name__.replace('_', ' ')}: as it should be", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
