"""runs.jsonl: all runs of a suite in one file; several processes may append to it.

Each line has the ``id`` of its run. A run begins with a header line with its ``config``, machine,
versions, command, commit and date; one line per round follows. A second header of the same run
restarts it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.federated.config import RunConfig

Line = dict[str, Any]

FILE = "runs.jsonl"


@dataclass
class Run:
    """The lines of one run."""

    header: Line
    rounds: dict[int, Line] = field(default_factory=dict)
    """Lines by round number. A round repeated after a stop counts once."""

    @property
    def config(self) -> RunConfig:
        """The configuration; settings that the file lacks have their defaults."""
        return RunConfig(**self.header["config"])

    @property
    def lines(self) -> list[Line]:
        return [self.rounds[number] for number in sorted(self.rounds)]

    @property
    def is_finished(self) -> bool:
        return len(self.rounds) == self.config.rounds


def read_runs(folder: Path) -> dict[str, Run]:
    """The runs of a folder by id, in the order of the file; empty without a file.

    Incomplete lines are ignored.
    """
    runs: dict[str, Run] = {}
    path = folder / FILE
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        name = line.pop("id")
        if "config" in line:
            runs[name] = Run(line)
        elif name in runs:
            runs[name].rounds[line["round"]] = line
    return runs


def append(folder: Path, name: str, line: Line) -> None:
    """Append a line of the run with this id, in one write.

    If a killed process left an incomplete line, a newline ends that line first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"id": name, **line}) + "\n"
    with (folder / FILE).open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        is_torn = size and os.pread(file.fileno(), 1, size - 1) != b"\n"
        file.write(("\n" * bool(is_torn) + text).encode())
