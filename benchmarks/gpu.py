"""Time of encode and decode on a CUDA device, compared with memory copies and other coders.

    python -m benchmarks.gpu [--snapshots fedavg_cnn.npz] [--elements 4000000 100000000 1000000000]

On the same tensors and in turn, it also times a device-to-device copy of a model (the ceiling),
``torch.sub(w, p, out=r)`` (the unit of comparison), a simple PyTorch pipeline (abs, topk, gather,
quantize, copy to the host), and nvCOMP's ANS over the quantized levels of all elements, if the
package nvidia-nvcomp-cu13 is installed. Times are wall-clock from Python, and the device is idle
before and after, since a payload ends on the host. The tables have medians and the range. Then it
runs one encode and one decode under torch's profiler for the time of each kernel. ``--device cpu``
runs the same code without a GPU, as a test.

Models are synthetic, made on the device row by row, with the clustering of
``resfed_codec.cli.bench.synthetic_update`` ("transformer").
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import resfed_codec as rfc
from benchmarks.common import load_snapshots, write_results

Model = dict[str, torch.Tensor]
COLUMNS = 1024
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def synthetic_update(n_elems: int, dtype: torch.dtype, device: str) -> tuple[Model, Model]:
    """(state, reference) on the device: rows differ in scale, log-normal (sigma 1.5)."""
    generator = torch.Generator(device).manual_seed(0)
    state, reference = {}, {}
    for layer, first in enumerate(range(0, n_elems // COLUMNS, 4096)):
        shape = (min(4096, n_elems // COLUMNS - first), COLUMNS)
        base = torch.randn(shape, device=device, generator=generator)
        rows = 0.01 * torch.exp(1.5 * torch.randn(shape[0], 1, device=device, generator=generator))
        residual = rows * torch.randn(shape, device=device, generator=generator)
        name = f"layer{layer:03}.weight"
        reference[name] = base.to(dtype)
        state[name] = (base + residual).to(dtype)
    return state, reference


def torch_pipeline(state: Model, reference: Model, sparsity: float) -> list[torch.Tensor]:
    """A simple pipeline: for each tensor, top-k of the residual, 8-bit levels and indices."""
    sent = []
    for name, value in state.items():
        residual = (value.float() - reference[name].float()).flatten()
        k = max(1, round(residual.numel() * (1 - sparsity)))
        index = residual.abs().topk(k, sorted=False).indices
        values = residual.gather(0, index)
        step = values.abs().max() / 127
        sent += [index.int().cpu(), torch.round(values / step).to(torch.int8).cpu()]
    return sent


def nvcomp_ans(state: Model, reference: Model, sparsity: float) -> tuple[Callable[[], Any], str]:
    """A call of nvCOMP's ANS over int8 levels of all elements, or the reason for its absence."""
    try:
        from nvidia import nvcomp
    except ImportError as error:
        return (lambda: None), f"nvCOMP left out: {error}"
    if not torch.cuda.is_available():
        return (lambda: None), "nvCOMP left out: no GPU"
    residual = torch.cat([(state[n].float() - reference[n].float()).flatten() for n in state])
    k = max(1, round(residual.numel() * (1 - sparsity)))
    sample = residual[torch.randint(residual.numel(), (1 << 20,), device="cuda")].abs()
    threshold = sample.kthvalue(max(1, round(sample.numel() * (1 - k / residual.numel())))).values
    levels = torch.where(residual.abs() >= threshold, residual / (2 * threshold), 0)
    levels = levels.round().clamp(-127, 127).to(torch.int8).view(torch.uint8)
    del residual
    codec = nvcomp.Codec(
        algorithm="ANS",
        data_type="|u1",
        cuda_stream=torch.cuda.current_stream().cuda_stream,
    )
    array = nvcomp.as_array(levels)
    return (lambda: codec.encode(array)), ""


def wall_times(tasks: dict[str, Callable[[], Any]], turns: int) -> dict[str, list[float]]:
    """Seconds of each task, in turn; the first two turns are warm-ups."""
    times: dict[str, list[float]] = {task: [] for task in tasks}
    for turn in range(turns + 2):
        for task, run in tasks.items():
            synchronize()
            begin = time.perf_counter()
            run()
            synchronize()
            if turn >= 2:
                times[task].append(time.perf_counter() - begin)
    return times


