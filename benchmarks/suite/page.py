"""The page that sums the comparison up, and its figures, from the JSON files of the tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.common import markdown_table
from benchmarks.peers import OURS
from benchmarks.suite import figures, scale, targets

BEGIN = "<!-- made by `python -m benchmarks --docs` from here -->"
END = "<!-- to here -->"
STAMP = ("machine", "versions", "command", "commit", "date")


def make(folder: Path) -> str:
    """Draw the figures and return the page, as Markdown whose links are relative to ``folder``.

    Tables that are not there (``peers_*.json``) are passed over.
    """
    sections = {
        "error": _error,
        "integers": _integers,
        "scale": _scale,
        "memory": _memory,
        "residuals": _residuals,
    }
    page = []
    for part, section in sections.items():
        path = folder / f"peers_{part}.json"
        if path.exists():
            document = json.loads(path.read_text())
            page += section(folder, document["rows"])
            where = "; ".join(document[key] for key in STAMP)
            page += [f"All figures: [peers_{part}.md](peers_{part}.md) ({where})."]
    return "\n\n".join(page) + "\n"


def fill(document: Path, page: str, folder: Path) -> None:
    """Put the page between the two marks of a document, one heading lower, with its links mended.

    Raises:
        ValueError: The document lacks the marks.
    """
    text = document.read_text()
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{document}: lacks the marks {BEGIN} and {END}")
    up = Path(*[".."] * len(document.resolve().parent.relative_to(Path.cwd()).parts))
    place = (up / folder.resolve().relative_to(Path.cwd())).as_posix()
    page = page.replace("](peers_", f"]({place}/peers_").replace("## ", "### ")
    document.write_text(f"{head}{begin}\n\n{page}\n{end}{tail}")


def _error(folder: Path, rows: list[targets.Row]) -> list[str]:
    figures.equal_error(rows, folder / "peers_error.png")
    figures.times(rows, folder / "peers_times.png")
    return [
        "## Equal error",
        "![bytes over error](peers_error.png)",
        "![times at equal error](peers_times.png)",
        *_table(targets.error_goals(rows)),
        *_means(rows),
        *_table(targets.times(rows, 0.99)),
    ]


def _integers(folder: Path, rows: list[targets.Row]) -> list[str]:
    figures.identical_integers(rows, folder / "peers_integers.png")
    return [
        "## Identical integers",
        "![our bytes over those of others](peers_integers.png)",
        *_table(targets.integer_goals(rows)),
        *_means(rows),
    ]


def _means(rows: list[targets.Row]) -> list[str]:
    """A table of means for each model, the real ones first."""
    models = dict.fromkeys(targets.model_of(r) for r in rows)
    return [
        markdown_table(targets.means([r for r in rows if targets.model_of(r) == model], model))
        for model in models
    ]


def _scale(folder: Path, rows: list[targets.Row]) -> list[str]:
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
    return [
        "## Size of the model",
        "![times and bytes against parameters](peers_scale.png)",
        "Fixed cost and cost for each parameter, at sparsity 0.99, one thread:",
        "\n".join(f"- {line}" for line in fits),
        *_table(scale.summary(rows)),
    ]


def _memory(folder: Path, rows: list[targets.Row]) -> list[str]:
    figures.memory(rows, folder / "peers_memory.png")
    names = dict.fromkeys(row["peer"] for row in rows)
    updates = dict.fromkeys(row["update"] for row in rows)
    found = {(row["peer"], row["update"]): row["bytes per parameter"] for row in rows}
    table = [
        {"bytes per parameter beyond the models": name}
        | {update: found.get((name, update)) for update in updates}
        for name in names
    ]
    return ["## Memory", "![memory of encoding](peers_memory.png)", *_table(table)]


def _residuals(folder: Path, rows: list[targets.Row]) -> list[str]:
    keys = ("update", "sparsity", "directly", "same sign", "bits per nonzero")
    chosen = [{key: row[key] for key in keys} for row in rows if row["sparsity"] in (0.95, 0.99)]
    return ["## How residuals cluster", *_table(chosen)]


def _table(rows: list[dict[str, Any]]) -> list[str]:
    return [markdown_table(rows)] if rows else []
