"""Make the golden payloads of streams and messages of sessions. Run once, by hand:

    python tests/golden/make_streams.py

As in make.py, existing files are never regenerated. A file holds the messages in order and the
models recovered from them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import resfed_codec as rfc

sys.path.insert(0, str(Path(__file__).parent))
from make import ramp

FOLDER = Path(__file__).parent / "stream_v1"
SHAPES = {"norm": (8,), "weight": (8, 24)}
CLIENTS = ("clinic", 2**63 + 7)

State = dict[str, np.ndarray]


def initial(dtype: str = "float32") -> State:
    model = {name: ramp(shape, 1.0, dtype) for name, shape in SHAPES.items()}
    return {**model, "steps": np.array(3, np.int64)}


def moved(model: State, n: int) -> State:
    """The n-th model after this one; rows change by different amounts."""
    new = {"steps": model["steps"] + n}
    for name, shape in SHAPES.items():
        change = np.roll(ramp(shape, 0.01, str(model[name].dtype)), 5 * n, axis=0)
        new[name] = model[name] + change
    return {name: new[name] for name in model}


STREAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "stream": ("float32", {"sparsity": 0.9}),
    "stream_float16": ("float16", {"sparsity": 0.8, "exclude": ("norm",)}),
    "stream_dense": ("float32", {"sparsity": 0.8, "dense": "norm", "error_feedback": True}),
    "stream_adaptive": ("float32", {"sparsity": 0.5, "predictor": "adaptive"}),
    "stream_linear": (
        "float64",
        {
            "sparsity": 0.8,
            "error_feedback": True,
            "predictor": rfc.LinearPredictor(own=(1.5, -0.75, 0.25), tensors={"norm": ((1,), ())}),
        },
    ),
}
SESSIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "session": ({"error_feedback": False}, {"error_feedback": False}),
    "session_feedback": ({"error_feedback": True}, {"error_feedback": True}),
    "session_res": ({"predictor": "res1"}, {"predictor": "res2"}),
    "session_adaptive": (
        {"predictor": "adaptive"},
        {"predictor": "adaptive", "error_feedback": False},
    ),
}


def play_stream(name: str) -> Iterator[tuple[bytes, State]]:
    """Payloads of five versions and a keyframe, with the decoded models."""
    dtype, options = STREAMS[name]
    encoder = rfc.Encoder(initial(dtype), run="golden", **options)
    for n in range(1, 6):
        payload = encoder.encode(moved(encoder.state, n))
        yield payload, encoder.state
    yield encoder.keyframe(), encoder.state


def play_session(name: str) -> Iterator[tuple[bytes, State]]:
    """Three rounds with two clients; the second client misses the second round."""
    up, down = (rfc.CodecConfig(sparsity=0.9, **options) for options in SESSIONS[name])
    server = rfc.ServerSession(initial(), up, down, run="golden")
    clients = {c: rfc.ClientSession(initial(), up, down, run="golden") for c in CLIENTS}
    for n in range(1, 4):
        server.update(moved(server.state, n))
        for i, (c, client) in enumerate(clients.items()):
            message = server.send(c)
            if n == 2 and i == 1:
                continue
            model = client.receive(message)
            yield message, model
            payload = client.send(moved(model, n + i))
            yield payload, server.receive(c, payload)


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    for name in [*STREAMS, *SESSIONS]:
        path = FOLDER / f"{name}.npz"
        if path.exists():
            print(f"{path.name} stands and stays")
            continue
        arrays = {}
        play = play_stream if name in STREAMS else play_session
        for i, (sent, model) in enumerate(play(name)):
            arrays[f"{i:02}.sent"] = np.frombuffer(sent, np.uint8)
            arrays |= {f"{i:02}.{key}": value for key, value in model.items()}
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {path.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
