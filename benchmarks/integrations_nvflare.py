"""The NVFLARE example in NVFLARE's simulator: bytes of tasks and results, by round."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import write_results

JOB = Path(__file__).parents[1] / "examples" / "nvflare" / "job.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, JOB, folder, "--rounds", str(args.rounds)],
            check=True,
            timeout=400,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        sent = {
            site: re.findall(
                r"resfed_codec: (\d+) bytes instead of (\d+)",
                (Path(folder) / site / "log.txt").read_text(),
            )
            for site in ("server", "site-1")
        }
    rows: list[dict[str, Any]] = []
    for number in range(args.rounds):
        # The server has two clients; their tasks of a round have equal sizes.
        for what, (n_bytes, plain) in (
            ("task data", sent["server"][2 * number]),
            ("task result", sent["site-1"][number]),
        ):
            rows.append(
                {
                    "round": number + 1,
                    "what": what,
                    "bytes": int(n_bytes),
                    "plain": int(plain),
                    "plain over codec": int(plain) / int(n_bytes),
                }
            )
    note = (
        "What the filters log for one client: payloads, without what NVFLARE adds. The first task"
        " carries the whole model, losslessly. A network of 1,005,240 parameters, sparsity 0.99."
    )
    print(write_results("integrations_nvflare", "NVFLARE, simulator", rows, note))


if __name__ == "__main__":
    main()
