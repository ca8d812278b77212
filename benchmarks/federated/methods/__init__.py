"""The methods by name. Each is one small file behind the interface of base.py."""

from __future__ import annotations

from typing import Any

from benchmarks.federated.methods.base import Method, State
from benchmarks.federated.methods.codec import Codec
from benchmarks.federated.methods.uncompressed import Float16, Uncompressed

METHODS: dict[str, type[Method]] = {
    "uncompressed": Uncompressed,
    "float16": Float16,
    "codec": Codec,
}


def make(name: str, options: dict[str, Any], initial: State, clients: int, seed: int) -> Method:
    """A method for one training.

    Raises:
        ValueError: No method has that name.
        TypeError: It has no such option.
    """
    if name not in METHODS:
        raise ValueError(f"method {name!r}: must be one of {', '.join(METHODS)}")
    return METHODS[name](initial, clients, seed, **options)
