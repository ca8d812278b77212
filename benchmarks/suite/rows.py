"""The rows of a table as JSON, one per line, with the columns that page and figures need."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import stamp


def write(
    path: Path, title: str, rows: Sequence[dict[str, Any]], note: str, left_out: Sequence[str]
) -> None:
    """Write rows that all have the same keys; floats have six digits."""
    columns = list(rows[0])
    head = {"title": title, "note": note, **stamp(), "left_out": left_out, "columns": columns}
    lines = (json.dumps([_short(row[key]) for key in columns]) for row in rows)
    text = json.dumps(head, indent=1).removesuffix("\n}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{text},\n "rows": [\n' + ",\n".join(lines) + "\n ]\n}\n")


def read(path: Path) -> dict[str, Any]:
    """Read a file of :func:`write`; ``rows`` are dictionaries."""
    document: dict[str, Any] = json.loads(path.read_text())
    columns = document.pop("columns")
    document["rows"] = [dict(zip(columns, row, strict=True)) for row in document["rows"]]
    return document


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
