"""Command line: ``python -m benchmarks.federated run | report | chart``."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import RESULTS, stamp
from benchmarks.federated.batchnorm import CHOICES
from benchmarks.federated.chart import OVER, draw
from benchmarks.federated.config import RunConfig, parse_method
from benchmarks.federated.jobs import run_all
from benchmarks.federated.methods import make
from benchmarks.federated.report import write
from benchmarks.federated.suites import SUITES
from benchmarks.federated.train import PRECISIONS

FOLDER = RESULTS / "federated"
SMALL_STATE = {"fc": np.zeros((8, 8), np.float32)}
NUMBERS = ("clients", "rounds", "images", "test_images", "batch", "epochs", "steps")


def main() -> None:
    """Run the command line; see ``--help``."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.federated",
        description="Accuracy against bytes: federated trainings through this codec and others.",
    )
    commands = parser.add_subparsers(required=True)
    _add_run(commands.add_parser("run", help="train, and write a JSON line per round"))
    _add_report(commands.add_parser("report", help="tables of finished trainings"))
    _add_chart(commands.add_parser("chart", help="a chart of finished trainings"))
    args = parser.parse_args()
    try:
        args.action(args)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(action=_run)
    parser.add_argument("--suite", choices=SUITES, help="a predefined list of trainings")
    parser.add_argument(
        "--method",
        action="append",
        help="NAME or NAME:KEY=VALUE,..., e.g. codec:sparsity=0.95,up=res1; may be repeated;"
        " with --suite: instead of the suite's methods",
    )
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10 (default: digits)")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: cpu)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time")
    parser.add_argument(
        "--threads", type=int, default=1, help="clients of a training that train at the same time"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="time limit; resumable")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0, or the suite's")
    settings = parser.add_argument_group("the training (default: the suite's, or small)")
    for name in NUMBERS:
        settings.add_argument(f"--{name.replace('_', '-')}", type=int)
    for name in ("lr", "momentum"):
        settings.add_argument(f"--{name}", type=float)
    for name in ("model", "split"):
        settings.add_argument(f"--{name}")
    settings.add_argument("--precision", choices=PRECISIONS, help="bf16: torch.autocast")
    settings.add_argument("--statistics", choices=CHOICES, help="those of BatchNorm that are sent")


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(action=_report)
    parser.add_argument("folder", type=Path, help="output of run; tables go to FOLDER.md")
    parser.add_argument(
        "--targets", type=float, nargs="+", default=[], help="accuracies, e.g. 0.7, or losses"
    )
    _add_unfinished(parser)


def _add_chart(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(action=_chart)
    parser.add_argument("folder", type=Path, help="output of run")
    parser.add_argument("file", type=Path, help="chart to write, .svg or .png")
    parser.add_argument("--only", nargs="+", default=["*"], help="names, e.g. 'ours*' 'STC*'")
    parser.add_argument("--over", choices=OVER, default="total", help="default: total megabytes")
    parser.add_argument("--title", default="")
    _add_unfinished(parser)


def _add_unfinished(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--unfinished", action="store_true", help="include unfinished trainings")


def configs_of(args: argparse.Namespace) -> list[RunConfig]:
    """The trainings of the command line, in order."""
    base, methods, seeds = SUITES[args.suite or "quick"]
    if args.data and not args.suite:
        base = replace(base, data="cifar10", model="groupnorm_cnn")
    if not args.suite:
        methods, seeds = ["codec"], [0]
    names = (*NUMBERS, "lr", "momentum", "model", "split", "precision", "statistics")
    changes = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    configs = []
    for seed in args.seeds or seeds:
        for spec in args.method or methods:
            method, options = parse_method(spec)
            configs.append(replace(base, method=method, options=options, seed=seed, **changes))
    for config in configs:
        _check(config)
    return configs


def _check(config: RunConfig) -> None:
    """Raise an error for invalid methods or options before the first training."""
    try:
        make(config.method, config.options, SMALL_STATE, config.clients, config.seed)
    except TypeError as error:
        raise ValueError(f"method {config.method!r}: {error}") from error


def _run(args: argparse.Namespace) -> None:
    configs = configs_of(args)
    where = stamp()
    if args.device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise ValueError(f"--device {args.device}: PyTorch finds no GPU")
        where["machine"] += f", {torch.cuda.get_device_name(args.device)}"
    finished = run_all(
        configs,
        args.out or FOLDER / (args.suite or "runs"),
        args.data,
        where,
        jobs=args.jobs,
        threads=args.threads,
        device=args.device,
        deadline=time.time() + 60 * args.minutes,
    )
    if finished < len(configs):
        print(f"{finished} of {len(configs)} are done; run the same command to continue")


def _report(args: argparse.Namespace) -> None:
    print(write(args.folder, args.targets, unfinished=args.unfinished))


def _chart(args: argparse.Namespace) -> None:
    draw(
        args.folder,
        args.file,
        args.only,
        over=args.over,
        title=args.title,
        unfinished=args.unfinished,
    )


if __name__ == "__main__":
    main()
