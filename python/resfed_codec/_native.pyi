from collections.abc import Sequence
from typing import Any, TypeAlias

from numpy.typing import NDArray

Contiguous: TypeAlias = NDArray[Any] | None

PlainRow: TypeAlias = tuple[Contiguous, Contiguous, Contiguous, int, int, int, int]
"""current, reference, out, n_elems, elem_bytes, dtype, role."""

PredictedRow: TypeAlias = tuple[
    Contiguous,
    Contiguous,
    Contiguous,
    int,
    int,
    int,
    int,
    Contiguous,
    tuple[tuple[NDArray[Any], float], ...],
]
"""A plain row, then feedback and terms with their coefficients."""

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
    dense: Sequence[int]
    dense_bits: int
    row_lengths: Sequence[int]
    blocks: Sequence[int]

class Contribution: ...

class Aggregator:
    def __init__(self, tensors: Sequence[TensorRow], is_signed: Sequence[bool]) -> None: ...
    def prepare(self, payload: bytes, digest: int, weight: float) -> Contribution: ...
    def add(self, contribution: Contribution) -> None: ...
    def add_state(self, addresses: Sequence[int], weight: float) -> None: ...
    def result(self, addresses: Sequence[int], total_weight: float) -> None: ...
    def reset(self) -> None: ...

def encode(tensors: Sequence[TensorRow], options: EncodeOptions) -> bytes: ...
def decode(payload: bytes, digest: int, tensors: Sequence[TensorRow]) -> None: ...
def add_values(payload: bytes, tensors: Sequence[TensorRow]) -> None: ...
def moments(tensors: Sequence[TensorRow]) -> list[list[float]]: ...
def link_of(payload: bytes) -> bytes: ...
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
    indices: Sequence[int],
    levels: Sequence[int],
    row_lengths: Sequence[tuple[int, int, int]],
    slice_log2: int,
) -> tuple[bytes, list[int]]: ...
def initial_states() -> list[tuple[int, int]]: ...
