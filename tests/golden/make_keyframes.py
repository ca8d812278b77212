"""Make the golden keyframes of the current format version. Run once, by hand:

    python tests/golden/make_keyframes.py

As in make.py, golden keyframes are never regenerated.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

import resfed_codec as rfc
from make import ramp

FOLDER = Path(__file__).parent / "keyframe_v1"


def cases() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Name of the case -> state, options of encode_keyframe."""
    edges = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-320, np.finfo("f8").max]
    state = {
        "conv.weight": ramp((16, 8, 3, 3), 0.05),
        "half": ramp((30, 10), 0.05, "float16"),
        "double": np.concatenate([ramp((40,), 0.05, "float64"), edges]),
        "count": np.array(7, np.int64),
        "mask": np.arange(40) % 3 == 0,
        "empty": np.zeros((0, 3), np.float32),
        "zeros": np.zeros(70_000, np.float32),
    }
    long = {"w": ramp((60, 80), 0.05), "n": np.arange(70_000, dtype=np.int32) ** 2 % 5}
    return {
        "lossless": (state, {}),
        "mantissa_7": (state, {"mantissa_bits": 7}),
        "several_lanes": (long, {}),
    }


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    for name, (state, options) in cases().items():
        path = FOLDER / f"{name}.rfk"
        if path.exists():
            print(f"{path.name} stands and stays")
            continue
        payload = rfc.encode_keyframe(state, **options)
        path.write_bytes(payload)
        np.savez_compressed(path.with_suffix(".npz"), **rfc.decode_keyframe(payload, state))
        print(f"{path.name}: {len(payload)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
