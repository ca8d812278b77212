"""Updates for the comparison: real ones from training snapshots, and synthetic ones of any size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import is_matrix, load_snapshots
from benchmarks.peers.base import Update
from resfed_codec.cli.bench import COLUMNS, Like, synthetic_update


@dataclass(frozen=True)
class Source:
    """The source of an update; :meth:`load` returns the same update in any process.

    ``path`` names snapshots and ``pair`` two of them, reference and new model. Without a path the
    update is synthetic, with about ``n_elems`` elements, and ``like`` a kind of real one.
    """

    path: Path | None = None
    pair: tuple[str, str] = ("", "")
    n_elems: int = 0
    like: Like = "transformer"

    @property
    def is_real(self) -> bool:
        return self.path is not None

    @property
    def name(self) -> str:
        if self.path is None:
            return f"synthetic {self.like}, {short(self.n_elems)}"
        return f"{self.path.stem}, {self.pair[0]} to {self.pair[1]}"

    def columns(self, update: Update) -> dict[str, Any]:
        """The first columns of a table's row."""
        data = "real" if self.is_real else "synthetic"
        return {"update": self.name, "data": data, "parameters": update.n_elems}

    def load(self) -> Update:
        """The float32 matrices (tensors of two dimensions or more), sorted by name."""
        if self.path is None:
            return Update(*synthetic_update(self.n_elems, like=self.like))
        snapshots = load_snapshots(self.path)
        reference, state = (snapshots[prefix] for prefix in self.pair)
        names = sorted(n for n, v in reference.items() if is_matrix(v) and v.dtype == np.float32)
        return Update(
            {n: np.ascontiguousarray(state[n]) for n in names},
            {n: np.ascontiguousarray(reference[n]) for n in names},
        )


def short(n: int) -> str:
    """62 k, 25 M, and so on."""
    return f"{n / 1e6:g} M" if n >= 1_000_000 else f"{n / 1e3:g} k"


def updates_in(path: Path) -> list[Source]:
    """Updates up and down in every second round of a file of snapshots.

    Keys are ``g4|name`` for the global model of round 4, ``l0_5|name`` for the model that client 0
    trains from it in round 5. The update down leads to ``g5``, or to ``s5`` if the file has it,
    because the server then sent another model than clients recovered.
    """
    with np.load(path) as data:
        prefixes = {key.split("|", 1)[0] for key in data.files}
    rounds = sorted(int(p[1:]) for p in prefixes if p[0] == "g" and p[1:].isdigit())
    found = []
    for t in rounds[::2]:
        down = f"s{t + 1}" if f"s{t + 1}" in prefixes else f"g{t + 1}"
        found += [Source(path, (f"g{t}", p)) for p in (f"l0_{t + 1}", down) if p in prefixes]
    return found


def made_up(n_elems: int) -> list[Source]:
    """An update of every synthetic kind."""
    return [Source(n_elems=n_elems, like=like) for like in COLUMNS]
