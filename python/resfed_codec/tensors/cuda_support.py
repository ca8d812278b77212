"""Whether arrays on CUDA devices can be used here."""

from __future__ import annotations

from functools import lru_cache

from resfed_codec import _native
from resfed_codec.errors import native_errors


def require_cuda(where: str, device: int) -> None:
    """Raise TypeError, saying what is missing, unless arrays on CUDA devices can be used."""
    reason = unavailable_reason()
    if reason:
        raise TypeError(
            f"{where} lies on cuda:{device}, which resfed_codec cannot use here: {reason}. Or copy"
            " the tensors to the host first (.cpu())"
        )


@lru_cache(maxsize=1)
def unavailable_reason() -> str:
    """Why CUDA cannot be used, and what helps; "" if it can."""
    reason = _native.cuda_unavailable_reason()
    if not reason:
        return ""
    if not hasattr(_native, "encode_on_device"):
        return f"{reason}; build it from source where nvcc is, with -DRESFED_CUDA=ON (docs/gpu.md)"
    return f"{reason} (this build has CUDA; it needs an NVIDIA GPU and its driver)"


def release_workspace() -> None:
    """Free the memory on CUDA devices that calls keep for the next ones.

    Does nothing where there is none; the next call takes what it needs anew.
    """
    if not unavailable_reason():
        with native_errors():
            _native.release_workspace()
