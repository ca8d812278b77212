"""torch tensors of the host: which can be read, and how the codec reads and makes them.

Nothing here depends on settings of the caller's thread: see :func:`plain_torch`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

from numpy.typing import NDArray

from resfed_codec.tensors.dtypes import PARTS, PATTERNS, SUPPORTED

if TYPE_CHECKING:
    from typing_extensions import Self

Args = ParamSpec("Args")
Result = TypeVar("Result")

_GUARDS = ("DisableTorchFunction", "_DisableTorchDispatch", "_DisableFuncTorch")
"""In ``torch._C``: they switch off modes and overrides of torch functions, modes of dispatch (as
FakeTensorMode) and the transforms of ``torch.func``, for the current thread."""


def torch_module() -> Any:
    """The torch module if the caller uses it, else None; never imports it."""
    return sys.modules.get("torch")


def is_torch(value: object) -> bool:
    torch = sys.modules.get("torch")  # torch_module() without a call, for every tensor
    return torch is not None and isinstance(value, torch.Tensor)


class _WithoutTracer(ExitStack):
    """A context in which torch.compile does not trace what is called, nor its NumPy."""

    def __enter__(self) -> Self:
        try:
            extension = getattr(torch_module(), "_C", None)
            compiler = getattr(getattr(extension, "_dynamo", None), "eval_frame", None)
            if compiler is not None:
                self.callback(compiler.set_eval_frame, compiler.set_eval_frame(None))
            return self
        except BaseException:  # an interrupt, too, leaves torch as it was
            self.close()
            raise


class plain_torch(_WithoutTracer):  # noqa: N801  # used as a function is
    """A context in which torch makes and reads plain tensors, whatever the caller has switched on.

    The default device, inference mode, modes such as FakeTensorMode, transforms of ``torch.func``,
    ``torch.compile`` and ``torch.jit.trace`` do not count in it.
    """

    def __enter__(self) -> Self:
        try:
            torch = torch_module()
            if torch is None:
                return self
            super().__enter__()
            tracing = torch._C._get_tracing_state()
            if tracing is not None:  # torch.jit.trace: shapes would be tensors
                self.callback(torch._C._set_tracing_state, tracing)
                torch._C._set_tracing_state(None)
            if torch.is_inference_mode_enabled():
                self.enter_context(torch.inference_mode(False))
            for name in _GUARDS:
                guard = getattr(torch._C, name, None)
                if guard is not None:
                    self.enter_context(guard())
            return self
        except BaseException:
            self.close()
            raise


for _context in (_WithoutTracer, plain_torch):
    _context.__enter__._torchdynamo_disable = True  # type: ignore[attr-defined]  # just called


def untraced(function: Callable[Args, Result]) -> Callable[Args, Result]:
    """A public function that is the same inside functions given to ``torch.compile``."""

    @wraps(function)
    def call(*args: Args.args, **kwargs: Args.kwargs) -> Result:
        with _WithoutTracer():
            return function(*args, **kwargs)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    return call


def tensor_over(held: NDArray[Any], dtype: str) -> Any:
    """A tensor of this dtype over memory held as dtypes.py says. In plain_torch()."""
    return from_patterns(torch_module().from_numpy(held), dtype)


def from_patterns(held: Any, dtype: str) -> Any:
    """The tensor of this dtype that is held so; shares its memory. In plain_torch()."""
    if dtype not in PATTERNS:
        return held
    torch = torch_module()
    if dtype in PARTS:
        if held.numel() == 0:  # its strides may be any, which view_as_complex does not take
            return held.new_empty(held.shape[:-1], dtype=getattr(torch, dtype))
        return torch.view_as_complex(held.view(getattr(torch, PARTS[dtype])))
    return held.view(getattr(torch, dtype))


def memory_of(tensor: Any, dtype: str) -> NDArray[Any]:
    """A contiguous tensor's memory, held as dtypes.py says. In plain_torch()."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if dtype in PATTERNS:
        torch = torch_module()
        if dtype in PARTS:
            tensor = torch.view_as_real(tensor)
        tensor = tensor.view(getattr(torch, PATTERNS[dtype]))
    array: NDArray[Any] = tensor.numpy()
    return array


def plain_array(tensor: Any) -> tuple[NDArray[Any], str] | None:
    """Memory and dtype of a plain contiguous tensor of the host, as nearly all are; else None.

    What this takes, :func:`check_readable` and :func:`memory_of` take, too, in three times the
    time. In plain_torch().
    """
    torch, kind = torch_module(), type(tensor)
    if kind is not torch.Tensor and kind is not torch.nn.Parameter:
        return None
    try:
        dtype = _numpy_dtypes(torch).get(tensor.dtype)
        if dtype is None or not tensor.is_cpu:
            return None
        if not tensor.is_contiguous() or not tensor.data_ptr():
            return None
        end = (tensor.storage_offset() + tensor.numel()) * tensor.element_size()
        if tensor.untyped_storage().nbytes() < end:
            return None
        if tensor.requires_grad:
            tensor = tensor.detach()
        return tensor.numpy(), dtype
    except (RuntimeError, TypeError, NotImplementedError):  # no strided memory, or it is negated
        return None


