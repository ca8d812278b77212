"""Make the golden payloads of the current format version. Run once, by hand:

    python tests/golden/make.py

Golden payloads are never regenerated: payloads of a released version must always decode. New
features add cases, and a new format version gets a folder of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

import resfed_codec as rfc

FOLDER = Path(__file__).parent / "v1"


def ramp(shape: tuple[int, ...], scale: float, dtype: str = "float32") -> np.ndarray:
    """Numbers from integers and exact operations, independent of the versions of random generators
    and mathematical libraries.

    Rows differ in scale, as those of trained models do.
    """
    n = int(np.prod(shape))
    i = np.arange(n, dtype=np.int64)
    noise = ((i * 2654435761) % 1000003) / 500001.5 - 1
    rows = 1 + (i // shape[-1] * 7919) % 31 if shape else np.ones(n)
    return (scale * noise * noise * noise * rows * rows).astype(dtype).reshape(shape)


def block_scaled(shape: tuple[int, int] | tuple[int, int, int, int], block: int) -> np.ndarray:
    """Like a ramp, but blocks instead of rows differ in scale, and rows are not similar."""
    i = np.arange(int(np.prod(shape)), dtype=np.int64)
    signs = 1 - 2 * (i * i % 65537 * 7919 % 101 % 2)
    scale = 1 + (i // block) ** 2 % 10007 % 61
    noise = 1 + i * i % 509 % 64
    return (signs * scale * scale * noise / 65536).astype(np.float32).reshape(shape)


def model(shapes: dict[str, tuple[int, ...]], scale: float, dtype: str = "float32") -> Any:
    """(state, reference)"""
    reference = {name: ramp(shape, 1.0, dtype) for name, shape in shapes.items()}
    state = {
        name: (value + ramp(value.shape[::-1], scale, dtype).reshape(value.shape)).astype(dtype)
        for name, value in reference.items()
    }
    return state, reference


CNN = {"conv.weight": (16, 8, 3, 3), "fc.weight": (10, 300), "fc.bias": (10,), "norm.var": (16,)}
NORM = {"norm.running_mean": (16,), "norm.running_var": (16,)}


def cases() -> dict[str, tuple[Any, Any, dict[str, Any]]]:
    """Name of the case -> state, reference, options of encode."""
    state, reference = model(CNN, 0.01)
    counters = {"count": np.array(7, np.int64), "mask": np.arange(40) % 3 == 0}
    moved = {"count": np.array(31, np.int64), "mask": np.arange(40) % 5 == 0}
    norm = model(CNN | NORM, 0.01)
    big, big_reference = model({"w": (200, 300), "v": (500,)}, 0.01)
    powers = np.arange(600, dtype=np.int32).reshape(20, 30) * 7919 % 41 - 20
    turns = (np.arange(60, dtype=np.int64) * 7919 % 7 - 3).astype(np.float32)
    alike = {"w": turns[:, None] * ramp((1, 50), 1.0), "b": ramp((20,), 0.1)}
    wide = {"w": np.ldexp(np.float32(1), powers)}
    rows, columns = (np.where(np.arange(n) % 3 == 1, ramp((n,), 1.0), 0) for n in (90, 70))
    product = {"w": np.outer(rows, columns).astype(np.float32)}
    far = {"v": np.where(np.arange(150_000) % 70_001 == 5, np.float32(1), np.float32(0))}
    blocks = {
        "conv": block_scaled((48, 32, 3, 3), 9),
        "head": block_scaled((10, 48 * 16), 16),
    }
    floats = {
        "half": ramp((90, 40), 1.0, "float16"),
        "single": ramp((30, 20), 1.0),
        "double": ramp((10, 20), 1.0, "float64"),
        "complex": ramp((10, 20), 1.0).view(np.complex64),
    }
    steps = {  # of which those of small numbers change no bit
        name: value + ramp(value.shape, 1 / 4096).astype(value.dtype)
        for name, value in floats.items()
    }
    edges = np.array([0, 1, -1, 2**62, -(2**62), 2**63 - 1, -(2**63)], np.int64)
    far_changes = {"whole": np.repeat(edges, 7), "double": np.repeat(edges, 7).view(np.float64)}
    far_reference = {name: np.tile(value[::7], 7) for name, value in far_changes.items()}
    far_changes["wide"] = np.ldexp(1.0, np.arange(200) * 7919 % 61)
    far_reference["wide"] = far_changes["wide"] * (1 + np.arange(200) * 7919 % 101 / 128)
    return {
        "default": (state, reference, {"sparsity": 0.99}),
        "small_model": (state, reference, {}),
        "frozen_layers": ({**state, "conv.weight": reference["conv.weight"]}, reference, {}),
        "nothing_changed": (reference, reference, {}),
        "empty_model": ({}, {}, {}),
        "sequence": ([*state.values()], [*reference.values()], {"sparsity": 0.9}),
        "integers": ({**state, **moved}, {**reference, **counters}, {"sparsity": 0.95}),
        "excluded": (state, reference, {"sparsity": 0.95, "exclude": ("norm.*", "fc.bias")}),
        "excluded_floats": (steps, floats, {"exclude": "*"}),
        "far_changes": (far_changes, far_reference, {"exclude": "*"}),
        "float16": (*model(CNN, 0.01, "float16"), {"sparsity": 0.9}),
        "float64": (*model(CNN, 0.01, "float64"), {"sparsity": 0.9}),
        "vectors_only": (*model({"flat": (3000,)}, 0.01), {"sparsity": 0.95}),
        "several_slices": (big, big_reference, {"sparsity": 0.3}),
        "everything_sent": (state, reference, {"sparsity": 0.0}),
        "rows_alike": (
            alike,
            {name: np.zeros_like(value) for name, value in alike.items()},
            {"sparsity": 0.6},
        ),
        "outer_product": (product, {"w": np.zeros((90, 70), np.float32)}, {"sparsity": 0.95}),
        "long_gaps": (far, {"v": np.zeros(150_000, np.float32)}, {"sparsity": 0.9}),
        "blocks": (
            blocks,
            {name: np.zeros_like(value) for name, value in blocks.items()},
            {"sparsity": 0.7},
        ),
        "step": (state, reference, {"sparsity": 0.9, "step": 8.0}),
        "bits": (state, reference, {"sparsity": 0.9, "bits": 3}),
        "escaped_levels": (
            wide,
            {"w": np.zeros((20, 30), np.float32)},
            {"sparsity": 0.2, "step": 50.0},
        ),
        "max_bytes": (state, reference, {"max_bytes": 400}),
        "max_error": (state, reference, {"max_error": 0.3}),
        "dense": (*norm, {"sparsity": 0.95}),
        "dense_and_excluded": (
            *model(CNN | NORM, 0.01, "float16"),
            {"sparsity": 0.9, "exclude": "fc.bias", "dense_bits": 6},
        ),
        "dense_only": (*norm, {"dense": "*"}),
    }


def arrays_of(state: Any) -> list[np.ndarray]:
    return list(state.values()) if isinstance(state, dict) else list(state)


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    for name, (state, reference, options) in cases().items():
        path = FOLDER / f"{name}.rfd"
        if path.exists():
            print(f"{path.name} stands and stays")
            continue
        payload = rfc.encode(state, reference, **options)
        path.write_bytes(payload)
        decoded = rfc.decode(payload, reference)
        np.savez_compressed(
            path.with_suffix(".npz"), *(np.asarray(array) for array in arrays_of(decoded))
        )
        print(f"{path.name}: {len(payload)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
