"""Bytes and processor time of the entropy coder, on the matrices of recorded updates.

    python -m benchmarks.coder fedavg_cnn.npz transformer_sgd.npz
    python -m benchmarks.coder *.npz --against OTHER_CHECKOUT/python

Writes ``results/coder.md``, or another file of that folder with ``--name``. Each payload is a whole
update: at several sparsities, or at that of the codec in the loop that a file was recorded in
(``NAME_loop_SPARSITY.npz``). ``--against`` runs the same with the package of another checkout that
is built in place, in turn with this one, and shows the ratios. Selection and quantization are the
same in all versions of the codec, so ratios of bytes are those of the coders.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import resfed_codec as rfc
from benchmarks.common import is_matrix, load_snapshots, updates_in, write_results

SPARSITIES = (0.9, 0.95, 0.99, 0.9975)
TURNS = 5
"""Processes of either version, in turn; times are the least of all, as other work only adds."""


def measure(paths: list[Path]) -> dict[str, dict[str, float]]:
    """By file and sparsity: bytes, nonzeros, seconds to encode and to decode, of all updates."""
    rfc.set_num_threads(1)
    found: dict[str, dict[str, float]] = {}
    for path in paths:
        models = load_snapshots(path)
        loop = re.fullmatch(r"(.*)_loop_(0\.\d+)", path.stem)
        for sparsity in (float(loop[2]),) if loop else SPARSITIES:
            row = dict.fromkeys(("bytes", "nonzeros", "encode", "decode"), 0.0)
            for base, prefix in updates_in(models):
                reference, state = (
                    {n: v for n, v in models[p].items() if is_matrix(v)} for p in (base, prefix)
                )
                encode = partial(rfc.encode, state, reference, sparsity=sparsity)
                payload = encode()
                target = {name: value.copy() for name, value in reference.items()}
                row["bytes"] += len(payload)
                row["nonzeros"] += rfc.inspect(payload).n_nonzero
                row["encode"] += _seconds(encode)
                row["decode"] += _seconds(partial(rfc.decode, payload, reference, out=target))
            found[f"{path.stem} {sparsity}"] = row
    return found


def _seconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(3):
        begin = time.process_time()
        call()
        times.append(time.process_time() - begin)
    return min(times)


def _in_process(python_path: Path | None, paths: list[Path]) -> dict[str, dict[str, float]]:
    environment = dict(os.environ)
    if python_path is not None:
        environment["PYTHONPATH"] = str(python_path)
    command = [sys.executable, "-m", "benchmarks.coder", "--json", *map(str, paths)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    result: dict[str, dict[str, float]] = json.loads(run.stdout)
    return result


def _least(turns: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        case: {key: min(turn[case][key] for turn in turns) for key in row}
        for case, row in turns[0].items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("snapshots", type=Path, nargs="+")
    parser.add_argument("--against", type=Path, help="folder with another version's package")
    parser.add_argument("--name", default="coder", help="of the file of results")
    parser.add_argument("--json", action="store_true", help="print what one process measures")
    args = parser.parse_args()
    if args.json:
        print(json.dumps(measure(args.snapshots)))
        return
    ours, others = [], []
    for _ in range(TURNS):
        ours.append(_in_process(None, args.snapshots))
        if args.against is not None:
            others.append(_in_process(args.against, args.snapshots))
    other = _least(others) if others else {}
    rows = []
    for case, row in _least(ours).items():
        k = row["nonzeros"]
        cells: dict[str, object] = {"updates": case, "nonzeros": f"{k:,.0f}"}
        cells["bits per nonzero"] = f"{8 * row['bytes'] / k:.2f}"
        cells["encode, ns"] = f"{1e9 * row['encode'] / k:.0f}"
        cells["decode, ns"] = f"{1e9 * row['decode'] / k:.0f}"
        if other:
            before = other[case]
            cells["bytes, against"] = f"{100 * row['bytes'] / before['bytes'] - 100:+.1f} %"
            cells["encode, ratio"] = f"{row['encode'] / before['encode']:.2f}"
            cells["decode, ratio"] = f"{row['decode'] / before['decode']:.2f}"
        rows.append(cells)
    note = f"Processor time of whole calls, per nonzero; one thread, least of {TURNS} processes."
    if args.against is not None:
        command = ["git", "-C", str(args.against), "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        note += f" Bytes against, and ratios to, those of commit {commit}, run in turn."
    print(write_results(args.name, "Entropy coder", rows, note))


if __name__ == "__main__":
    main()
