"""How many late updates a server refuses, by ``history``.

The global model changes with each of 60 updates, as in asynchronous training. Each update is
trained from a global model that is some versions old when it arrives; how many is drawn at random,
geometrically. A refused update is sent again as a whole model.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

import resfed_codec as rfc
from benchmarks.common import write_results

N_UPDATES = 60
HISTORIES = 4, 8, 16, 32
SHAPE = 200, 300


def refused(mean: float, history: int, seed: int) -> tuple[int, int]:
    """How many of the updates are refused, and how many models the server holds at the end."""
    rng = np.random.default_rng(seed)

    def moved(state: dict[str, Any]) -> dict[str, Any]:
        return {"w": state["w"] + rng.standard_normal(SHAPE, np.float32) * np.float32(0.01)}

    model = {"w": rng.standard_normal(SHAPE, np.float32)}
    server = rfc.ServerSession(model, history=history)
    due: dict[int, list[tuple[int, bytes]]] = {}
    n_refused = 0
    for i in range(N_UPDATES + 100):
        model = moved(model)
        server.update(model)
        if i < N_UPDATES:
            client = rfc.ClientSession({"w": np.zeros(SHAPE, np.float32)}, history=history)
            shared = client.receive(server.send(i, fresh=True))
            staleness = int(rng.geometric(1 / (1 + mean))) - 1
            due.setdefault(i + staleness, []).append((i, client.send(moved(shared))))
        for node, payload in due.pop(i, []):
            try:
                server.receive(node, payload)
            except rfc.StateMismatchError:
                n_refused += 1
    return n_refused, server.memory()["global"] // model["w"].nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.parse_args()
    rows = []
    for history in HISTORIES:
        row: dict[str, Any] = {"history": history}
        for mean in (1, 2, 4, 8):
            n_refused, n_models = refused(mean, history, seed=0)
            row[f"refused, {mean} late"] = n_refused
            row["models held"] = n_models
        rows.append(row)
    note = f"Of {N_UPDATES} updates. The columns name how many versions late they are on average."
    print(write_results("staleness", "Late updates", rows, note))


if __name__ == "__main__":
    main()
