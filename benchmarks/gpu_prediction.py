"""How long stages would take on a GPU by a simple model. Nothing here runs on hardware.

    python -m benchmarks.gpu_prediction

A kernel takes as long as its slowest part: bytes at the memory's rate, or the cycles that
results/ptx_cycles.md has for it, since those are mostly of steps that wait for each other; and a
launch before. Kernels in which a lane is a chain of steps take the simulator's cycles per step;
those of tiles, cycles for each wave of blocks, or their instructions at the device's full rate.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import ceil
from typing import Any, NamedTuple

from benchmarks.common import RESULTS, write_results

CLOCK = 1.755e9  # cycles in a second
MEMORY = 0.85 * 4.8e12  # bytes in a second that a kernel reaches
LAUNCH = 3e-6
WAIT = 12e-6  # a copy to the host, the wait, and the host's next launch
SIMULATED_LAUNCH = 5000  # cycles in each figure of the simulator
STEPS = 64  # of its slices
PROCESSORS, SIMULATED_PROCESSORS = 132, 2
CORES = 128  # of a processor: instructions of threads in a cycle
TILE = 32768  # elements
TILES = 4  # that a processor works on at a time
SPARSITY = 0.99
CHANGED = 0.0228  # of lossless elements: results/exact.md, bfloat16, learning rate 1e-6
LANE = 1024  # nonzeros
NOTE = f"""\
A prediction: nothing ran on hardware. In ms, for float32 parameters at sparsity {SPARSITY}, and for
a lossless model of bfloat16 of which {100 * CHANGED:.2g} % change; in place, without error
feedback; the host's own work is left out. {CLOCK / 1e9} GHz, {PROCESSORS} processors,
{MEMORY / 1e12:.1f} TB/s (85 % of an H200's), {LAUNCH * 1e6:.0f} us for a launch and
{WAIT * 1e6:.0f} us for a wait.
A kernel takes its bytes at that rate or, if that is longer, its cycles of
[ptx_cycles.md](ptx_cycles.md); where a lane is a chain of steps, cycles per step times {LANE};
where blocks take tiles of {TILE:,} elements, cycles for each {TILES} tiles of a processor, or its
instructions at {CORES} in a cycle. The simulator takes 8 to 10 cycles from an instruction to one
that needs it; newer GPUs are said to take 4 to 6, and would be faster in chains. `torch.sub` moves
12 bytes for a float32 parameter, a copy 4 for a bfloat16 one."""


@dataclass
class Kernel:
    """Of each parameter and of each nonzero: bytes it moves."""

    name: str
    of_parameter: float = 0
    of_nonzero: float = 0
    is_chain: bool = False
    is_tiled: bool = False
    is_spread: bool = False  # over all processors, also in the simulator
    times: int = 1


# A candidate is a nonzero and 5 % more: 6 bytes. What is scattered moves sectors of 32 bytes.
ENCODE = {
    "which tensors changed": [Kernel("find_changed")],
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
        Kernel("measure_gaps", 0, 8),
        Kernel("compact", 0, 16, times=2),
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

ENCODE_LOSSLESS = {
    "counts by exponent": [
        Kernel("count_tiles", 4, is_tiled=True),
        Kernel("sum_classes", 256 * 16 / TILE, is_spread=True, times=2),
    ],
    "changes in order": [
        Kernel("place_changes", 4, 24, is_tiled=True),
        Kernel("restore_each", 0, 24 + 32 + 8),
    ],
    "symbols": [Kernel("find_codes", 0, 24, is_chain=True)],
    "costs": [Kernel("find_costs", 0, 8 + 64), Kernel("sum_fitted_costs", 0, 8 + 64)],
    "words": [Kernel("encode_each", 0, 16 + 64 + 2, is_chain=True)],
}
DECODE_LOSSLESS = {
    "changes": [Kernel("decode_each", 0, 16 + 2, is_chain=True)],
    "places": [Kernel("place_lanes"), Kernel("place_symbols", 0, 32)],
    "elements": [
        Kernel("count_tiles", 2, is_tiled=True),
        Kernel("sum_classes", 256 * 16 / TILE, is_spread=True),
        Kernel("place_elements", 2, 24, is_tiled=True),
    ],
    "new values, in place": [
        Kernel("restore_each", 0, 24 + 32 + 8),
        Kernel("write_changes", 0, 16 + 32),
    ],
}


class Simulated(NamedTuple):
    """Cycles of a kernel, without the launch, and instructions of all its threads."""

    cycles: int = 0
    instructions: int = 0


@dataclass
class Call:
    name: str
    stages: dict[str, list[Kernel]]
    n_waits: int
    share: float  # of the parameters: nonzeros
    section: int  # of ptx_cycles.md, among those of a slice of 32 lanes
    compared: tuple[str, int]  # with what, and bytes it moves for a parameter
    simulated: dict[str, Simulated] = field(default_factory=dict)

    def __post_init__(self) -> None:
        page = (RESULTS / "ptx_cycles.md").read_text().split(f"{STEPS} steps")[self.section]
        rows = re.findall(r"^\| (\w+) \| ([\d,]+) \| ([\d,]+) \|", page, re.MULTILINE)
        if self.name.startswith("encode"):
            rows.reverse()  # the first one of each kernel counts; of decoding, the last
        for name, *numbers in rows:
            cycles, instructions = (int(n.replace(",", "")) for n in numbers)
            self.simulated[name] = Simulated(cycles - SIMULATED_LAUNCH, instructions)

    def seconds(self, kernel: Kernel, n: float) -> float:
        nonzeros = n * self.share
        cycles, instructions = self.simulated.get(kernel.name, Simulated())
        floor: float = cycles
        if kernel.is_chain:
            floor *= min(LANE, nonzeros) / STEPS
        if kernel.is_spread:
            floor *= SIMULATED_PROCESSORS / PROCESSORS
        if kernel.is_tiled:
            floor *= ceil(n / TILE / (TILES * PROCESSORS))
            floor = max(floor, instructions * n / TILE / (CORES * PROCESSORS))
        moved = kernel.of_parameter * n + kernel.of_nonzero * nonzeros
        return kernel.times * (LAUNCH + max(floor / CLOCK, moved / MEMORY))


def main() -> None:
    sizes = {"1 M": 1e6, "100 M": 1e8, "1 G": 1e9}
    rows: list[dict[str, Any]] = []
    for call in (
        Call("encode", ENCODE, 5, 1 - SPARSITY, 1, ("`torch.sub`", 12)),
        Call("decode", DECODE, 1, 1 - SPARSITY, 1, ("`torch.sub`", 12)),
        Call("encode, lossless", ENCODE_LOSSLESS, 5, CHANGED, 2, ("a copy", 4)),
        Call("decode, lossless", DECODE_LOSSLESS, 2, CHANGED, 2, ("a copy", 4)),
    ):
        times = {
            stage: {s: sum(call.seconds(k, n) for k in kernels) for s, n in sizes.items()}
            for stage, kernels in call.stages.items()
        } | {"waits": dict.fromkeys(sizes, call.n_waits * WAIT)}
        everything = {size: sum(of[size] for of in times.values()) for size in sizes}
        compared, n_bytes = call.compared
        multiples = {s: everything[s] / (LAUNCH + n_bytes * n / MEMORY) for s, n in sizes.items()}
        for stage, of in (times | {"all": everything}).items():
            rows.append({"call": call.name, "stage": stage} | {s: 1e3 * t for s, t in of.items()})
        rows.append({"call": call.name, "stage": f"all, in multiples of {compared}"} | multiples)
    print(write_results("gpu_prediction", "Predicted times on a GPU", rows, NOTE))


if __name__ == "__main__":
    main()
