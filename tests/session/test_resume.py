"""A run that is killed and restarted sends the same bytes as an uninterrupted one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import resfed_codec as rfc
import resumable_run

N_KILLS = 3
DEADLINE = 60.0
"""Time limit of a run in seconds."""


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    source = Path(rfc.__file__).parent.parent
    return subprocess.Popen(
        [sys.executable, resumable_run.__file__, str(folder), *arguments],
        env={**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
    )


def n_bytes_logged(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.log"))


def killed(folder: Path, rng: np.random.Generator, *arguments: str) -> bool:
    """Start the run and kill it after a few more steps; False if it finished."""
    process = start(folder, *arguments)
    wanted = n_bytes_logged(folder) + int(rng.integers(1, 600))
    end = time.monotonic() + DEADLINE
    while n_bytes_logged(folder) < wanted and process.poll() is None:
        assert time.monotonic() < end, "no progress"
        time.sleep(0.0005)
    time.sleep(float(rng.uniform(0, 0.004)))
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode in (0, -signal.SIGKILL), errors.decode()
    return process.returncode != 0


def finish(folder: Path, *arguments: str) -> None:
    process = start(folder, *arguments)
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, errors.decode()
    assert (folder / "done").exists()


def steps_of(folder: Path, name: str) -> list[str]:
    """The log's lines without repeated ones."""
    lines: list[str] = []
    for line in (folder / f"{name}.log").read_text().splitlines():
        if line not in lines:
            lines.append(line)
    return lines


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize(
    ("rules", "feedback"),
    [
        ("history", "feedback"),
        pytest.param("default", "plain", marks=pytest.mark.slow),
        pytest.param("alone", "feedback", marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed(rules: str, feedback: str, tmp_path: Path) -> None:
    rng = np.random.default_rng([len(rules), len(feedback)])
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    resumable_run.main(whole, rules, feedback == "feedback")
    n_kills = sum(killed(broken, rng, rules, feedback) for _ in range(N_KILLS))
    assert n_kills > 0
    finish(broken, rules, feedback)
    for name in ("server", *resumable_run.CLIENTS):
        expected = steps_of(whole, name)
        assert len(expected) == len({line.split()[0] for line in expected})
        assert steps_of(broken, name) == expected, f"{name}, killed {n_kills} times"
        assert (broken / f"{name}.npz").read_bytes() == (whole / f"{name}.npz").read_bytes()