@cache
def _numpy_dtypes(torch: Any) -> dict[Any, str]:
    """Names of torch's dtypes that NumPy has, and that are held as they are."""
    names = SUPPORTED - PATTERNS.keys()
    return {getattr(torch, name): name for name in names if hasattr(torch, name)}


class Shards(NamedTuple):
    """Of which DTensor the tensor here is a part."""

    mesh: Any
    placements: tuple[Any, ...]
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor_of(self, local: Any) -> Any:
        """The DTensor with this part here. In plain_torch()."""
        kind = sys.modules["torch.distributed.tensor"].DTensor
        size = torch_module().Size(self.shape)
        return kind.from_local(
            *(local, self.mesh, self.placements), run_check=False, shape=size, stride=self.stride
        )


def local_shard(value: Any, where: str) -> tuple[Any, Shards | None]:
    """The part of a DTensor that lies here, and what it is a part of; None for other tensors.

    Raises TypeError for one whose values are sums that have not been made yet. In plain_torch().
    """
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    if kind is None or not isinstance(value, kind):
        return value, None
    if any(placement.is_partial() for placement in value.placements):
        raise TypeError(
            f"{where}: is a DTensor of partial sums; call redistribute() first, with Replicate() or"
            " Shard()"
        )
    local = value.to_local()
    if hasattr(local, "wait"):  # of a collective that may be under way
        local = local.wait()
    shape, stride = tuple(value.shape), tuple(value.stride())
    return local, Shards(value.device_mesh, tuple(value.placements), shape, stride)


def check_readable(value: Any, where: str) -> None:
    """Raise TypeError, saying what to do, unless the tensor is values in memory. In plain_torch().

    Plain subclasses of torch.Tensor pass; wrappers that only look like a tensor do not.
    """
    problem = _problem_of(value)
    if problem:
        raise TypeError(f"{where}: {problem}")


def _problem_of(value: Any) -> str:
    torch = torch_module()
    kind = type(value)
    if kind is not torch.Tensor and kind is not torch.nn.Parameter:
        if torch.nn.parameter.is_lazy(value):
            return "is not initialized yet; run the module once first, so that it has a shape"
        advice = _WRAPPERS.get(kind.__name__)
        if advice:
            return advice
        if hasattr(kind, "__tensor_flatten__"):
            return (
                f"a {kind.__name__} has no memory of its own; pass the plain tensors that it is"
                " made of"
            )
    if value.is_nested:
        return _WRAPPERS["NestedTensor"]
    if value.layout != torch.strided:
        return f"layout {value.layout} is not supported; call to_dense() first"
    if value.is_quantized:
        return f"dtype {value.dtype} is not supported; call dequantize() or int_repr() first"
    if value.device.type == "meta":
        return "lies on device meta, where tensors have no values; call to_empty() and load them"
    if not value.is_cpu and not value.is_cuda:
        return f"lies on device {value.device}, which this version cannot read; call .cpu() first"
    return _problem_of_memory(value)


def _problem_of_memory(value: Any) -> str:
    n_elems = value.numel()
    if n_elems == 0:
        return ""
    try:
        pointer = value.data_ptr()
        n_bytes = value.untyped_storage().nbytes()
    except (RuntimeError, NotImplementedError):
        return (
            f"a {type(value).__name__} of a torch transform or trace has no memory; call the codec"
            " outside of it"
        )
    extent = n_elems
    if not value.is_contiguous():
        pairs = zip(value.shape, value.stride(), strict=True)
        extent = 1 + sum((length - 1) * stride for length, stride in pairs)
    if n_bytes < (value.storage_offset() + extent) * value.element_size():
        return (
            "its storage has been freed or shrunk, as sharded parameters' is; gather the full"
            " tensor first (with FSDP: summon_full_params or a full state_dict)"
        )
    if not pointer:
        return f"a {type(value).__name__} without memory; call clone() or pass a plain tensor"
    return ""


_WRAPPERS = {
    "FakeTensor": "is a FakeTensor, which has no values; pass the real tensor",
    "NestedTensor": "is nested; pass its parts (unbind()) or call to_padded_tensor() first",
    "MaskedTensor": "is a MaskedTensor, and its mask would be lost; call to_tensor() first",
    "FunctionalTensor": "is a FunctionalTensor of a trace; call the codec outside of it",
}
"""Types of torch whose tensors are no memory, by name, so that none of them is imported."""
