"""Bytes and times at equal error: each of our sparsities sets an error; peers are tuned to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.peers import OURS
from benchmarks.peers.base import LossyPeer
from benchmarks.peers.ours import Ours
from benchmarks.peers.tune import between, points, try_knob, tune
from benchmarks.suite.timing import time_interleaved
from benchmarks.updates import Source

TITLE = "Bytes and times at equal error"
NOTE = """\
The float32 matrices as one model. The error is relative squared error: the sum of squares of the
state minus the recovered model over that of the residual. Our error at the sparsity is the target.
Peers are tuned to it within 1 %. For peers with whole steps only (NNCodec, SZ3, ZFP), bytes are
interpolated between the two best steps around it, in logarithms, and "error" and times are those of
the nearer step. "Ours / peer": bytes. Times in milliseconds, one thread, all codecs in turn;
encoding begins with state and reference, decoding ends with a new model. The paper's scheme counts
its bytes without writing them, so it has no times."""


def measure(
    source: Source,
    sparsities: Sequence[float],
    peers: Sequence[LossyPeer],
    turns: int,
    left_out: list[str],
) -> list[dict[str, Any]]:
    """A row for each peer and sparsity; appends peers that miss an error to ``left_out``."""
    update = source.load()
    ours = Ours()
    own = {sparsity: try_knob(ours, update, -math.log2(1 - sparsity)) for sparsity in sparsities}
    errors = [tuned.error for tuned in own.values()]
    steps = {peer.name: points(peer, update, errors) for peer in peers if peer.stepped}
    rows = []
    for sparsity, (knob, error, n_bytes) in own.items():
        tuned = {OURS: own[sparsity]}
        contestants = {OURS: partial(ours.turn, update, knob)}
        for peer in peers:
            try:
                tuned[peer.name] = (
                    between(steps[peer.name], error) if peer.stepped else tune(peer, update, error)
                )
            except ValueError as reason:
                left_out.append(f"{peer.name}, {source.name}, sparsity {sparsity:g}: {reason}")
                continue
            contestants[peer.name] = partial(peer.turn, update, tuned[peer.name].knob)
        times = time_interleaved(contestants, turns, f"{source.name}, {sparsity:g}")
        rows += [
            {
                **source.columns(update),
                "sparsity": sparsity,
                "peer": name,
                "bytes": round(t.n_bytes),
                "ours / peer": n_bytes / t.n_bytes,
                "error": t.error,
                **times[name],
            }
            for name, t in tuned.items()
        ]
    return rows
