"""Shared by the benchmarks: snapshots, and the metadata of every result."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import resfed_codec as rfc
from resfed_codec import _native

Model = dict[str, NDArray[Any]]
RESULTS = Path(__file__).parent / "results"


def load_snapshots(path: Path) -> dict[str, Model]:
    """Models by prefix, from an .npz with keys ``prefix|tensor.name``."""
    models: dict[str, Model] = {}
    with np.load(path) as data:
        for key in data.files:
            prefix, name = key.split("|", 1)
            models.setdefault(prefix, {})[name] = data[key]
    return models


def updates_in(models: dict[str, Model]) -> list[tuple[str, str]]:
    """Reference and state of every update: uplinks ``l0_t``, and downlinks ``s_t`` or else ``g_t``.

    benchmarks/small_federation.py explains the prefixes.
    """
    found = []
    for prefix in sorted(models):
        number = int(prefix.split("_")[-1].lstrip("gs"))
        arrived = prefix.startswith("g") and f"s{number}" in models
        if f"g{number - 1}" in models and not arrived:
            found.append((f"g{number - 1}", prefix))
    return found


def is_matrix(value: NDArray[Any]) -> bool:
    return value.ndim >= 2


def relative_squared_error(
    state: Model, reference: Model, recovered: Model, names: list[str]
) -> float:
    """sum (state - recovered)^2 / sum (state - reference)^2 over the named tensors, in float64."""
    left = total = 0.0
    for name in names:
        x = state[name].astype(np.float64)
        left += float(np.square(x - recovered[name]).sum())
        total += float(np.square(x - reference[name]).sum())
    return left / total if total else 0.0


def stamp() -> dict[str, str]:
    """Machine, versions, command, commit and date; file names without folders."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        cpu = f"{lines[0].split(': ')[1]}, {len(lines)} cores" if lines else cpu
    cpu += f", {_native.kernels()}"  # the instructions that the codec uses
    versions = [f"Python {platform.python_version()}", f"NumPy {np.__version__}"]
    if "torch" in sys.modules:
        versions.append(f"torch {sys.modules['torch'].__version__}")
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program = module.name.removesuffix(".__main__") if module else "?"
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    return {
        "machine": cpu,
        "versions": ", ".join([f"resfed_codec {rfc.__version__}", *versions]),
        "command": " ".join(["python -m", program, *words]),
        "commit": _git_commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _git_commit() -> str:
    """The measured commit, with "-dirty" if files other than results have changes."""
    root = Path(__file__).parents[1]

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", *args], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_results(
    name: str, title: str, rows: list[dict[str, Any]], note: str = "", folder: Path = RESULTS
) -> str:
    """Write FOLDER/NAME.md; return the Markdown.

    ``rows`` all have the same keys, which become the columns. None stands for what there is not.
    """
    where = stamp()
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"# {title}", "\n".join(f"- {key}: `{value}`" for key, value in where.items())]
    text = "\n\n".join([*parts, markdown_table(rows), *([note] if note else [])]) + "\n"
    (folder / f"{name}.md").write_text(text)
    return text


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """A table whose columns are the keys that all rows have."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row[c]) for c in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
