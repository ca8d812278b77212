"""Tests of benchmarks/gpu.py and gpu_check.sh that need no GPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
from benchmarks import gpu

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_check.sh"


@pytest.mark.parametrize(
    ("signature", "name"),
    [
        (
            "resfed::cuda::(anonymous namespace)::collect_chunks(resfed::cuda::DeviceGroup, bool)",
            "collect_chunks",
        ),
        ("resfed::cuda::<unnamed>::place_chunks(Chunk*, unsigned long)", "place_chunks"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::Add<float> >(int)",
         "vectorized_elementwise_kernel"),
        ("Memcpy DtoH (Device -> Pinned)", "Memcpy DtoH (Device -> Pinned)"),
    ],
)  # fmt: skip
def test_names_of_kernels(signature: str, name: str) -> None:
    assert gpu.kernel_name(signature) == name


def test_a_failing_profiler_does_not_lose_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def profiled(*args: Any) -> Any:
        raise RuntimeError("CUPTI is not there")

    monkeypatch.setattr(gpu, "profiled", profiled)
    assert gpu.kernels("a model", ({}, {}), 0.99) == []
    assert "CUPTI is not there" in capsys.readouterr().out


def test_limits_add_up_to_less_than_nine_minutes() -> None:
    script = SCRIPT.read_text()
    (tools,) = re.findall(r"for tool in (.*); do", script)
    steps = re.findall(r"^ *step (\S+) (\d+) ", script, re.MULTILINE)
    limits = {name.strip('"'): int(seconds) for name, seconds in steps}
    limits["$tool"] = limits["$tool"] * len(tools.split())
    assert sum(limits.values()) <= 530
    assert "initcheck" in tools
    wanted = ["build", "tests", "speed", "$tool"]
    order = [name.strip('"') for name, _ in steps if name.strip('"') in wanted]
    assert list(dict.fromkeys(order)) == wanted


def test_speed_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["gpu", "--device", "cpu", "--elements", "4096", "--turns", "1"]
    arguments += ["--sparsity", "0.99", "--dtypes", "float32", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    gpu.main()
    assert "decode, in place" in (tmp_path / "gpu.md").read_text()
