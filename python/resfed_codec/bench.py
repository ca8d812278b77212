"""Speed of the codec on this machine: what ``resfed-codec bench`` measures and prints."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

import resfed_codec as rfc
from resfed_codec.codec import empty_like
from resfed_codec.layout import State, views_of

COLUMNS, ROWS = 1152, 4096
"""Of a made-up tensor, at most: 128 channels of 3x3 kernels, and so many of those."""


def synthetic_update(
    n_elems: int, seed: int = 0
) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
    """(state, reference) of a made-up model whose residual clusters as those of trainings do.

    A residual is near an outer product, as a gradient is: a scale and a sign for each row,
    log-normal (sigma 1.5), times a scale for each 3x3 kernel (sigma 0.3; one in a hundred with the
    other sign), times 1 + 0.2 z, plus 0.05 root mean squares of noise. In client updates of a
    trained CNN 81 to 86 % of the nonzeros at sparsity 0.95 follow their predecessor directly, 99 %
    of close neighbours have the same sign, and a payload takes 1.8 to 2.0 bits a nonzero; here it
    is 82 %, over 99 % and 1.8. At 0.99: 74 to 86 %, over 99 % and 1.5 to 1.8 there; 78 %, over 99 %
    and 1.9 to 2.0 here.

    Args:
        n_elems: Parameters wanted; what comes is rounded to whole rows of 1,152 (at least one row,
            or ``n_elems`` if fewer).
        seed: Of the generator.

    Returns:
        Two dicts of float32 matrices, of at most 4,096 rows each.

    Raises:
        ValueError: ``n_elems`` is below 1.
    """
    if n_elems < 1:
        raise ValueError(f"n_elems={n_elems}: must be at least 1")
    columns = min(n_elems, COLUMNS)
    rows = max(1, round(n_elems / columns))
    rng = np.random.default_rng(seed)
    state, reference = {}, {}
    for layer, first in enumerate(range(0, rows, ROWS)):
        shape = (min(ROWS, rows - first), columns)
        row = rng.lognormal(0, 1.5, (shape[0], 1)) * rng.choice([-0.01, 0.01], (shape[0], 1))
        n_kernels = -(-columns // 9)
        kernel = rng.lognormal(0, 0.3, n_kernels) * rng.choice([-1, 1], n_kernels, p=[0.01, 0.99])
        residual = rng.standard_normal(shape, np.float32)
        residual *= np.float32(0.2)
        residual += np.float32(1)
        residual *= row.astype(np.float32)
        residual *= np.repeat(kernel, 9)[:columns].astype(np.float32)
        noise = rng.standard_normal(shape, np.float32)
        noise *= np.float32(0.05 * np.sqrt(np.mean(np.square(row)) * np.mean(np.square(kernel))))
        residual += noise
        name = f"layer{layer:03}.weight"
        reference[name] = rng.standard_normal(shape, np.float32)
        residual += reference[name]
        state[name] = residual
    return state, reference


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one task over all turns, and what follows from the median."""

    task: str
    median_ms: float
    least_ms: float
    greatest_ms: float
    ns_per_parameter: float
    times_copy: float


@dataclass(frozen=True)
class Report:
    """Result of :func:`measure`. ``n_bytes`` is the model's, ``payload_bytes`` the payload's."""

    n_parameters: int
    n_bytes: int
    sparsity: float
    n_nonzero: int
    payload_bytes: int
    threads: int
    turns: int
    timings: tuple[Timing, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{self.n_parameters:,} parameters, {self.n_bytes:,} bytes; sparsity {self.sparsity:g},"
            f" {self.n_nonzero:,} nonzeros",
            f"payload {self.payload_bytes:,} bytes, {self.n_bytes / self.payload_bytes:.1f} times"
            " smaller",
            f"{self.threads} thread{'s' if self.threads > 1 else ''}, {self.turns} turns",
            "",
            f"{'':20}{'median ms':>12}{'least':>10}{'greatest':>10}{'ns/param':>10}{'x copy':>9}",
        ]
        lines += [
            f"{t.task:20}{t.median_ms:12.4g}{t.least_ms:10.4g}{t.greatest_ms:10.4g}"
            f"{t.ns_per_parameter:10.4g}{t.times_copy:9.3g}"
            for t in self.timings
        ]
        return "\n".join(lines)


def measure(state: State, reference: State, *, sparsity: float = 0.99, turns: int = 9) -> Report:
    """Time encoding and decoding of ``state`` beside a plain copy of its memory, taking turns.

    ``torch.sub`` of the two models takes part where torch is installed and they are all float32.
    The first turn warms up and does not count. Needs memory for three more models.

    Args:
        state: The model to send, as for :func:`resfed_codec.encode`; NumPy or torch CPU tensors.
        reference: The model that the receiver holds.
        sparsity: As in :class:`resfed_codec.CodecConfig`.
        turns: How often each task is timed, at least 1.

    Raises:
        ValueError, TypeError: As :func:`resfed_codec.encode` raises them, or ``turns`` is below 1.
    """
    if turns < 1:
        raise ValueError(f"turns={turns}: must be at least 1")
    payload = rfc.encode(state, reference, sparsity=sparsity)
    target: Any = empty_like(reference)
    sources = [view.array for view in views_of(reference, "reference")]
    targets = [view.array for view in views_of(target, "out")]

    def copy() -> None:
        for to, source in zip(targets, sources, strict=True):
            np.copyto(to, source)

    tasks: dict[str, Callable[[], object]] = {"copy": copy}
    tasks |= _torch_sub(state, reference)
    tasks["encode"] = lambda: rfc.encode(state, reference, sparsity=sparsity)
    tasks["decode, new arrays"] = lambda: rfc.decode(payload, reference)
    # Straight after a copy, which makes the target the reference again.
    tasks["decode, in place"] = lambda: rfc.decode(payload, target, out=target)

    times: dict[str, list[float]] = {task: [] for task in tasks}
    for turn in range(turns + 1):
        for task, run in tasks.items():
            if task == "decode, in place":
                copy()
            begin = time.perf_counter()
            run()
            if turn:
                times[task].append(time.perf_counter() - begin)
    n_parameters = sum(array.size for array in sources)
    return Report(
        n_parameters,
        sum(array.nbytes for array in sources),
        sparsity,
        rfc.inspect(payload).n_nonzero,
        len(payload),
        rfc.get_num_threads(),
        turns,
        _timings(times, n_parameters),
    )


def _timings(times: Mapping[str, list[float]], n_parameters: int) -> tuple[Timing, ...]:
    medians = {task: statistics.median(seconds) for task, seconds in times.items()}
    return tuple(
        Timing(
            task,
            1e3 * medians[task],
            1e3 * min(seconds),
            1e3 * max(seconds),
            1e9 * medians[task] / max(1, n_parameters),
            medians[task] / max(medians["copy"], 1e-9),
        )
        for task, seconds in times.items()
    )


def _torch_sub(state: State, reference: State) -> dict[str, Callable[[], object]]:
    if find_spec("torch") is None:
        return {}
    arrays = [
        (view.array, other.array)
        for view, other in zip(
            views_of(state, "state"), views_of(reference, "reference"), strict=True
        )
    ]
    if any(a.dtype != np.float32 for pair in arrays for a in pair):
        return {}
    import torch

    tensors = [(torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(np.empty_like(a)))
               for a, b in arrays]  # fmt: skip
    threads = rfc.get_num_threads()

    def subtract() -> None:
        for a, b, out in tensors:
            torch.sub(a, b, out=out)

    torch.set_num_threads(threads)
    return {"torch.sub": subtract}
