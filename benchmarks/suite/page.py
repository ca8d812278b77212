"""The page that sums the comparison up, and its figures, from the JSON files of the tables."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from benchmarks.common import markdown_table
from benchmarks.peers import OURS
from benchmarks.suite import figures, scale, targets

PICTURES = (
    "<!-- pictures, made by `python -m benchmarks --docs` -->",
    "<!-- end of pictures -->",
)
TABLES = ("<!-- tables, made by `python -m benchmarks --docs` -->", "<!-- end of tables -->")
STAMP = ("machine", "versions", "command", "commit", "date")


class Page(NamedTuple):
    """Both as Markdown whose links are relative to the folder of the tables."""

    pictures: str
    tables: str

    def __str__(self) -> str:
        return f"# Beside other codecs\n\n{self.pictures}\n\n{self.tables}\n"


def make(folder: Path) -> Page:
    """Draw the figures and sum up. Tables that are not there (``peers_*.json``) are passed over."""
    sections = {
        "error": ("Equal error", _error),
        "integers": ("Identical integers", _integers),
        "scale": ("Size of the model", _scale),
        "memory": ("Memory", _memory),
        "residuals": ("How residuals cluster", _residuals),
    }
    pictures, tables = [], []
    for part, (title, section) in sections.items():
        path = folder / f"peers_{part}.json"
        if path.exists():
            document = json.loads(path.read_text())
            drawn, text = section(folder, document["rows"])
            pictures += [f"![{caption}]({name}.png)\n\n*{caption}*" for name, caption in drawn]
            where = "; ".join(document[key] for key in STAMP)
            source = f"All figures: [peers_{part}.md](peers_{part}.md) ({where})."
            tables += [f"## {title}", *text, source]
    return Page("\n\n".join(pictures), "\n\n".join(tables))


def fill(document: Path, page: Page, folder: Path) -> None:
    """Put pictures and tables between their marks in a document, with links that hold there.

    Raises:
        ValueError: The document lacks marks.
    """
    text = document.read_text()
    place = Path(os.path.relpath(folder, document.parent)).as_posix()
    for (begin, end), part in ((PICTURES, page.pictures), (TABLES, page.tables)):
        head, found, rest = text.partition(begin)
        _, found_too, tail = rest.partition(end)
        if not found or not found_too:
            raise ValueError(f"{document}: lacks the marks {begin} and {end}")
        part = part.replace("](peers_", f"]({place}/peers_").replace("## ", "#### ")
        text = f"{head}{begin}\n\n{part}\n\n{end}{tail}"
    document.write_text(text)


Section: TypeAlias = tuple[list[tuple[str, str]], list[str]]
"""Figures with their captions, and text."""


def _error(folder: Path, rows: list[targets.Row]) -> Section:
    figures.equal_error(rows, folder / "peers_error.png")
    figures.times(rows, folder / "peers_times.png")
    drawn = [
        ("peers_error", "Bytes over the error that is left, for each update"),
        ("peers_times", "Times at equal error, sparsity 0.99; lines are least and greatest"),
    ]
    text = [*_table(targets.error_goals(rows)), *_means(rows), *_table(targets.times(rows, 0.99))]
    return drawn, text


def _integers(folder: Path, rows: list[targets.Row]) -> Section:
    figures.identical_integers(rows, folder / "peers_integers.png")
    drawn = [("peers_integers", "Our bytes over those of others, for identical integers")]
    return drawn, [*_table(targets.integer_goals(rows)), *_means(rows)]


def _means(rows: list[targets.Row]) -> list[str]:
    """A table of means for each model, the real ones first."""
    models = dict.fromkeys(targets.model_of(r) for r in rows)
    return [
        markdown_table(targets.means([r for r in rows if targets.model_of(r) == model], model))
        for model in models
    ]


def _scale(folder: Path, rows: list[targets.Row]) -> Section:
    fits = []
    for peer, column, factor, unit in (
        (OURS, "encode ms", 1e6, "ns"),
        (scale.IN_PLACE, "decode ms", 1e6, "ns"),
        (OURS, "bytes", 1.0, "bytes"),
    ):
        if len({r["parameters"] for r in rows}) > 1:
            fixed, slope = scale.fit(rows, peer, column)
            fits.append(f"{peer}: {column} = {fixed:.3g} + {factor * slope:.3g} {unit}/parameter")
    figures.scale(rows, folder / "peers_scale.png", fits)
    drawn = [("peers_scale", "Times and bytes over the number of parameters, sparsity 0.99")]
    text = [
        "Fixed cost and cost for each parameter, at sparsity 0.99, one thread:",
        "\n".join(f"- {line}" for line in fits),
        *_table(scale.summary(rows)),
    ]
    return drawn, text


def _memory(folder: Path, rows: list[targets.Row]) -> Section:
    figures.memory(rows, folder / "peers_memory.png")
    names = dict.fromkeys(row["peer"] for row in rows)
    updates = dict.fromkeys(row["update"] for row in rows)
    found = {(row["peer"], row["update"]): row["bytes per parameter"] for row in rows}
    table = [
        {"bytes per parameter beyond the models": name}
        | {update: found.get((name, update)) for update in updates}
        for name in names
    ]
    return [("peers_memory", "Memory of encoding, beyond the two models")], _table(table)


def _residuals(folder: Path, rows: list[targets.Row]) -> Section:
    keys = ("update", "sparsity", "directly", "same sign", "bits per nonzero")
    chosen = [{key: row[key] for key in keys} for row in rows if row["sparsity"] in (0.95, 0.99)]
    return [], _table(chosen)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    return [markdown_table(rows)] if rows else []
