from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from numpy.typing import NDArray

class DeviceArray:
    @staticmethod
    def from_dlpack(capsule: object, stream: int | None = None) -> DeviceArray: ...
    @staticmethod
    def from_pointer(
        pointer: int,
        shape: Sequence[int],
        dtype: str,
        device: int,
        owner: object,
        stream: int | None = None,
    ) -> DeviceArray: ...
    def view(self, dtype: str) -> DeviceArray: ...
    def flat(self, begin: int, n: int) -> DeviceArray: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def size(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def itemsize(self) -> int: ...
    @property
    def device(self) -> int: ...
    @property
    def contiguous(self) -> bool: ...
    @property
    def pointer(self) -> int: ...
    def __dlpack__(self, **kwargs: Any) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

Contiguous: TypeAlias = NDArray[Any] | DeviceArray | None

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
    tuple[tuple[NDArray[Any] | DeviceArray, float], ...],
]
"""A plain row, then feedback and terms with their coefficients."""

TensorRow: TypeAlias = PlainRow | PredictedRow

Assignment: TypeAlias = tuple[Any, Any, Any]
"""Object, attribute name, value; or dict, key, value."""

Plan: TypeAlias = Callable[[], Sequence[Assignment]] | None
"""Called when nothing but the writing is left to do. The assignments that it returns are made in
one step with the writing; what it raises is passed on, and nothing is written then."""

PayloadPlan: TypeAlias = Callable[[bytes], Sequence[Assignment]] | None
"""A plan that is given the finished payload."""

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
    def __init__(
        self,
        tensors: Sequence[TensorRow],
        is_signed: Sequence[bool],
        is_complex: Sequence[bool] = (),
    ) -> None: ...
    def prepare(self, payload: bytes, digest: int, weight: float) -> Contribution: ...
    def prepare_state(self, arrays: Sequence[NDArray[Any]], weight: float) -> Contribution: ...
    def add(
        self,
        contribution: Contribution,
        replaced: Contribution | None = None,
        commit: Plan = None,
    ) -> None: ...
    def result(self, arrays: Sequence[NDArray[Any]], total_weight: float) -> None: ...

def encode(
    tensors: Sequence[TensorRow], options: EncodeOptions, commit: PayloadPlan = None
) -> bytes: ...
def decode(
    payload: bytes, digest: int, tensors: Sequence[TensorRow], commit: Plan = None
) -> None: ...
def add_values(payload: bytes, tensors: Sequence[TensorRow]) -> None: ...
def moments(tensors: Sequence[TensorRow]) -> list[list[float]]: ...
def link_of(payload: bytes) -> bytes: ...
def overlaps(
    out: Sequence[NDArray[Any] | DeviceArray], reference: Sequence[NDArray[Any] | DeviceArray]
) -> tuple[bool, list[tuple[int, int, bool]], list[tuple[int, int]]]: ...
def parse_link(
    link: bytes, n_tensors: int
) -> tuple[int, int, int, int, int, int, int, int, bytes, bytes]: ...
def inspect(payload: bytes, n_tensors: int = ...) -> dict[str, Any]: ...

MOST_TENSORS: int

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

# What follows, up to decode_on_device, is absent from a build without CUDA.
def cuda_error_text(error: int) -> str: ...
def cuda_is_emulated() -> bool: ...
def set_device_memory_limit(n_bytes: int) -> None: ...
def emulate(what: str, value: int = 0) -> int: ...
def set_allocator(allocate: Callable[[int, int], DeviceArray | None]) -> None: ...
def release_workspace() -> None: ...
def empty_on_device(shape: Sequence[int], dtype: str, device: int) -> DeviceArray: ...
def copy_to_host(source: DeviceArray, out: NDArray[Any], stream: int) -> None: ...
def copy_to_device(source: NDArray[Any], out: DeviceArray, stream: int) -> None: ...
def copy_on_device(source: DeviceArray, out: DeviceArray, stream: int) -> None: ...
def wait(device: int, stream: int) -> None: ...
def encode_on_device(
    tensors: Sequence[TensorRow],
    options: EncodeOptions,
    device: int,
    stream: int,
    commit: PayloadPlan = None,
) -> bytes: ...
def decode_on_device(
    payload: bytes,
    digest: int,
    tensors: Sequence[TensorRow],
    device: int,
    stream: int,
    commit: Plan = None,
) -> None: ...
def trace(
    indices: Sequence[int],
    levels: Sequence[int],
    row_lengths: Sequence[tuple[int, int, int]],
    slice_log2: int,
) -> tuple[bytes, list[int]]: ...
def initial_states() -> list[tuple[int, int]]: ...
