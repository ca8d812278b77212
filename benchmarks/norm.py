"""Whether ``max_norm`` holds, in random and extreme cases.

    python -m benchmarks.norm [--cases 1000000]

A case is one update: small models of all float dtypes whose values and changes have magnitudes over
the whole range of the dtype, a bound far above, near or far below the norm of the change, and
random options. Half of the updates come from a stream with error feedback. What is decoded is
compared with the reference in float64, and the squares of the differences are added up without
rounding; the encoder's own sums are not used.
"""

from __future__ import annotations

import argparse
import math
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import resfed_codec as rfc
from benchmarks.common import write_results

DTYPES: list[Any] = [np.float32, np.float16, ml_dtypes.bfloat16, np.float64]
UPDATES_OF_A_STREAM = 4

REFUSALS = ("is not finite", "max_bytes: too small")
"""Errors of cases whose change overflows float32, or whose payload has no room."""

Model = dict[str, NDArray[Any]]


class Found(NamedTuple):
    """What a case led to: the norm of the change that was decoded over the bound, and the same
    without a bound; or nothing if the update was refused."""

    ratio: float
    unbounded: float


def cases(seed: int) -> list[Found | None]:
    """The updates of one random setting."""
    rng = np.random.default_rng(seed)
    reference = _model(rng)
    spread = float(rng.choice([0, 0.1, 1, 8]))
    scale = _magnitude(rng, reference)
    states = [_moved(reference, rng, scale, spread) for _ in range(UPDATES_OF_A_STREAM)]
    free: dict[str, Any] = {"sparsity": float(rng.choice([0, 0.5, 0.9, 0.99]))}
    if rng.random() < 0.2:
        free = {"max_bytes": int(rng.integers(300, 1000))}
    if rng.random() < 0.3:
        free["bits"] = int(rng.integers(1, 9))
    elif rng.random() < 0.3:
        free["step"] = float(2.0 ** rng.integers(-3, 8))
    if rng.random() < 0.3:
        free["dense"] = ("a",)
    size = norm(states[0], reference)
    exponent = float(rng.choice([0, rng.uniform(-1, 1), rng.uniform(-20, 20)]))
    bound = min(max(size * 2.0**exponent, 2.0**-100), 2.0**100) if size > 0 else 1.0
    if rng.random() < 0.5:
        return [_of_encode(state, reference, free, bound) for state in states]
    encoder = rfc.Encoder(reference, max_norm=bound, error_feedback=True, **free)
    return [_of_stream(encoder, state, free, bound) for state in states]


def norm(state: Model, reference: Model) -> float:
    """The L2 norm of the difference, the sum of squares rounded once."""
    squares: list[float] = []
    for name, value in reference.items():
        with np.errstate(over="ignore"):
            change = state[name].astype(np.float64) - value.astype(np.float64)
            squares += np.square(change).reshape(-1).tolist()
    try:
        return math.sqrt(math.fsum(squares))
    except OverflowError:
        return math.inf


def _of_encode(state: Model, reference: Model, free: dict[str, Any], bound: float) -> Found | None:
    try:
        payload = rfc.encode(state, reference, max_norm=bound, **free)
        unbounded = rfc.decode(rfc.encode(state, reference, **free), reference)
    except ValueError as error:
        if any(text in str(error) for text in REFUSALS):
            return None
        raise
    changed = norm(rfc.decode(payload, reference), reference)
    return Found(changed / bound, norm(unbounded, reference) / bound)


def _of_stream(
    encoder: rfc.Encoder, state: Model, free: dict[str, Any], bound: float
) -> Found | None:
    reference = encoder.state
    try:
        encoder.encode(state)
        unbounded = rfc.decode(rfc.encode(state, reference, **free), reference)
    except ValueError as error:
        if any(text in str(error) for text in REFUSALS):
            return None
        raise
    return Found(norm(encoder.state, reference) / bound, norm(unbounded, reference) / bound)


def _model(rng: np.random.Generator) -> Model:
    dtype = DTYPES[rng.integers(len(DTYPES))]
    last = DTYPES[rng.integers(len(DTYPES))] if rng.random() < 0.2 else dtype
    shapes = [(int(rng.integers(1, 12)), int(rng.integers(1, 12))), (int(rng.integers(1, 20)),)]
    spread = float(rng.choice([0, 1, 10]))
    return {
        name: _numbers(rng, shape, kind, _exponent(rng, kind), spread)
        for name, shape, kind in zip("wa", shapes, (dtype, last), strict=True)
    }


def _exponent(rng: np.random.Generator, dtype: Any) -> float:
    info = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    if rng.random() < 0.5:
        return float(rng.uniform(-8, 2))  # as in models
    low = max(float(info.minexp) - 10, -1000.0)
    return float(rng.uniform(low, min(float(info.maxexp), 1000.0)))


def _numbers(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, exponent: float, spread: float
) -> NDArray[Any]:
    values = rng.standard_normal(shape) * 2.0 ** np.clip(
        exponent + spread * rng.standard_normal(shape), -1070, 1020
    )
    values[rng.random(shape) < 0.1] = 0
    return _cast(values, dtype)


def _magnitude(rng: np.random.Generator, reference: Model) -> float:
    """By what the change's magnitude differs from the values': a power of two."""
    return float(rng.choice([0, -3, rng.uniform(-30, 3)]))


def _moved(reference: Model, rng: np.random.Generator, scale: float, spread: float) -> Model:
    moved = {}
    for name, value in reference.items():
        wide = value.astype(np.float64)
        typical = float(np.abs(wide).max(initial=0)) or 1.0
        factors = 2.0 ** (scale + spread * rng.standard_normal(value.shape))
        with np.errstate(over="ignore"):
            moved[name] = _cast(
                wide + typical * factors * rng.standard_normal(value.shape), value.dtype
            )
    return moved


def _cast(values: NDArray[np.float64], dtype: Any) -> NDArray[Any]:
    most = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
    return np.clip(values, -most, most).astype(dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", type=int, default=1_000_000)
    args = parser.parse_args()
    n = refused = above = limited = near = 0
    most = 0.0
    with tqdm(total=args.cases) as bar:
        for seed in range(-(-args.cases // UPDATES_OF_A_STREAM)):
            for found in cases(seed):
                n += 1
                if found is None:
                    refused += 1
                    continue
                above += found.ratio > 1
                limited += found.unbounded > 1
                near += found.unbounded > 1 and found.ratio > 0.999
                most = max(most, found.ratio)
            bar.update(UPDATES_OF_A_STREAM)
    row = {
        "cases": n,
        "refused (not finite, max_bytes too small)": refused,
        "above the bound without it": limited,
        "of these within 0.1 % of it": near,
        "above the bound": above,
        "most, of the bound": f"{most:.12f}",
    }
    note = "Cases: one update each, see benchmarks/norm.py."
    print(write_results("norm", "max_norm in random and extreme cases", [row], note))


if __name__ == "__main__":
    main()
