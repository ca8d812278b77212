"""A small federated training that saves each end's state after every step; run as a program.

    python resumable_run.py FOLDER RULES FEEDBACK

When started again in the same folder, it continues from the files. A step of an end reads the
messages that arrived, calls the session, writes the result and saves the state. After a kill inside
a step, the step runs again from the state before it. The program writes to ``log`` before it saves
the state, so a repeated step appears twice and must have the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

import resfed_codec as rfc

N_ROUNDS = 6
CLIENTS = ("a", "b")
RULES = {
    "default": ("global", "previous"),
    "history": ("res2", "adaptive"),
    "alone": ("adaptive", "res1"),
}

State = dict[str, np.ndarray]


def replace(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    part = path.with_suffix(".part")
    with open(part, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def train(model: State, *key: int) -> State:
    """A training step that depends only on the model and the key."""
    rng = np.random.default_rng(key)
    return {
        "w": (0.95 * model["w"] + 0.1 * rng.standard_normal((60, 50))).astype(np.float32),
        "b": (model["b"] + 0.1 * rng.standard_normal(60)).astype(np.float64),
        "n": model["n"] + 1,
    }


class End:
    """A session, its number of steps, and the file that holds both."""

    def __init__(self, folder: Path, name: str, session: Any) -> None:
        self.path, self.name, self.session, self.steps = folder / f"{name}.npz", name, session, 0
        self.folder = folder
        if self.path.exists():
            with np.load(self.path, allow_pickle=False) as saved:
                fields = dict(saved)
            self.steps = int(fields.pop("steps"))
            session.load_state_dict(fields)

    def step(self, number: int, make: Any) -> None:
        """Run step ``number`` unless it is done: write the bytes it sends, then the state."""
        if number != self.steps:
            return
        data = make()
        with open(self.folder / f"{self.name}.log", "a") as log:
            log.write(f"{number} {len(data)} {hashlib.sha256(data).hexdigest()}\n")
        replace(self.folder / f"{self.name}.{number}.message", data)
        part = self.path.with_suffix(".part")
        with open(part, "wb") as file:
            np.savez(file, steps=number + 1, **self.session.state_dict())
        os.replace(part, self.path)
        self.steps = number + 1

    def sent(self, number: int) -> bytes:
        return (self.folder / f"{self.name}.{number}.message").read_bytes()


def main(folder: Path, rules: str, feedback: bool) -> None:
    rng = np.random.default_rng(1)
    initial = {
        "w": rng.standard_normal((60, 50)).astype(np.float32),
        "b": rng.standard_normal(60),
        "n": np.array(0),
    }
    up, down = RULES[rules]
    configs = (
        rfc.CodecConfig(sparsity=0.9, predictor=up, error_feedback=feedback and up != "res2"),
        rfc.CodecConfig(sparsity=0.9, predictor=down, error_feedback=feedback and down != "res1"),
    )
    server = End(folder, "server", rfc.ServerSession(initial, *configs))
    clients = [End(folder, name, rfc.ClientSession(initial, *configs)) for name in CLIENTS]

    # The server's steps in a round: a new global model, then for each client a message and the
    # reply. Client "b" never gets the messages of round 2, and its uplink of round 3 is lost.
    n_steps = 1 + 2 * len(clients)
    for t in range(N_ROUNDS):
        first = n_steps * t
        server.step(first, lambda t=t: server.session.update(train(server.session.state, 0, t)))
        for c, client in enumerate(clients):
            sends, receives = first + 1 + 2 * c, first + 2 + 2 * c
            server.step(sends, lambda name=client.name: server.session.send(name))

            def answer(t: int = t, c: int = c, client: End = client, sends: int = sends) -> bytes:
                if (t, c) != (2, 1):
                    client.session.receive(server.sent(sends))
                return client.session.send(train(client.session.state, 1 + c, t))  # type: ignore[no-any-return]

            client.step(t, answer)

            def take(t: int = t, c: int = c, client: End = client) -> bytes:
                if (t, c) == (3, 1):
                    return b""
                local = server.session.receive(client.name, client.sent(t))
                return b"".join(local[name].tobytes() for name in sorted(local))

            server.step(receives, take)
    (folder / "done").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "feedback")
