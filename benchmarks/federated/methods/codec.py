"""This codec, with its sessions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

import resfed_codec as rfc
from benchmarks.federated.methods.base import STATISTICS, Method, State
from benchmarks.servers import Server
from resfed_codec.codec import update as codec

STATISTICS_BY = ("dense", "budget", "float16", "apart", "kept")


class Codec(Method):
    """ServerSession and ClientSession; bytes are message lengths, including acknowledgements.

    Args:
        up, down: Predictors of the two directions.
        up_feedback, down_feedback: Error feedback of the two directions. None down: the codec's
            default. With the server "mean", feedback down is equivalent to a server that keeps the
            exact model and sends it minus the clients' model.
        server: The server's rule, one of ``benchmarks/servers.py``.
        keyframe: Clients start from another model and get the first one as a keyframe.
        down_sparsity: Sparsity of the downlink, if not ``sparsity``.
        exclude: Patterns of tensors to code without loss.
        statistics: How running statistics are sent, unless ``exclude`` names them. "dense": the
            default. "budget": like all tensors. "float16": rounded, then lossless. "apart": in
            separate sessions that send all of them in every round, with ``statistics_bits`` bits
            (0: an automatic step) and without feedback. "kept": not sent; every client keeps its
            own.
        statistics_every: The number of rounds after which statistics are sent.
        vector_share: Replaces the codec's value.
        options: More fields of CodecConfig for both directions: sparsity, max_bytes, ...
    """

    def __init__(
        self,
        initial: State,
        clients: int,
        seed: int,
        *,
        up: str = "global",
        down: str = "previous",
        up_feedback: bool = False,
        down_feedback: bool | None = False,
        server: str = "mean",
        keyframe: bool = False,
        down_sparsity: float | None = None,
        exclude: tuple[str, ...] = (),
        statistics: str = "dense",
        statistics_bits: int = 0,
        statistics_every: int = 1,
        vector_share: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(initial, clients, seed)
        if statistics not in STATISTICS_BY:
            raise ValueError(f"statistics {statistics!r}: must be one of {STATISTICS_BY}")
        names = [name for name in initial if STATISTICS in name]
        if statistics == "float16":
            exclude = (*exclude, f"*{STATISTICS}*")
        options["exclude"] = exclude
        if statistics == "budget":
            options["dense"] = ()
        uplink = rfc.CodecConfig(predictor=up, error_feedback=up_feedback, **options)
        if down_sparsity is not None:
            options = {**options, "sparsity": down_sparsity}
        downlink = rfc.CodecConfig(predictor=down, error_feedback=down_feedback, **options)
        apart = names if statistics in ("apart", "kept") else []
        rest: dict[str, Any] = {name: value for name, value in initial.items() if name not in apart}
        if statistics == "float16":
            rest |= {name: initial[name].astype(np.float16) for name in names}
        self._channels = [_Channel(rest, clients, uplink, downlink, keyframe)]
        if statistics == "apart" and names:
            # An empty matrix makes them vectors, which are scaled tensor by tensor.
            own = {name: initial[name] for name in names} | {"": np.zeros((1, 0), np.float32)}
            uplink = rfc.CodecConfig(
                sparsity=0.0, bits=statistics_bits or None, dense=(), error_feedback=False
            )
            downlink = replace(uplink, error_feedback=None)
            self._channels.append(_Channel(own, clients, uplink, downlink, keyframe))
        self._kept = names if statistics == "kept" else []
        self._round, self._every = 1, statistics_every
        self._keyframe = keyframe
        self._server = Server(server, initial)
        self._share = codec.VECTOR_SHARE if vector_share is None else vector_share

    def begin(self) -> list[int]:
        return self._deliver() if self._keyframe else super().begin()

    def up(self, client: int, local: State) -> tuple[State, int]:
        local = self._with_statistics(local, self.held[client])
        recovered: State = {}
        total = 0
        with vector_share(self._share):
            for channel in self._channels:
                model, n_bytes = channel.up(client, local)
                recovered |= model
                total += n_bytes
        self.held[client] = {**self.held[client], **{name: local[name] for name in self._kept}}
        return recovered, total

    def down(self, mean: State) -> list[int]:
        mean = self._server.next(mean, self.held[0])
        mean = self._with_statistics(mean, self.held[0])
        self._round += 1
        with vector_share(self._share):
            for channel in self._channels:
                channel.update(mean)
        return self._deliver()

    def _with_statistics(self, new: State, held: State) -> State:
        """``new``, with the statistics of ``held`` in rounds that do not send statistics."""
        if self._round % self._every == 0:
            return new
        return {name: held[name] if STATISTICS in name else value for name, value in new.items()}

    def _deliver(self) -> list[int]:
        totals = []
        for i in range(len(self.held)):
            own = {name: self.held[i][name] for name in self._kept}
            total = 0
            for channel in self._channels:
                model, n_bytes = channel.down(i)
                own |= model
                total += n_bytes
            self.held[i] = own
            totals.append(total)
        return totals


class _Channel:
    """Sessions for the tensors of ``initial``, in its dtypes, in both directions."""

    def __init__(
        self,
        initial: dict[str, Any],
        clients: int,
        uplink: rfc.CodecConfig,
        downlink: rfc.CodecConfig,
        keyframe: bool,
    ) -> None:
        self._initial = initial
        self._server = rfc.ServerSession(initial, uplink, downlink)
        first = {k: np.zeros_like(v) for k, v in initial.items()} if keyframe else initial
        self._clients = [rfc.ClientSession(first, uplink, downlink) for _ in range(clients)]

    def _mine(self, state: State) -> dict[str, Any]:
        return {
            name: state[name].astype(value.dtype, copy=False) if name else value
            for name, value in self._initial.items()
        }

    def up(self, client: int, local: State) -> tuple[State, int]:
        payload = self._clients[client].send(self._mine(local))
        return _single(self._server.receive(client, payload)), len(payload)

    def update(self, mean: State) -> None:
        self._server.update(self._mine(mean))

    def down(self, i: int) -> tuple[State, int]:
        """Bring a client up to date; counts a request that goes up in the bytes down."""
        client = self._clients[i]
        message = self._server.send(i)
        try:
            return _single(client.receive(message)), len(message)
        except rfc.StateMismatchError as error:
            answer = self._server.answer(i, error.request)
            n_bytes = len(message) + len(error.request) + len(answer)
            return _single(client.receive(answer)), n_bytes


def _single(state: dict[str, Any]) -> State:
    return {name: v.astype(np.float32, copy=False) for name, v in state.items() if name}


@contextmanager
def vector_share(share: int) -> Iterator[None]:
    before, codec.VECTOR_SHARE = codec.VECTOR_SHARE, share
    try:
        yield
    finally:
        codec.VECTOR_SHARE = before
