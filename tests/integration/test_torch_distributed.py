"""The torch.distributed example: two processes over gloo."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import resfed_codec as rfc

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'resfed-codec[torch]'")
pytest.importorskip("sklearn", reason="needs scikit-learn")

EXAMPLE = Path(__file__).parents[2] / "examples" / "torch_distributed"
sys.path.append(str(EXAMPLE))

import train as example  # noqa: E402

pytestmark = pytest.mark.integration


def in_one_process(n_rounds: int) -> str:
    models = [example.make_model() for _ in range(example.N_WORKERS)]
    shared = {name: tensor.clone() for name, tensor in models[0].state_dict().items()}
    for number in range(1, n_rounds + 1):
        aggregator = rfc.Aggregator(shared)
        for worker, model in reversed(list(enumerate(models))):
            images, labels, _, _ = example.load_data(worker)
            example.train(model, images, labels, 1000 * number + worker)
            aggregator.add(rfc.encode(model.state_dict(), shared, sparsity=0.99))
        shared = aggregator.result()
        for model in models:
            model.load_state_dict(shared)
    digest: str = example.digest(shared)
    return digest


def test_two_workers_hold_the_same_model() -> None:
    process = subprocess.Popen(
        [sys.executable, EXAMPLE / "train.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, log = process.communicate(timeout=120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
    assert process.returncode == 0
    report = json.loads(output)
    lines = re.findall(r"^round (\d): \d+ B, (\d+)x less than models$", log, re.M)
    assert [int(number) for number, _ in lines] == [1, 2, 3, 4, 5]
    assert all(int(ratio) > 200 for _, ratio in lines)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = in_one_process(example.N_ROUNDS)
    torch.set_num_threads(threads)
    assert report["models"] == [expected] * 2
    assert report["accuracies"][-1] > 0.9
    assert all(200 * n < report["plain_bytes"] for n in report["bytes"])
