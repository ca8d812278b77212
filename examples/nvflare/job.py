"""Handwritten digits in NVFLARE with the codec: the job, and its run in the simulator.

    python examples/nvflare/job.py FOLDER

Needs ``pip install 'resfed-codec[nvflare]' scikit-learn``. FOLDER is the simulator's workspace.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nvflare.job_config.api import FedJob
from nvflare.job_config.defs import FilterType
from nvflare.job_config.script_runner import FrameworkType, ScriptRunner

from resfed_codec.integrations.nvflare import (
    ClientDecoder,
    ClientEncoder,
    ServerDecoder,
    ServerEncoder,
)

HERE = Path(__file__).parent
TASK = HERE.parent / "flower" / "digits" / "task.py"
sys.path[:0] = [str(HERE), str(TASK.parent)]

from server import DigitsFedAvg  # noqa: E402


def make_job(n_rounds: int, *, codec: bool = True) -> FedJob:
    job = FedJob(name="digits", min_clients=2)
    job.to_server(DigitsFedAvg(num_clients=2, num_rounds=n_rounds))
    job.to_server(str(TASK))
    job.to_clients(str(TASK))
    job.to_clients(ScriptRunner(str(HERE / "client.py"), framework=FrameworkType.NUMPY))
    job.set_app_packages(["resfed_codec"])  # installed at every site, not sent with the job
    if codec:
        job.to_server(ServerEncoder(), filter_type=FilterType.TASK_DATA, tasks=["train"])
        job.to_clients(ClientDecoder(), filter_type=FilterType.TASK_DATA, tasks=["train"])
        job.to_clients(ClientEncoder(), filter_type=FilterType.TASK_RESULT, tasks=["train"])
        job.to_server(ServerDecoder(), filter_type=FilterType.TASK_RESULT, tasks=["train"])
    return job


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plain", action="store_true", help="without the codec, to compare")
    args = parser.parse_args()
    job = make_job(args.rounds, codec=not args.plain)
    job.simulator_run(str(args.folder), n_clients=2, threads=2)


if __name__ == "__main__":
    main()
