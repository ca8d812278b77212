"""Bytes and times for identical integers: peers code the levels of our payload."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

import resfed_codec as rfc
from benchmarks.peers import OURS
from benchmarks.peers.base import Levels, LosslessPeer, Update, flat_residual, split_like
from benchmarks.peers.integers import top_k_levels
from benchmarks.peers.ours import Ours
from benchmarks.suite.timing import time_interleaved
from benchmarks.updates import Source
from resfed_codec.config import counts

TITLE = "Identical integers"
NOTE = """\
The levels of our top-k and quantizer, for the float32 matrices as one model, coded without loss.
Ours is the whole payload, with the times of encode and decode between models; the peers code and
decode integers. "Ours / peer": bytes. Times in milliseconds, one thread, all codecs in turn."""


def levels_of(update: Update, sparsity: float) -> Levels:
    """The levels that ``rfc.encode`` codes for this update, by tensor, including zeros."""
    k = counts(sparsity, update.n_elems, 0, 1)[0]
    levels, _ = top_k_levels(flat_residual(update), k)
    return split_like(levels, update.state)


def measure(
    source: Source, sparsities: Sequence[float], peers: Sequence[LosslessPeer], turns: int
) -> list[dict[str, Any]]:
    """A row for each peer and sparsity.

    Raises:
        AssertionError: A peer's integers, or the number of nonzeros in our payload, differ.
    """
    update = source.load()
    rows = []
    for sparsity in sparsities:
        levels = levels_of(update, sparsity)
        n_nonzero = sum(int(np.count_nonzero(value)) for value in levels.values())
        payload = rfc.encode(update.state, update.reference, sparsity=sparsity)
        assert rfc.inspect(payload).n_nonzero == n_nonzero
        n_bytes = {OURS: len(payload)}
        contestants = {OURS: partial(Ours().turn, update, -math.log2(1 - sparsity))}
        for peer in peers:
            turn = peer.turn(levels)
            for name, value in levels.items():
                assert np.array_equal(turn.recovered[name], value), (peer.name, name)
            n_bytes[peer.name] = turn.n_bytes
            contestants[peer.name] = partial(peer.turn, levels)
        times = time_interleaved(contestants, turns, f"integers, {source.name}, {sparsity:g}")
        rows += [
            {
                **source.columns(update),
                "sparsity": sparsity,
                "nonzeros": n_nonzero,
                "peer": name,
                "bytes": n,
                "ours / peer": len(payload) / n,
                **times[name],
            }
            for name, n in n_bytes.items()
        ]
    return rows
