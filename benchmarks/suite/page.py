"""The summary page of the comparison and its figures, from the rows of its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.common import markdown_table
from benchmarks.peers import OURS
from benchmarks.suite import figures, scale, targets
from benchmarks.suite import rows as table

STAMP = ("machine", "versions", "command", "commit", "date")
LOSING = {"error": "equal error", "integers": "identical integers"}
"""Tables to search for peers that need fewer bytes, and their names on the page."""
INTRO = """\
One update of a model, coded by this codec ("ours") and by others; float32 matrices, as one model.
A ratio in bold, above 1, says that the peer needs fewer bytes. "ResFed paper's scheme" is that of
the paper, not this codec."""


def make(folder: Path) -> str:
    """Draw the figures and write the Markdown of ``peers.md``.

    Skips tables that were not measured (no ``peers_*.json``).
    """
    sections = {
        "error": _error,
        "integers": _integers,
        "scale": _scale,
        "memory": _memory,
        "residuals": _residuals,
    }
    page = []
    losing: list[dict[str, Any]] = []
    for part, section in sections.items():
        path = folder / f"peers_{part}.json"
        if path.exists():
            document = table.read(path)
            if part in LOSING:
                losing += _losing(LOSING[part], document["rows"])
            drawn, text = section(folder, document["rows"])
            page += [f"## {document['title']}", document["note"]]
            page += [f"![{caption}]({name})\n\n*{caption}*" for name, caption in drawn]
            page += [*text, *_left_out(document["left_out"], path.name)]
            where = "\n".join(f"- {key}: `{document[key]}`" for key in STAMP)
            page.append(f"All rows: [{path.name}]({path.name}).\n\n{where}")
    if losing:
        page = ["## Where others need fewer bytes", markdown_table(losing), *page]
    return "\n\n".join(["# Beside other codecs", INTRO, *page]) + "\n"


def _losing(how: str, rows: list[targets.Row]) -> list[dict[str, Any]]:
    """The rows of the tables of means in which a peer needs fewer bytes at some sparsity."""
    found = []
    for model in dict.fromkeys(targets.model_of(r) for r in rows):
        for row in targets.means([r for r in rows if targets.model_of(r) == model], model):
            peer, *ratios = row.values()
            if any(str(ratio).startswith("**") for ratio in ratios):
                ratio_at = dict(zip(list(row)[1:], ratios, strict=True))
                found.append({"our bytes / peer's": how, "model": model, "peer": peer, **ratio_at})
    return found


def _left_out(lines: list[str], source: str) -> list[str]:
    """The missing peers with reasons, or only their number if the list is long."""
    if len(lines) > 12:
        return [f"{len(lines)} combinations are left out; {source} has each with its reason."]
    return ["Left out:\n\n" + "\n".join(f"- {line}" for line in lines)] if lines else []


Section: TypeAlias = tuple[list[tuple[str, str]], list[str]]
"""Figures with captions, and text."""


def _error(folder: Path, rows: list[targets.Row]) -> Section:
    figures.equal_error(rows, folder / "peers_error.png")
    figures.times(rows, folder / "peers_times.png")
    drawn = [
        ("peers_error.png", "Bytes over the error that is left, one update of each model"),
        ("peers_times.png", "Times at equal error, sparsity 0.99; lines are least and greatest"),
    ]
    text = [*_table(targets.error_goals(rows)), *_means(rows), *_table(targets.times(rows, 0.99))]
    return drawn, text


def _integers(folder: Path, rows: list[targets.Row]) -> Section:
    figures.identical_integers(rows, folder / "peers_integers.png")
    drawn = [("peers_integers.png", "Our bytes over those of others, for identical integers")]
    return drawn, [*_table(targets.integer_goals(rows)), *_means(rows)]


def _means(rows: list[targets.Row]) -> list[str]:
    """A table of means for each model, real models first."""
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
    figures.scale(rows, folder / "peers_scale.png")
    drawn = [("peers_scale.png", "Times and bytes over the number of parameters, sparsity 0.99")]
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
    rows = [
        {"bytes per parameter beyond the models": name}
        | {update: found.get((name, update)) for update in updates}
        for name in names
    ]
    return [("peers_memory.png", "Memory of encoding, beyond the two models")], _table(rows)


def _residuals(folder: Path, rows: list[targets.Row]) -> Section:
    keys = ("update", "sparsity", "directly", "same sign", "bits per nonzero")
    chosen = [{key: row[key] for key in keys} for row in rows if row["sparsity"] in (0.95, 0.99)]
    return [], _table(chosen)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    return [markdown_table(rows)] if rows else []
