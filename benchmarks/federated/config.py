"""The configuration of a training: everything that its result depends on."""

from __future__ import annotations

import ast
import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.federated.names import name_of


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training. ``images`` and ``test_images`` of 0 mean all.

    With text instead of images these two count bytes, and a client trains ``steps`` steps in a
    round, not ``epochs``. ``precision`` is that of training and testing, float32 or bf16; models
    are sent as float32. ``statistics`` says which of BatchNorm's clients send
    (:class:`~benchmarks.federated.batchnorm.Statistics`).
    """

    method: str = "codec"
    options: dict[str, Any] = field(default_factory=dict)
    data: str = "digits"
    model: str = "tiny_cnn"
    split: str = "classes:4"
    clients: int = 10
    rounds: int = 30
    images: int = 0
    test_images: int = 0
    lr: float = 0.01
    momentum: float = 0.9
    batch: int = 64
    epochs: int = 1
    steps: int = 0
    optimizer: str = "sgd"
    precision: str = "float32"
    statistics: str = "trained"
    seed: int = 0

    @property
    def name(self) -> str:
        """The method with its options, for display."""
        return name_of(self.method, self.options)

    @property
    def id(self) -> str:
        """The id of the run in its suite: the method, a digest of its options, the seed."""
        text = json.dumps(self.options, sort_keys=True)
        digest = [hashlib.sha256(text.encode()).hexdigest()[:4]] if self.options else []
        return "-".join([self.method, *digest, str(self.seed)])

    def as_dict(self) -> dict[str, Any]:
        """All fields, for the header of a result."""
        return asdict(self)


def parse_method(spec: str) -> tuple[str, dict[str, Any]]:
    """``NAME`` or ``NAME:KEY=VALUE,KEY=VALUE``; several patterns of a value are joined by ``+``.

    Raises:
        ValueError: An option is not KEY=VALUE.
    """
    name, _, rest = spec.partition(":")
    options: dict[str, Any] = {}
    for part in rest.split(",") if rest else []:
        key, equals, text = part.partition("=")
        if not equals:
            raise ValueError(f"method {spec!r}: {part!r} is not KEY=VALUE")
        options[key] = tuple(text.split("+")) if key == "exclude" else _value(text)
    return name, options


def _value(text: str) -> Any:
    """The text as a Python number, True or False, or else unchanged."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
