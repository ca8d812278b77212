"""Whether ``max_norm`` holds, in random and extreme cases.

    python -m benchmarks.norm [--cases 1000000]

A case is one update: small tensors of all float dtypes whose values and changes have magnitudes
over the whole range of the dtype, a bound far above, near or far below the norm of the change, and
random options. In half of the settings, error feedback goes from one update to the next. What the
encoder says that the other end recovers is compared with the reference in float64, and the squares
of the differences are added up without rounding; the encoder's own sums are not used.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import resfed_codec as rfc
from benchmarks.common import write_results
from resfed_codec import _native
from resfed_codec.codec.native_call import tensors_of
from resfed_codec.codec.update import native_options
from resfed_codec.tensors.layout import specs_of, views_of
from resfed_codec.tensors.roles import role_overrides, roles_of

DTYPES: list[Any] = [np.float32, np.float16, ml_dtypes.bfloat16, np.float64]
UPDATES = 20
"""Of a setting."""

REFUSED = (_native.Code.NON_FINITE, _native.Code.BUDGET_TOO_SMALL)
"""The change overflows float32, or the payload has no room."""

Array = NDArray[Any]


def cases(seed: int) -> list[float | None]:
    """The updates of one random setting: of each, the norm of the change that is recovered over the
    bound, or None if it is refused."""
    rng = np.random.default_rng(seed)
    held = _reference(rng)
    states = [_moved(array, rng) for array in held]
    size = norm([state[0] for state in states], held)
    exponent = float(rng.choice([0, rng.uniform(-1, 1), rng.uniform(-20, 20)]))
    bound = min(max(size * 2.0**exponent, 2.0**-100), 2.0**100) if size > 0 else 1.0
    config = rfc.CodecConfig(max_norm=bound, **_options(rng))
    specs = specs_of(views_of(held, "state"))
    overrides = role_overrides(specs, config)
    roles = roles_of(specs, overrides)
    has_feedback = rng.random() < 0.5
    feedback = [
        np.zeros(array.shape, np.float32)
        if has_feedback and role in (_native.Role.MATRIX, _native.Role.VECTOR)
        else None
        for array, role in zip(held, roles, strict=True)
    ]
    views = [_bits(array) for array in held]
    found: list[float | None] = []
    for update in range(UPDATES):
        out = [np.empty_like(view) for view in views]
        current = [_bits(state[update]) for state in states]
        tensors = tensors_of(specs, roles, views, current=current, out=out, feedback=feedback)
        options = native_options(config, specs, roles, overrides, tensors)
        try:
            _native.encode(tensors, options)
        except _native.NativeError as error:
            if error.code not in REFUSED:
                raise
            found.append(None)
            continue
        recovered = [view.view(array.dtype) for view, array in zip(out, held, strict=True)]
        found.append(norm(recovered, held) / bound)
        if has_feedback:
            views, held = out, recovered
    return found


def norm(state: list[Array], reference: list[Array]) -> float:
    """The L2 norm of the difference, the sum of squares rounded once."""
    squares: list[float] = []
    for new, old in zip(state, reference, strict=True):
        with np.errstate(over="ignore"):
            change = new.astype(np.float64) - old.astype(np.float64)
            squares += np.square(change).reshape(-1).tolist()
    try:
        return math.sqrt(math.fsum(squares))
    except OverflowError:
        return math.inf


def _bits(array: Array) -> Array:
    return array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array


def _options(rng: np.random.Generator) -> dict[str, Any]:
    options: dict[str, Any] = {"sparsity": float(rng.choice([0, 0.5, 0.9, 0.99]))}
    if rng.random() < 0.05:  # tries many times
        options = {"max_bytes": int(rng.integers(300, 1000))}
    if rng.random() < 0.3:
        options["bits"] = int(rng.integers(1, 9))
    elif rng.random() < 0.3:
        options["step"] = float(2.0 ** rng.integers(-3, 8))
    if rng.random() < 0.3:
        options["dense"] = ("1",)
    return options


def _reference(rng: np.random.Generator) -> list[Array]:
    """A matrix and a vector, mostly of one dtype."""
    dtype = DTYPES[rng.integers(len(DTYPES))]
    last = DTYPES[rng.integers(len(DTYPES))] if rng.random() < 0.2 else dtype
    shapes = [(int(rng.integers(1, 12)), int(rng.integers(1, 12))), (int(rng.integers(1, 20)),)]
    spread = float(rng.choice([0, 1, 10]))
    reference = []
    for shape, kind in zip(shapes, (dtype, last), strict=True):
        exponents = _exponent(rng, kind) + spread * rng.standard_normal(shape)
        values = rng.standard_normal(shape) * 2.0 ** np.clip(exponents, -1070, 1020)
        values[rng.random(shape) < 0.1] = 0
        reference.append(_cast(values, kind))
    return reference


def _exponent(rng: np.random.Generator, dtype: Any) -> float:
    if rng.random() < 0.5:
        return float(rng.uniform(-8, 2))  # as in models
    info = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    low, high = max(float(info.minexp) - 10, -1000.0), min(float(info.maxexp), 1000.0)
    return float(rng.uniform(low, high))


def _moved(reference: Array, rng: np.random.Generator) -> Array:
    """States of all updates; changes are larger or smaller than the values."""
    scale = float(rng.choice([0, -3, rng.uniform(-30, 3)]))
    spread = float(rng.choice([0, 0.1, 1, 8]))
    shape = (UPDATES, *reference.shape)
    wide = reference.astype(np.float64)
    typical = float(np.abs(wide).max(initial=0)) or 1.0
    factors = 2.0 ** (scale + spread * rng.standard_normal(shape))
    with np.errstate(over="ignore"):
        return _cast(wide + typical * factors * rng.standard_normal(shape), reference.dtype)


def _cast(values: NDArray[np.float64], dtype: Any) -> Array:
    most = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
    return np.clip(values, -most, most).astype(dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", type=int, default=1_000_000)
    args = parser.parse_args()
    n = refused = above = at_bound = 0
    most = 0.0
    for seed in tqdm(range(-(-args.cases // UPDATES))):
        for ratio in cases(seed):
            n += 1
            if ratio is None:
                refused += 1
                continue
            above += ratio > 1
            at_bound += 0.999 < ratio <= 1
            most = max(most, ratio)
    row = {
        "cases": n,
        "refused (not finite, max_bytes too small)": refused,
        "within 0.1 % below the bound": at_bound,
        "above the bound": above,
        "most, of the bound": f"{most:.12f}",
    }
    note = "Cases: one update each, see benchmarks/norm.py."
    print(write_results("norm", "max_norm in random and extreme cases", [row], note))


if __name__ == "__main__":
    main()
