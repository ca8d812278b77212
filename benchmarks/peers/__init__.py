"""Peers of the comparison, ``python -m benchmarks``: an adapter each, with base.py's interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from benchmarks.peers.base import LosslessPeer, LossyPeer, Peer
from benchmarks.peers.blosc import Blosc2Dense
from benchmarks.peers.integers import Lossless, RawPairs, TopK
from benchmarks.peers.nncodec import NNCodec, NNCodecIntegers
from benchmarks.peers.ours import Ours
from benchmarks.peers.paper import Paper
from benchmarks.peers.sz3 import SZ3
from benchmarks.peers.torch_topk import TorchTopK
from benchmarks.peers.zfp import ZFP
from benchmarks.peers.zstd import ZstdDense, ZstdPairs

__all__ = ["OURS", "available", "lossless_peers", "lossy_peers"]

OURS = Ours().name
AnyPeer = TypeVar("AnyPeer", bound=Peer)


def lossy_peers() -> list[LossyPeer]:
    """All peers that code an update with loss."""
    return [
        NNCodec(dependent=True),
        NNCodec(dependent=False),
        TopK(ZstdPairs(19)),
        TopK(ZstdPairs(3)),
        TopK(ZstdDense(3)),
        TopK(Blosc2Dense(5)),
        TorchTopK(),
        Paper(levels=1),
        Paper(levels=3),
        SZ3(),
        ZFP(),
    ]


def lossless_peers() -> list[LosslessPeer]:
    """All peers that code given integers."""
    codes = [ZstdDense(19), ZstdDense(3), ZstdPairs(19), ZstdPairs(3), Blosc2Dense(5), RawPairs()]
    return [NNCodecIntegers(), *(Lossless(code) for code in codes)]


def available(peers: Sequence[AnyPeer]) -> tuple[list[AnyPeer], list[str]]:
    """The peers that can run here, and for each other one its name and the reason."""
    reasons = {peer.name: peer.missing() for peer in peers}
    here = [peer for peer in peers if not reasons[peer.name]]
    return here, [f"{name}: {reason}" for name, reason in reasons.items() if reason]
