"""Memory of encoding: peak resident memory above that of the inputs."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Sequence
from typing import Any

from benchmarks.peers import lossy_peers
from benchmarks.peers.base import LossyCoder, LossyPeer
from benchmarks.peers.nncodec import WORKER, NNCodec
from benchmarks.peers.nncodec_worker import forget_peak, memory_kib
from benchmarks.peers.ours import Ours
from benchmarks.peers.tune import error_of, tune
from benchmarks.updates import Source

TITLE = "Memory of encoding"
NOTE = """\
Sparsity 0.99, peers at equal error (synthetic models: of the first tensor), one thread. Peak of
resident memory while encoding, above that with both models loaded and after encoding a small model;
each in a new process (NNCodec's is its worker, which receives the residual, so the residual is not
counted there). Linux only."""
SPARSITY = 0.99
SMALL = 61_000


def measure(
    sources: Sequence[Source], peers: Sequence[LossyPeer], left_out: list[str]
) -> list[dict[str, Any]]:
    """A row for each update and peer that writes bytes; appends other peers to ``left_out``."""
    rows = []
    for source in sources:
        update = source.load()
        knob = -math.log2(1 - SPARSITY)
        part = update if source.is_real else update.first_tensor()
        error = error_of(part, Ours().turn(part, knob))
        knobs = {Ours().name: knob}
        for peer in peers:
            if isinstance(peer, (LossyCoder, NNCodec)):
                try:
                    knobs[peer.name] = tune(peer, part, error).knob
                except ValueError as reason:
                    left_out.append(f"{peer.name}, {source.name}: {reason}")
                peer.close()
        for name, its_knob in knobs.items():
            scratch = in_fresh_process(name, source, its_knob)
            rows.append(
                {
                    **source.columns(update),
                    "peer": name,
                    "scratch MB": scratch / 1e6,
                    "bytes per parameter": scratch / update.n_elems,
                }
            )
    return rows


def in_fresh_process(name: str, source: Source, knob: float) -> int:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(scratch_bytes, (name, source, knob))


def scratch_bytes(name: str, source: Source, knob: float) -> int:
    """Memory of encoding in this process."""
    peer = next(p for p in [Ours(), *lossy_peers()] if p.name == name)
    small = Source(n_elems=SMALL).load()
    peer.turn(small, knob)
    update = source.load()
    if not isinstance(peer, LossyCoder):
        peer.turn(update, knob)
        scratch = WORKER.scratch
        peer.close()
        return scratch
    forget_peak()
    before = memory_kib("VmRSS")
    payload = peer.encode(update, knob)
    after = memory_kib("VmHWM")
    del payload
    return 1024 * (after - before)
