"""How long stages would take on a GPU by a simple model. Nothing here runs on hardware.

    python -m benchmarks.gpu_prediction

A kernel takes as long as its slowest part: bytes at the memory's rate, or the cycles that
results/ptx_cycles.md has for it, since those are mostly of steps that wait for each other; and a
launch before. Kernels in which a lane is a chain of steps take the simulator's cycles per step.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from benchmarks.common import RESULTS, write_results

CLOCK = 1.755e9  # cycles in a second
MEMORY = 0.85 * 4.8e12  # bytes in a second that a kernel reaches
LAUNCH = 3e-6
WAIT = 12e-6  # a copy to the host, the wait, and the host's next launch
SIMULATED_LAUNCH = 5000  # cycles in each figure of the simulator
STEPS = 64  # of its slice
SPARSITY = 0.99
LANE = 1024  # nonzeros
NOTE = f"""\
A prediction: nothing ran on hardware. In ms, for float32 parameters, at sparsity {SPARSITY}, in
place, without error feedback; the host's own work is left out. {CLOCK / 1e9} GHz,
{MEMORY / 1e12:.1f} TB/s (85 % of an H200's), {LAUNCH * 1e6:.0f} us for a launch and
{WAIT * 1e6:.0f} us for a wait.
A kernel takes its bytes at that rate or, if that is longer, its cycles of
[ptx_cycles.md](ptx_cycles.md); where a lane is a chain of steps, cycles per step times {LANE}.
The simulator takes 8 to 10 cycles from an instruction to one that needs it; newer GPUs are said to
take 4 to 6, and would be faster in chains. `torch.sub` moves 12 bytes for a parameter."""


@dataclass
class Kernel:
    """Of each parameter and of each nonzero: bytes it moves."""

    name: str
    of_parameter: float = 0
    of_nonzero: float = 0
    is_chain: bool = False
    times: int = 1


# A candidate is a nonzero and 5 % more: 6 bytes. What is scattered moves sectors of 32 bytes.
ENCODE = {
    "threshold from samples": [Kernel("sample_keys")],
    "fused pass": [Kernel("collect_chunks", 8, 6.3)],
    "selection, levels": [
        Kernel("count_digits", 0, 4.2, times=2),
        Kernel("count_sent", 24 / 4096, 4.2),
        Kernel("fit_step"),
        Kernel("quantize_chunks", 24 / 4096, 6.3 + 8),
        Kernel("compute_recovered", 0, 8 + 64 + 8),
    ],
    "scan orders, without columns": [
        Kernel("begin_scan"),
        Kernel("mark_lines", 0, 8 + 8),
        Kernel("compact", 0, 16),
        Kernel("vote", 0, 8 + 32),
        Kernel("a sort that returns", times=6),
        Kernel("compare_neighbors", 0, 16),
        Kernel("choose_flips"),
        Kernel("flip", 0, 8),
    ],
    "symbols": [Kernel("find_codes", 0, 16, is_chain=True)],
    "costs": [Kernel("find_costs", 0, 8 + 64), Kernel("sum_fitted_costs", 0, 8 + 64)],
    "words": [Kernel("encode_each", 0, 8 + 64 + 2, is_chain=True)],
}
DECODE = {
    "nonzeros": [Kernel("decode_each", 0, 8 + 2, is_chain=True)],
    "places": [Kernel("place_lanes"), Kernel("place_symbols", 0, 16)],
    "recovered values, in place": [
        Kernel("compute_recovered", 0, 8 + 32 + 8),
        Kernel("write_each", 0, 16 + 32),
    ],
}


def simulated() -> dict[str, float]:
    """Cycles of a kernel, in a slice of 32 lanes, without the launch; of decoding's, the last."""
    page = (RESULTS / "ptx_cycles.md").read_text().split(f"{STEPS} steps")[-1]
    rows = re.findall(r"^\| (\w+) \| ([\d,]+) \|", page, re.MULTILINE)
    return {name: int(n.replace(",", "")) - SIMULATED_LAUNCH for name, n in rows}


def seconds(kernel: Kernel, n: float, cycles: dict[str, float]) -> float:
    nonzeros = n * (1 - SPARSITY)
    floor = cycles.get(kernel.name, 0)
    if kernel.is_chain:
        floor *= min(LANE, nonzeros) / STEPS
    moved = kernel.of_parameter * n + kernel.of_nonzero * nonzeros
    return kernel.times * (LAUNCH + max(floor / CLOCK, moved / MEMORY))


def main() -> None:
    sizes = {"1 M": 1e6, "100 M": 1e8, "1 G": 1e9}
    cycles = simulated()
    rows: list[dict[str, Any]] = []
    for call, stages, n_waits in (("encode", ENCODE, 4), ("decode", DECODE, 1)):
        waits = dict.fromkeys(sizes, n_waits * WAIT)
        times = {
            stage: {size: sum(seconds(k, n, cycles) for k in kernels) for size, n in sizes.items()}
            for stage, kernels in stages.items()
        } | {"waits": waits}
        everything = {size: sum(of[size] for of in times.values()) for size in sizes}
        subtract = {
            size: everything[size] / (LAUNCH + 12 * n / MEMORY) for size, n in sizes.items()
        }
        for stage, of in (times | {"all": everything}).items():
            rows.append({"call": call, "stage": stage} | {s: 1e3 * t for s, t in of.items()})
        rows.append({"call": call, "stage": "all, in multiples of `torch.sub`"} | subtract)
    print(write_results("gpu_prediction", "Predicted times on a GPU", rows, NOTE))


if __name__ == "__main__":
    main()
