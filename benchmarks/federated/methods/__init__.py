"""The methods by name. Each has its own file and the interface of base.py."""

from __future__ import annotations

from typing import Any

from benchmarks.federated.methods.base import Method, State
from benchmarks.federated.methods.codec import Codec
from benchmarks.federated.methods.diloco import CodecDiLoCo, CodecGathered, DiLoCo, SparseLoCo
from benchmarks.federated.methods.eden import Drive
from benchmarks.federated.methods.flasc import Flasc
from benchmarks.federated.methods.qsgd import Qsgd
from benchmarks.federated.methods.resfed import ResFed
from benchmarks.federated.methods.select import CodecSelect
from benchmarks.federated.methods.signsgd import SignMajority
from benchmarks.federated.methods.stc import SparseTernary
from benchmarks.federated.methods.topk import TopK
from benchmarks.federated.methods.uncompressed import Float16, Uncompressed

__all__ = ["METHODS", "Method", "State", "make"]

METHODS: dict[str, type[Method]] = {
    "uncompressed": Uncompressed,
    "float16": Float16,
    "codec": Codec,
    "codec_select": CodecSelect,
    "resfed": ResFed,
    "topk": TopK,
    "stc": SparseTernary,
    "qsgd": Qsgd,
    "signsgd": SignMajority,
    "eden": Drive,
    "diloco": DiLoCo,
    "sparseloco": SparseLoCo,
    "codec_gathered": CodecGathered,
    "codec_diloco": CodecDiLoCo,
    "flasc": Flasc,
}


def make(name: str, options: dict[str, Any], initial: State, clients: int, seed: int) -> Method:
    """A method for one training.

    Raises:
        ValueError: No method has that name.
        TypeError: The method does not have an option, or its value has the wrong type.
    """
    if name not in METHODS:
        raise ValueError(f"method {name!r}: must be one of {', '.join(METHODS)}")
    return METHODS[name](initial, clients, seed, **options)
