"""Speed of the codec on this machine: the command ``resfed-codec bench``."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

import resfed_codec as rfc
from resfed_codec.tensors.layout import State, views_of
from resfed_codec.tensors.memory import on_host

Like: TypeAlias = Literal["transformer", "cnn"]
COLUMNS: dict[Like, int] = {"transformer": 1024, "cnn": 1152}
ROWS = 4096
"""Largest shape of a synthetic tensor; a row of a CNN is 128 channels of 3x3 kernels."""


def synthetic_update(
    n_elems: int, seed: int = 0, *, like: Like = "transformer"
) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
    """(state, reference) of a synthetic model whose residual clusters as in real training.

    - ``"transformer"``: rows differ in scale, log-normal (sigma 1.5); their elements are normal.
    - ``"cnn"``: nearly an outer product, like a gradient. Each row has a scale (sigma 1.5) and a
      sign. Each 3x3 kernel has a scale (sigma 0.3), and one in a hundred has the opposite sign.
      The product varies by 0.2 and has noise of 0.05 root mean squares.

    Three measures compare it with real updates: the share of nonzeros that directly follow their
    predecessor, the share of close neighbours (distance at most 2) of equal sign, and bits per
    nonzero. At sparsity 0.95 these are 0.46, 0.50 and 4.4 for ``"transformer"``, where two small
    Transformers have 0.35 to 0.64, 0.47 to 0.52 and 4.4 to 5.0; and 0.82, over 0.99 and 1.8 for
    ``"cnn"``, where the paper's CNN has 0.81 to 0.86, 0.99 and 1.8 to 2.0. At 0.99: 0.36, 0.50
    and 4.9 (0.30 to 0.57, 0.34 to 0.50, 3.0 to 4.9), and 0.78, over 0.99 and 1.9 (0.74 to 0.86,
    over 0.99, 1.5 to 1.8). It has no repeated rows, unlike the embeddings of absent tokens.

    Args:
        n_elems: Parameters, rounded to whole rows of 1,024 or 1,152 (at least one row, or
            ``n_elems`` if fewer).
        seed: Seed of the random generator.
        like: The kind of network.

    Returns:
        Two dicts of float32 matrices with at most 4,096 rows each.

    Raises:
        ValueError: ``n_elems`` is below 1, or ``like`` is unknown.
    """
    if n_elems < 1:
        raise ValueError(f"n_elems={n_elems}: must be at least 1")
    if like not in COLUMNS:
        raise ValueError(f"like={like!r}: must be one of {', '.join(COLUMNS)}")
    columns = min(n_elems, COLUMNS[like])
    rows = max(1, round(n_elems / columns))
    rng = np.random.default_rng(seed)
    state, reference = {}, {}
    for layer, first in enumerate(range(0, rows, ROWS)):
        shape = (min(ROWS, rows - first), columns)
        residual = _rows(shape, rng) if like == "transformer" else _outer_product(shape, rng)
        name = f"layer{layer:03}.weight"
        reference[name] = rng.standard_normal(shape, np.float32)
        residual += reference[name]
        state[name] = residual
    return state, reference


def _rows(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    residual = rng.standard_normal(shape, np.float32)
    residual *= rng.lognormal(np.log(0.01), 1.5, (shape[0], 1)).astype(np.float32)
    return residual


def _outer_product(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    row = rng.lognormal(np.log(0.01), 1.5, (shape[0], 1)) * rng.choice([-1, 1], (shape[0], 1))
    n_kernels = -(-shape[1] // 9)
    kernel = rng.lognormal(0, 0.3, n_kernels) * rng.choice([-1, 1], n_kernels, p=[0.01, 0.99])
    residual = rng.standard_normal(shape, np.float32)
    residual *= np.float32(0.2)
    residual += np.float32(1)
    residual *= row.astype(np.float32)
    residual *= np.repeat(kernel, 9)[: shape[1]].astype(np.float32)
    noise = rng.standard_normal(shape, np.float32)
    noise *= np.float32(0.05 * np.sqrt(np.mean(np.square(row)) * np.mean(np.square(kernel))))
    residual += noise
    return residual


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one task over all turns, and ratios from the median."""

    task: str
    median_ms: float
    least_ms: float
    greatest_ms: float
    ns_per_parameter: float
    times_copy: float


@dataclass(frozen=True)
class Report:
    """Result of :func:`measure`. ``n_bytes`` is the size of the model."""

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
            f"{'':20}{'median ms':>12}{'min':>10}{'max':>10}{'ns/param':>10}{'x copy':>9}",
        ]
        lines += [
            f"{t.task:20}{t.median_ms:12.4g}{t.least_ms:10.4g}{t.greatest_ms:10.4g}"
            f"{t.ns_per_parameter:10.4g}{t.times_copy:9.3g}"
            for t in self.timings
        ]
        return "\n".join(lines)


def measure(state: State, reference: State, *, sparsity: float = 0.99, turns: int = 9) -> Report:
    """Time encoding and decoding of ``state``, interleaved with a plain copy of its memory.

    Also times ``torch.sub`` of the two models where torch is installed and all tensors are float32.
    The first turn is a warm-up and is not counted. Needs memory for three more models.

    Args:
        state: The model to send, as for :func:`resfed_codec.encode`; NumPy or torch CPU tensors.
        reference: The model that the receiver holds.
        sparsity: As in :class:`resfed_codec.CodecConfig`.
        turns: Number of timed runs of each task, at least 1.

    Raises:
        ValueError, TypeError: As :func:`resfed_codec.encode` raises them, or ``turns`` is below 1.
    """
    if turns < 1:
        raise ValueError(f"turns={turns}: must be at least 1")
    payload = rfc.encode(state, reference, sparsity=sparsity)
    target = rfc.decode(payload, reference)
    sources = [on_host(view.array) for view in views_of(reference, "reference")]
    targets = [on_host(view.array) for view in views_of(target, "out")]

    def copy() -> None:
        for to, source in zip(targets, sources, strict=True):
            np.copyto(to, source)

    tasks: dict[str, Callable[[], object]] = {"copy": copy}
    tasks |= _torch_sub(state, reference)
    tasks["encode"] = lambda: rfc.encode(state, reference, sparsity=sparsity)
    tasks["decode, new arrays"] = lambda: rfc.decode(payload, reference)
    # Runs after a copy, which restores the reference in the target.
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
        (on_host(view.array), on_host(other.array))
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
