"""Compare this codec with its peers on this machine: bytes, times, memory.

    python -m benchmarks [--snapshots FILE.npz ...] [--quick]

Writes tables, JSON and figures to ``benchmarks/results/``; ``peers.md`` is where to begin. Peers
whose packages are absent are skipped, with the reason: ``pip install '.[bench]'`` brings all but
NNCodec, for which there is ``make nncodec``. All contestants take turns, so compare times of one
table with each other and not with those of another run. ``--quick`` takes a minute, leaves out
memory, and writes to ``benchmarks/results/quick/``.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, markdown_table, stamp, write_results
from benchmarks.peers import OURS, available, lossless_peers, lossy_peers
from benchmarks.peers.integers import TopK
from benchmarks.peers.paper import Paper
from benchmarks.suite import error, figures, integers, memory, scale, targets
from benchmarks.updates import Source, updates_in

PARTS = ("integers", "error", "scale", "memory")
SIZES = (62_000, 1_000_000, 25_000_000, 100_000_000, 400_000_000)
SPARSITIES = (0.9, 0.95, 0.98, 0.99, 0.9975, 0.999)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    made_up = [Source(n_elems=args.made_up)] if args.made_up else []
    real = [source for path in args.snapshots for source in updates_in(path)]
    if args.quick:
        real = real[:1]
    sources = real + made_up
    began = time.perf_counter()
    page = ["# Beside other codecs", "\n".join(f"- {k}: `{v}`" for k, v in stamp().items())]
    lossy = available(lossy_peers())
    if "integers" in args.parts:
        page += compare_integers(args, sources)
    if "error" in args.parts:
        page += compare_at_equal_error(args, sources, lossy)
    if "scale" in args.parts:
        page += compare_sizes(args, lossy)
    if "memory" in args.parts:
        page += compare_memory(args, real, lossy)
    page += [f"The run took {(time.perf_counter() - began) / 60:.0f} minutes."]
    text = "\n\n".join(page) + "\n"
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "peers.md").write_text(text)
    for peer in lossy:
        peer.close()
    print(text)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="less of everything, in a minute")
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
        help="parameters of the synthetic model beside the real ones; 0: none (default: 1000000)",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: all")
    parser.add_argument("--sparsities", type=float, nargs="+", metavar="S")
    parser.add_argument("--sizes", type=int, nargs="+", metavar="N", help="parameters")
    parser.add_argument("--turns", type=int, default=7, metavar="N", help="that count (default: 7)")
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
    args = parser.parse_args(argv)
    args.sparsities = args.sparsities or ([0.99] if args.quick else SPARSITIES)
    if args.made_up is None:
        args.made_up = 250_000 if args.quick else 1_000_000
    if not args.snapshots and not args.made_up:
        parser.error("nothing to compare on: give --snapshots, or --made-up above 0")
    args.sizes = args.sizes or (SIZES[:2] if args.quick else SIZES)
    args.parts = args.parts or (PARTS[:3] if args.quick else PARTS)
    args.out = args.out or (RESULTS / "quick" if args.quick else RESULTS)
    return args


Rows = list[dict[str, Any]]


def compare_integers(args: argparse.Namespace, sources: list[Source]) -> list[str]:
    peers = available(lossless_peers())
    rows: Rows = []
    for source in sources:
        rows += integers.measure(source, args.sparsities, peers, args.turns)
    for peer in peers:
        peer.close()
    write_results("peers_integers", integers.TITLE, rows, integers.NOTE, args.out)
    figures.identical_integers(rows, args.out / "peers_integers.png")
    page = ["## Identical integers", "![ratios of bytes](peers_integers.png)"]
    goals = targets.integer_goals(rows)
    page += [markdown_table(goals)] if goals else []
    page += [markdown_table(targets.means(rows)), "[All figures](peers_integers.md)."]
    return page


def compare_at_equal_error(
    args: argparse.Namespace, sources: list[Source], peers: list[Any]
) -> list[str]:
    rows: Rows = []
    for source in sources:
        rows += error.measure(source, args.sparsities, peers, args.turns)
    write_results("peers_error", error.TITLE, rows, error.NOTE, args.out)
    figures.equal_error(rows, args.out / "peers_error.png")
    figures.times(rows, args.out / "peers_times.png")
    page = ["## Equal error", "![bytes over error](peers_error.png)", "![times](peers_times.png)"]
    goals = targets.error_goals(rows)
    page += [markdown_table(goals)] if goals else []
    page += [markdown_table(targets.means(rows)), markdown_table(targets.times(rows, 0.99))]
    page += ["[All figures](peers_error.md)."]
    return page


def compare_sizes(args: argparse.Namespace, peers: list[Any]) -> list[str]:
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    sparsities = [0.99] if args.quick else [0.9, 0.99, 0.999]
    timed = [peer for peer in peers if not isinstance(peer, (Paper, TopK))]
    timed += [peer for peer in peers if peer.name == "top-k, zstd -3 on pairs"]
    rows = scale.measure(
        args.sizes, sparsities, timed, args.turns, threads, args.limit, args.limit_gb
    )
    fits = []
    for peer, column, unit, factor in (
        (OURS, "encode ms", "ns", 1e6),
        (scale.IN_PLACE, "decode ms", "ns", 1e6),
        (OURS, "bytes", "bytes", 1.0),
    ):
        fixed, slope = scale.fit(rows, peer, column)
        fits.append(f"{peer}: {column} = {fixed:.3g} + {factor * slope:.3g} {unit} per parameter")
    write_results("peers_scale", scale.TITLE, rows, scale.NOTE, args.out)
    figures.scale(rows, args.out / "peers_scale.png", fits)
    page = ["## Size of the model", "![time and bytes against parameters](peers_scale.png)"]
    page += ["\n".join(f"- {line}" for line in fits), "[All figures](peers_scale.md)."]
    return page


def compare_memory(args: argparse.Namespace, real: list[Source], peers: list[Any]) -> list[str]:
    sources = [*real[:1], Source(n_elems=1_000_000 if args.quick else 25_000_000)]
    rows = memory.measure(sources, peers)
    write_results("peers_memory", memory.TITLE, rows, memory.NOTE, args.out)
    figures.memory(rows, args.out / "peers_memory.png")
    return ["## Memory", "![memory](peers_memory.png)", "[All figures](peers_memory.md)."]


if __name__ == "__main__":
    main()
