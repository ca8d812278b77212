from collections.abc import Sequence
from typing import Any, TypeAlias

PlainRow: TypeAlias = tuple[int, int, int, int, int, int, int]
"""current, reference, out (addresses, 0 for none), n_elems, elem_bytes, dtype, role."""

PredictedRow: TypeAlias = tuple[
    int, int, int, int, int, int, int, int, tuple[tuple[int, float], ...]
]
"""A plain row, then feedback (address, 0 for none) and terms (address, coefficient)."""

TensorRow: TypeAlias = PlainRow | PredictedRow

class NativeError(Exception):
    args: tuple[int, int, int]

class StepRule:
    ratio: float
    bits: int
    automatic: bool

class EncodeOptions:
    digest: int
    link: bytes
    k_matrix: int
    k_vector: int
    max_bytes: int
    max_error: float
    vector_share: int
    step: StepRule
    slice_log2: int
    exclusions: Sequence[int]

def encode(tensors: Sequence[TensorRow], options: EncodeOptions) -> bytes: ...
def decode(payload: bytes, digest: int, tensors: Sequence[TensorRow]) -> None: ...
def add_values(payload: bytes, tensors: Sequence[TensorRow]) -> None: ...
def moments(tensors: Sequence[TensorRow]) -> list[list[float]]: ...
def inspect(payload: bytes) -> dict[str, Any]: ...
def encode_keyframe(
    tensors: Sequence[TensorRow], layout_digest: int, mantissa_bits: int
) -> bytes: ...
def decode_keyframe(payload: bytes, layout_digest: int, tensors: Sequence[TensorRow]) -> None: ...
def crc32c(data: bytes) -> int: ...
def num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
def kernels() -> str: ...
def choose_kernels(name: str) -> bool: ...
def cuda_unavailable_reason() -> str: ...
def trace(
    indices: Sequence[int], levels: Sequence[int], slice_log2: int
) -> tuple[bytes, list[int]]: ...
def initial_states() -> list[tuple[int, int]]: ...
