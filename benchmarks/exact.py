"""Bits per changed weight where every bit must arrive: a step of AdamW, coded losslessly.

    python -m benchmarks.exact weights.npz

Trains a GPT of 3.2 million parameters on the source of Python's standard library, with float32
weights, and goes on at small learning rates, as fine-tuning does. The weights before and after a
step, in bfloat16, float16 and float32, are coded with ``exclude="*"``. Beside it, zstd codes the
XOR of all bits, which is what trainers send to inference workers today.

The weights are stored in the file that is named, and taken from it if it exists. Times are those of
one thread, medians of several turns, relative to copying one of the models.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - gives NumPy bfloat16
import numpy as np
import torch
import zstandard
from torch.nn import functional
from tqdm import tqdm

import resfed_codec as rfc
from benchmarks.common import Model, load_snapshots, write_results
from benchmarks.federated.gpt import Gpt, Size
from benchmarks.federated.language import draw
from benchmarks.federated.text import load_text

SIZE = Size(width=256, layers=4, heads=4, context=64)
FIRST_STEPS, FIRST_RATE = 400, 1e-3
RATES = (1e-6, 1e-5)
STEPS = 30  # at each rate, before the one that is coded
TURNS = 9


def train(path: Path) -> None:
    """Write models ``{rate}_0|name`` and ``{rate}_1|name``, before and after a step."""
    torch.manual_seed(0)
    model, rng, text = Gpt(SIZE), np.random.default_rng(0), load_text("python").train
    weights: Model = {}
    for rate, n_steps in [(FIRST_RATE, FIRST_STEPS), *((rate, STEPS) for rate in RATES)]:
        optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.1)
        for step in tqdm(range(n_steps + 1), desc=f"{rate:g}"):
            if step == n_steps and rate in RATES:
                keep(weights, f"{rate:g}_0", model)
            sequences = draw(text, 16, SIZE.context, rng)
            logits = model(sequences[:, :-1]).flatten(0, 1)
            optimizer.zero_grad()
            functional.cross_entropy(logits, sequences[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if rate in RATES:
            keep(weights, f"{rate:g}_1", model)
    np.savez(path, **weights)  # type: ignore[arg-type]


def keep(weights: Model, prefix: str, model: Gpt) -> None:
    for name, value in model.named_parameters():
        weights[f"{prefix}|{name}"] = value.detach().numpy().copy()


def median_time(call: Callable[[], Any]) -> float:
    times = []
    for _ in range(TURNS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(before: Model, after: Model) -> dict[str, Any]:
    config = rfc.CodecConfig(exclude=("*",))
    payload = rfc.encode(after, before, config)
    decoded = rfc.decode(payload, before)
    if any(decoded[name].tobytes() != after[name].tobytes() for name in after):
        raise RuntimeError("the decoded model differs")

    def patterns(model: Model) -> np.ndarray[Any, Any]:
        bits = {2: np.uint16, 4: np.uint32}[next(iter(model.values())).itemsize]
        return np.concatenate([value.view(bits).ravel() for value in model.values()])

    old, new = patterns(before), patterns(after)
    xor = (old ^ new).tobytes()
    n_changed = int((old != new).sum())
    copy, encode, decode = (
        median_time(call)
        for call in (
            old.copy,
            lambda: rfc.encode(after, before, config),
            lambda: rfc.decode(payload, before),
        )
    )
    return {
        "changed, %": 100 * n_changed / len(old),
        "bits a change": 8 * len(payload) / n_changed,
        **{
            f"XOR, zstd -{level}": 8 * len(zstandard.compress(xor, level)) / n_changed
            for level in (1, 19)
        },
        "encode, times a copy": encode / copy,
        "decode, times a copy": decode / copy,
        "encode, GB/s": old.nbytes / 1e9 / encode,
        "decode, GB/s": old.nbytes / 1e9 / decode,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("weights", type=Path, help="an .npz file; made if it does not exist")
    args = parser.parse_args()
    if not args.weights.exists():
        train(args.weights)
    models = load_snapshots(args.weights)
    rfc.set_num_threads(1)
    rows = []
    for rate in RATES:
        for dtype in ("bfloat16", "float16", "float32"):
            before, after = (
                {name: value.astype(dtype) for name, value in models[f"{rate:g}_{i}"].items()}
                for i in (0, 1)
            )
            rows.append({"learning rate": f"{rate:g}", "dtype": dtype, **measure(before, after)})
    print(write_results("exact", "Exact residuals: a step of AdamW, every bit", rows))


if __name__ == "__main__":
    main()
