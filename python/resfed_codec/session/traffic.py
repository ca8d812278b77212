"""Traffic: what a session has sent and received, in messages, bytes and keyframes."""

from __future__ import annotations

from typing import Literal, TypeAlias

Direction: TypeAlias = Literal["down", "up"]

_KEYS = [f"{what}_{way}" for way in ("down", "up") for what in ("messages", "bytes", "keyframes")]


class Traffic:
    """Counts of both directions; down is from the server to clients, on both ends.

    Args:
        model_bytes: Bytes of a model, which a message replaces.
    """

    def __init__(self, model_bytes: int) -> None:
        self._model_bytes = model_bytes
        self.reset()
        self._round = dict.fromkeys(_KEYS, 0)

    def reset(self) -> None:
        self._total = dict.fromkeys(_KEYS, 0)

    def add(self, way: Direction, n_bytes: int, *, n_messages: int = 1, keyframe: bool) -> None:
        """Count a message; ``n_messages=0`` if no model would have been sent in its place."""
        for counts in (self._total, self._round):
            counts[f"messages_{way}"] += n_messages
            counts[f"bytes_{way}"] += n_bytes
            counts[f"keyframes_{way}"] += keyframe

    @property
    def total(self) -> dict[str, int]:
        """Counts since the last reset."""
        return self._with_models(self._total)

    def end_round(self) -> dict[str, int]:
        """Counts since the last call."""
        ended, self._round = self._round, dict.fromkeys(_KEYS, 0)
        return self._with_models(ended)

    def _with_models(self, counts: dict[str, int]) -> dict[str, int]:
        models = counts["messages_down"] + counts["messages_up"]
        return {**counts, "uncompressed_bytes": models * self._model_bytes}


def round_text(counts: dict[str, int]) -> str:
    """Counts in one line: messages and mean bytes each way, ratio to whole models, keyframes."""
    ways = [
        f"{number_of(counts[f'messages_{way}'], 'message')} {way}"
        f" of {bytes_text(round(counts[f'bytes_{way}'] / counts[f'messages_{way}']))}"
        for way in ("down", "up")
        if counts[f"messages_{way}"]
    ]
    keyframes = number_of(counts["keyframes_down"] + counts["keyframes_up"], "keyframe")
    return ", ".join([*ways, *ratio_text(counts), keyframes])


def number_of(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def ratio_text(counts: dict[str, int]) -> list[str]:
    """How much less than whole models was sent; empty if nothing was."""
    n_bytes = counts["bytes_down"] + counts["bytes_up"]
    if not counts["uncompressed_bytes"] or not n_bytes:  # not yet counted by an interrupted call
        return []
    ratio = counts["uncompressed_bytes"] / n_bytes
    return [f"{ratio:.3g}x less than models" if ratio < 100 else f"{ratio:,.0f}x less than models"]


def bytes_text(n: int) -> str:
    """Three digits, decimal units."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n >= 0.9995 * size:
            return f"{n / size:.3g} {unit}"
    return f"{n} B"
