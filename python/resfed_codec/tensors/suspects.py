"""Warnings: of tensors that look replaced in each round, or an optimizer's; of tied ones.

By default the codec adds a few large residuals to a tensor in each round. A tensor that a round
replaces has by far the largest ones, so nearly all that is sent goes to it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resfed_codec._native import DeviceArray, Role
from resfed_codec.notices import warn

if TYPE_CHECKING:
    from resfed_codec.tensors.layout import TensorSpec
    from resfed_codec.tensors.memory import Memory

CHECKED = 3
"""Of a stream or a session, only the first payloads are looked at: the check takes time."""

_SAMPLE = 256
"""Elements of a tensor that are looked at."""

_TIMES_ITSELF, _TIMES_OTHERS = 3, 300
"""How many times as large as the tensor, and as the median tensor's, a residual must be.

Parameters that begin at zero (biases, LoRA) exceed the first, and scalars the second, but no
parameter of the trainings that were tried both. Counters do, and running statistics of inputs that
are not normalized.
"""

_OPTIMIZER = re.compile(
    r"(^|[./])((max_)?exp_avg(_sq)?|momentum_buffer|square_avg|lr|learning_rate)$"
)
"""Names of what an optimizer keeps, as in its ``state_dict()``."""


def warn_of_suspects(
    specs: Sequence[TensorSpec],
    roles: Sequence[Role],
    state: Sequence[Memory],
    reference: Sequence[Memory],
) -> None:
    """Warn of tensors in the common budget that do not look like parameters; on the host only.

    And of tensors that are one memory, for each is sent.
    """
    warn_of_tied(specs, state)
    budget = [i for i, role in enumerate(roles) if role in (Role.MATRIX, Role.VECTOR)]
    names = [specs[i].name for i in budget if _OPTIMIZER.search(specs[i].name)]
    if names:
        warn(
            f"{_listed(names)} like an optimizer's state, which sparse updates ruin. Leave it out,"
            " or name it: in exclude, what must be exact; in dense, moments"
        )
    sizes = {}
    for i in budget:
        base, new = reference[i], state[i]
        if isinstance(base, DeviceArray) or isinstance(new, DeviceArray):
            return
        if specs[i].name not in names and base.size:
            sizes[i] = _sizes(base, new)
    changes = [change for change, _ in sizes.values() if change > 0]
    typical = median(changes) if changes else 0.0
    found = [
        i
        for i, (change, size) in sizes.items()
        if _TIMES_ITSELF * size < change < np.inf and change > _TIMES_OTHERS * typical
    ]
    if found:
        change, size = sizes[found[0]]
        itself = f"{change / size:.3g} times its size" if size else "all of it"
        warn(
            f"{_listed([specs[i].name for i in found])} replaced rather than updated: the change is"
            f" {itself}, and {change / typical:.3g} times that of other tensors, so little of these"
            " will be sent. Name it: in dense, what each round replaces; in exclude, what must be"
            " exact"
        )


def warn_of_tied(specs: Sequence[TensorSpec], state: Sequence[Memory]) -> None:
    """Warn of a tensor of several rows that another one is, too."""
    first: dict[tuple[int, int], str] = {}
    for spec, memory in zip(specs, state, strict=True):
        if not isinstance(memory, np.ndarray) or len(spec.shape) < 2 or memory.size == 0:
            continue
        where = memory.__array_interface__["data"][0], memory.nbytes
        other = first.setdefault(where, spec.name)
        if other != spec.name:
            warn(
                f"tensors {other!r} and {spec.name!r} are one memory, and each is sent. Leave one"
                " out at both ends (docs/guide.md, tied weights)"
            )
            return


def _sizes(base: NDArray[Any], new: NDArray[Any]) -> tuple[float, float]:
    """Mean magnitudes of a tensor's residual and of the tensor, from some of its elements."""
    stride = 1 + base.size // _SAMPLE
    with np.errstate(all="ignore"):  # what is not finite is an error later
        a, b = (_floats(array.reshape(-1)[::stride]) for array in (base, new))
        return float(np.abs(b - a).mean()), float(np.abs(a).mean())


def _floats(held: NDArray[Any]) -> NDArray[np.float64]:
    if held.dtype == np.uint16:  # bfloat16
        held = (held.astype(np.uint32) << 16).view(np.float32)
    return held.astype(np.float64)


def _listed(names: Sequence[str]) -> str:
    first = f"tensor {names[0]!r}"
    if len(names) == 1:
        return f"{first} looks"
    return f"{first} and {len(names) - 1} more look"
