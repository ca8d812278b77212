"""NNCodec, the reference coder of ISO/IEC 15938-17 (DeepCABAC), in its own environment.

Its packages need an older NumPy, so it runs in a worker process. The variable
``RESFED_NNCODEC_PYTHON`` names its Python (default: that of ``make nncodec``). The worker measures
the times, so they exclude the pipe.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.base import Levels, LosslessPeer, LossyPeer, Turn, Update
from benchmarks.peers.nncodec_worker import receive, send

VARIABLE = "RESFED_NNCODEC_PYTHON"
ROOT = Path(__file__).parents[2]


def python() -> Path:
    return Path(os.environ.get(VARIABLE, ROOT / ".venv-nncodec/bin/python"))


class Worker:
    """The worker process; the first request starts it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.scratch = 0
        """Memory of the last encoding above its inputs, in bytes."""

    def missing(self) -> str:
        if not python().exists():
            return f"no {python()}: `make nncodec`, or name the Python that has it in {VARIABLE}"
        return ""

    def code(self, arrays: Mapping[str, NDArray[Any]], qp: int, use_dq: bool) -> Turn:
        """One turn; ``recovered`` has the decoded arrays.

        Raises:
            RuntimeError: The worker died; standard error has the reason.
        """
        if self._process is None:
            command = [str(python()), "-I", str(Path(__file__).with_name("nncodec_worker.py"))]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        inputs = {f"x|{name}": value for name, value in arrays.items()}
        try:
            send(stdin, {"qp": np.array(qp), "use_dq": np.array(use_dq), **inputs})
            answer = receive(stdout)
        except BrokenPipeError:
            answer = None
        if answer is None:
            self.close()
            raise RuntimeError("the NNCodec worker died")
        self.scratch = int(answer["scratch"])
        encode_s, decode_s = answer["seconds"].tolist()
        decoded = {name: answer[f"x|{name}"] for name in arrays}
        return Turn(answer["payload"].size, encode_s, decode_s, decoded)

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()  # closes its input, which ends the worker
            self._process = None


WORKER = Worker()


class NNCodec(LossyPeer):
    """The residual, quantized with the step of qp, about 2 ** (qp / 4)."""

    knobs = (-80, 16)
    stepped = True

    def __init__(self, *, dependent: bool) -> None:
        self._dependent = dependent
        self.name = "NNCodec, dependent quantizer" if dependent else "NNCodec, plain quantizer"

    def missing(self) -> str:
        return WORKER.missing()

    def turn(self, update: Update, knob: float) -> Turn:
        begin = time.perf_counter()
        residual = {n: value - update.reference[n] for n, value in update.state.items()}
        subtract_s = time.perf_counter() - begin
        turn = WORKER.code(residual, int(knob), self._dependent)
        begin = time.perf_counter()
        recovered = {n: value + turn.recovered[n] for n, value in update.reference.items()}
        add_s = time.perf_counter() - begin
        return Turn(turn.n_bytes, turn.encode_s + subtract_s, turn.decode_s + add_s, recovered)

    def close(self) -> None:
        WORKER.close()


class NNCodecIntegers(LosslessPeer):
    """Integers, which NNCodec codes without quantization."""

    name = "NNCodec"

    def missing(self) -> str:
        return WORKER.missing()

    def turn(self, levels: Levels) -> Turn:
        return WORKER.code(levels, 0, False)

    def close(self) -> None:
        WORKER.close()
