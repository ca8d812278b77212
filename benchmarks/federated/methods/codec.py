"""This codec, through its sessions."""

from __future__ import annotations

from typing import Any

import numpy as np

import resfed_codec as rfc
from benchmarks.federated.methods.base import Method, State


class Codec(Method):
    """ServerSession and ClientSession; bytes are the messages' lengths, acknowledgements included.

    Args:
        up, down: Predictors of the two directions.
        up_feedback, down_feedback: Error feedback of the two directions. Feedback down is the same
            as a server that keeps the exact model and sends it minus what clients hold.
        keyframe: Clients start from another model and are sent the first one whole.
        down_sparsity: Of the downlink, where it is not ``sparsity``.
        options: Fields of CodecConfig for both directions: sparsity, max_bytes, exclude, ...
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
        down_feedback: bool = False,
        keyframe: bool = False,
        down_sparsity: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(initial, clients, seed)
        uplink = rfc.CodecConfig(predictor=up, error_feedback=up_feedback, **options)
        if down_sparsity is not None:
            options = {**options, "sparsity": down_sparsity}
        downlink = rfc.CodecConfig(predictor=down, error_feedback=down_feedback, **options)
        self._server = rfc.ServerSession(initial, uplink, downlink)
        first = {k: np.zeros_like(v) for k, v in initial.items()} if keyframe else initial
        self._clients = [rfc.ClientSession(first, uplink, downlink) for _ in range(clients)]
        self._keyframe = keyframe

    def begin(self) -> list[int]:
        return self._deliver() if self._keyframe else super().begin()

    def up(self, client: int, local: State) -> tuple[State, int]:
        payload = self._clients[client].send(local)
        return self._server.receive(client, payload), len(payload)

    def down(self, mean: State) -> list[int]:
        self._server.update(mean)
        return self._deliver()

    def _deliver(self) -> list[int]:
        """Bring every client up to date; requests that this takes go up, but count here."""
        sizes = []
        for i, client in enumerate(self._clients):
            message = self._server.send(i)
            n_bytes = len(message)
            try:
                self.held[i] = client.receive(message)
            except rfc.StateMismatchError as error:
                answer = self._server.answer(i, error.request)
                n_bytes += len(error.request) + len(answer)
                self.held[i] = client.receive(answer)
            sizes.append(n_bytes)
        return sizes