def measure(
    name: str, pair: tuple[Model, Model], sparsity: float, turns: int
) -> list[dict[str, Any]]:
    state, reference = pair
    n_elems = sum(value.numel() for value in state.values())
    n_bytes = sum(value.numel() * value.element_size() for value in state.values())
    target = {key: value.clone() for key, value in reference.items()}
    payload = rfc.encode(state, reference, sparsity=sparsity)
    on_host = rfc.encode(
        {key: value.cpu() for key, value in state.items()},
        {key: value.cpu() for key, value in reference.items()},
        sparsity=sparsity,
    ) if n_elems <= 10**8 else payload  # fmt: skip
    if payload != on_host:
        raise AssertionError(f"{name}: the device's payload is not the CPU's")
    differences = {key: torch.empty_like(value) for key, value in state.items()}

    def copy() -> None:
        for key, value in reference.items():
            target[key].copy_(value)

    def subtract() -> None:
        for key, value in state.items():
            torch.sub(value, reference[key], out=differences[key])

    ans, problem = nvcomp_ans(state, reference, sparsity)
    tasks = {
        "copy": copy,
        "torch.sub": subtract,
        "encode": lambda: rfc.encode(state, reference, sparsity=sparsity),
        "copy before decode": copy,  # restores the reference in the target
        "decode, in place": lambda: rfc.decode(payload, target, out=target),
        "PyTorch pipeline": lambda: torch_pipeline(state, reference, sparsity),
        "nvCOMP ANS": ans,
    }
    if problem:
        print(problem)
        del tasks["nvCOMP ANS"]
    times = wall_times(tasks, turns)
    measure_of = statistics.median(times["torch.sub"])
    return [
        {
            "model": name,
            "parameters": n_elems,
            "sparsity": sparsity,
            "what": task,
            "median ms": 1e3 * statistics.median(seconds),
            "least": 1e3 * min(seconds),
            "greatest": 1e3 * max(seconds),
            "GB/s of the model": n_bytes / statistics.median(seconds) / 1e9,
            "times torch.sub": statistics.median(seconds) / measure_of,
            "payload bytes": len(payload) if "code" in task else None,
        }
        for task, seconds in times.items()
        if task != "copy before decode"
    ]


def kernel_name(signature: str) -> str:
    """A kernel's name without namespaces and arguments. Names of copies are unchanged."""
    if signature.startswith(("Memcpy", "Memset")):
        return signature
    for unnamed in ("(anonymous namespace)::", "<unnamed>::"):
        signature = signature.replace(unnamed, "")
    return re.split(r"[(<]", signature)[0].split("::")[-1].split(" ")[-1]


def kernels(name: str, pair: tuple[Model, Model], sparsity: float) -> list[dict[str, Any]]:
    """Microseconds of each kernel and copy of one encode and decode; empty without profiler."""
    try:
        return profiled(name, pair, sparsity)
    except Exception as error:  # a profiler error must not lose the other results
        print(f"{name}: no kernel times: {type(error).__name__}: {error}")
        return []


def profiled(name: str, pair: tuple[Model, Model], sparsity: float) -> list[dict[str, Any]]:
    from torch.profiler import ProfilerActivity, profile

    state, reference = pair
    payload = rfc.encode(state, reference, sparsity=sparsity)
    target = {key: value.clone() for key, value in reference.items()}
    rows = []
    for call, run in (
        ("encode", lambda: rfc.encode(state, reference, sparsity=sparsity)),
        ("decode", lambda: rfc.decode(payload, target, out=target)),
    ):
        synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            run()
            synchronize()
        rows += [
            {
                "model": name,
                "call": call,
                "kernel": kernel_name(event.key),
                "times": event.count,
                "microseconds": event.device_time_total,
            }
            for event in recorded.key_averages()
            if event.device_time_total > 0
        ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--elements", type=int, nargs="*", default=[4 * 10**6, 10**8, 10**9])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.9, 0.99, 0.999])
    parser.add_argument("--dtypes", nargs="+", choices=sorted(DTYPES), default=sorted(DTYPES))
    parser.add_argument("--snapshots", type=Path, help=".npz that holds g6 and l0_7")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--device", default="cuda", help="cpu runs the code without a GPU")
    parser.add_argument("--out", type=Path, help="folder for the results")
    args = parser.parse_args()
    if args.device == "cuda" and not rfc.cuda_available():
        raise SystemExit("no CUDA device, or a build without CUDA")
    folder = {} if args.out is None else {"folder": args.out}
    gpu = torch.cuda.get_device_name() if args.device == "cuda" else args.device
    note = f"Device: {gpu}, torch {torch.__version__}. Wall-clock from Python, in turn."
    rows: list[dict[str, Any]] = []
    details: list[dict[str, Any]] = []
    if args.snapshots:
        models = load_snapshots(args.snapshots)
        pair = tuple(
            {key: torch.from_numpy(value).to(args.device) for key, value in models[prefix].items()
             if value.dtype.kind == "f"}
            for prefix in ("l0_7", "g6")
        )  # fmt: skip
        rows += measure("CNN, g6 to l0_7, float32", (pair[0], pair[1]), 0.99, args.turns)
        details += kernels("CNN, g6 to l0_7, float32", (pair[0], pair[1]), 0.99)
    for n_elems in args.elements:
        for dtype in args.dtypes:
            name = f"synthetic, {dtype}"
            update = synthetic_update(n_elems, DTYPES[dtype], args.device)
            for sparsity in args.sparsity:
                rows += measure(name, update, sparsity, args.turns)
                # Write the results so far, in case of a timeout.
                write_results("gpu", "Speed on a GPU", rows, note, **folder)
            if dtype == "float32" and 0.99 in args.sparsity:
                details += kernels(f"{name}, {n_elems:,}", update, 0.99)
            if details:
                write_results("gpu_kernels", "Time of each kernel", details, note, **folder)
            del update
            if args.device == "cuda":
                torch.cuda.empty_cache()
    print(write_results("gpu", "Speed on a GPU", rows, note, **folder))
    if details:
        print(write_results("gpu_kernels", "Time of each kernel", details, note, **folder))


if __name__ == "__main__":
    main()
