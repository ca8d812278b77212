"""Compare this codec with other codecs on this machine: bytes, times and memory.

    python -m benchmarks [--snapshots FILE.npz ...] [--quick]

Writes ``peers.md``, its figures and the rows behind them to ``benchmarks/results/``. Skips peers
whose packages are missing and prints the reason: ``pip install '.[bench]'`` installs all but
NNCodec, and ``make nncodec`` installs that. Codecs run in turn, so compare times only within one
table. ``--quick`` takes a minute, leaves out memory, and writes to ``benchmarks/results/quick/``.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS
from benchmarks.peers import available, lossless_peers, lossy_peers
from benchmarks.peers.integers import TopK
from benchmarks.peers.paper import Paper
from benchmarks.suite import error, integers, memory, page, residuals, scale
from benchmarks.suite import rows as table
from benchmarks.updates import Source, made_up, updates_in

PARTS = ("residuals", "integers", "error", "scale", "memory")
SIZES = (62_000, 1_000_000, 25_000_000, 100_000_000, 400_000_000)
SPARSITIES = (0.9, 0.95, 0.98, 0.99, 0.9975, 0.999)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    if not args.redraw:
        began = time.perf_counter()
        measure(args)
        print(f"{(time.perf_counter() - began) / 60:.1f} minutes")
    summary = page.make(args.out)
    (args.out / "peers.md").write_text(summary)
    print(summary)


def measure(args: argparse.Namespace) -> None:
    """Run the parts that were asked for, and write their rows."""
    real = [source for path in args.snapshots for source in updates_in(path)]
    sources = real[:1] if args.quick else list(real)
    sources += made_up(args.made_up) if args.made_up else []
    lossy, no_lossy = available(lossy_peers())
    lossless, no_lossless = available(lossless_peers())
    for reason in dict.fromkeys(no_lossy + no_lossless):
        print(f"skipped: {reason}")
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1

    def write(part: str, module: Any, rows: list[dict[str, Any]], left_out: list[str]) -> None:
        path = args.out / f"peers_{part}.json"
        table.write(path, module.TITLE, rows, module.NOTE, left_out)
        for line in left_out:
            print(f"left out of {part}: {line}")

    if "residuals" in args.parts:
        write("residuals", residuals, residuals.measure(sources, args.sparsities), [])
    if "integers" in args.parts:
        rows = [
            row
            for source in sources
            for row in integers.measure(source, args.sparsities, lossless, args.turns)
        ]
        write("integers", integers, rows, no_lossless)
    if "error" in args.parts:
        left_out = list(no_lossy)
        rows = [
            row
            for source in sources
            for row in error.measure(source, args.sparsities, lossy, args.turns, left_out)
        ]
        write("error", error, rows, left_out)
    if "scale" in args.parts:
        limits = scale.Limits(args.limit, args.limit_gb)
        sparsities = [0.99] if args.quick else [0.9, 0.99, 0.999]
        timed = [peer for peer in lossy if not isinstance(peer, (Paper, TopK))]
        timed += [peer for peer in lossy if peer.name == "top-k, zstd -3 on pairs"]
        left_out = list(no_lossy)
        rows = scale.measure(args.sizes, sparsities, timed, args.turns, threads, limits, left_out)
        write("scale", scale, rows, left_out)
    if "memory" in args.parts:
        large = Source(n_elems=1_000_000 if args.quick else 25_000_000)
        left_out = list(no_lossy)
        rows = memory.measure([*real[:1], large], lossy, left_out)
        write("memory", memory, rows, left_out)
    for peer in [*lossy, *lossless]:
        peer.close()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="small sizes and few turns, a minute")
    parser.add_argument(
        "--snapshots",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="real models: .npz with keys such as g4|name, l0_5|name, g5|name",
    )
    parser.add_argument(
        "--made-up",
        type=int,
        metavar="N",
        help="parameters of the synthetic models; 0: only real models (default: 1000000)",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: all")
    parser.add_argument("--sparsities", type=float, nargs="+", metavar="S")
    parser.add_argument("--sizes", type=int, nargs="+", metavar="N", help="parameters")
    parser.add_argument(
        "--turns", type=int, default=7, metavar="N", help="timed turns (default: 7)"
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=3.0,
        metavar="SECONDS",
        help="leave out peers at sizes where a turn takes longer (default: 3)",
    )
    parser.add_argument(
        "--limit-gb",
        type=float,
        default=16.0,
        metavar="GB",
        help="leave out peers at sizes where more memory is needed (default: 16)",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--redraw", action="store_true", help="make figures and page from existing rows"
    )
    args = parser.parse_args(argv)
    args.sparsities = args.sparsities or ([0.99] if args.quick else SPARSITIES)
    if args.made_up is None:
        args.made_up = 250_000 if args.quick else 1_000_000
    if not args.snapshots and not args.made_up and not args.redraw:
        parser.error("nothing to compare on: give --snapshots, or --made-up above 0")
    args.sizes = args.sizes or (SIZES[:2] if args.quick else SIZES)
    args.parts = args.parts or (PARTS[:4] if args.quick else PARTS)
    args.out = args.out or (RESULTS / "quick" if args.quick else RESULTS)
    return args


if __name__ == "__main__":
    main()
