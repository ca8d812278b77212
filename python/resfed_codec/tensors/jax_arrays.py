"""JAX arrays that are not on a CUDA device, and Keras variables: how they are read and made.

JAX arrays never change, so the codec reads them where they are and makes new ones by copying.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


def is_jax(value: object) -> bool:
    kind = getattr(sys.modules.get("jax"), "Array", None)
    return kind is not None and isinstance(value, kind)


def keras_value(value: Any) -> Any:
    """The array of a Keras variable, of its backend's kind; None for anything else."""
    kind = getattr(sys.modules.get("keras"), "Variable", None)
    if kind is None or not isinstance(value, kind):
        return None
    array = value.value
    if type(array).__module__.partition(".")[0] == "tensorflow":
        return np.asarray(array)
    return array


@dataclass(frozen=True)
class JaxKind:
    """What kind of JAX array a tensor is: dtype and place.

    Attributes:
        dtype: NumPy's, or of ml_dtypes.
        device: Platform and number of its device.
        sharding: Of an array on several devices; otherwise None.
        committed: Whether JAX must not move it to another device.
    """

    dtype: np.dtype[Any]
    device: tuple[str, int]
    sharding: Any
    committed: bool

    def array_of(self, values: NDArray[Any]) -> Any:
        """A new JAX array with these values; copies them."""
        import jax

        with ExitStack() as settings:
            if self.dtype.itemsize >= 8:
                settings.enter_context(_wide_dtypes())
            if self.sharding is not None:
                return jax.device_put(values, self.sharding, may_alias=False)
            platform, number = self.device
            devices = jax.local_devices(backend=platform)
            device = next((d for d in devices if d.id == number), devices[0])
            if self.committed:
                return jax.device_put(values, device, may_alias=False)
            settings.enter_context(jax.default_device(device))
            return jax.numpy.array(values)


def _wide_dtypes() -> Any:
    """A context in which JAX does not make 32 bits of 64."""
    import jax

    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    return importlib.import_module("jax.experimental").enable_x64()


def on_cuda(value: Any) -> bool:
    """Whether a JAX array is on one CUDA device, where it can be used in place."""
    devices = value.sharding.device_set
    return len(devices) == 1 and next(iter(devices)).platform in ("gpu", "cuda")


def check_jax(value: Any, where: str) -> None:
    """Raise TypeError, saying what to do, unless the array has values that can be read here."""
    import jax

    problem = ""
    if isinstance(value, jax.core.Tracer):
        problem = "is traced by a JAX transform such as jit, and has no values yet; call the codec"
        problem += " outside of it"
    elif jax.numpy.issubdtype(value.dtype, jax.dtypes.extended):
        problem = "is a random key; leave it out, or pass jax.random.key_data(key) (Flax NNX:"
        problem += " nnx.state(model, nnx.Not(nnx.RngState)))"
    elif value.is_deleted():
        problem = "has been deleted, or donated to a jit; pass the array that replaces it"
    elif not value.is_fully_addressable:
        problem = "has parts on other hosts; pass each host's parts (addressable_shards)"
    if problem:
        raise TypeError(f"{where}: {problem}")


def read_jax(value: Any) -> tuple[NDArray[Any], JaxKind]:
    """An array's values, where they are if that is one place on the host, and its kind."""
    values = np.asarray(value)
    sharding = value.sharding
    devices = sharding.device_set
    first = next(iter(devices))
    shared = sharding if len(devices) > 1 else None
    kind = JaxKind(values.dtype, (first.platform, first.id), shared, value.committed)
    return values, kind
