"""Session: what server and client have in common, and the names of clients.

client.py and server.py have the protocol, client_state.py and server_state.py what each end holds.
docs/predictors.md explains the protocol.
"""

from __future__ import annotations

from operator import index
from typing import Any, TypeAlias

import numpy as np

from resfed_codec.codec.numbers import checked_integer
from resfed_codec.config import CodecConfig, check_config
from resfed_codec.locking import synchronized
from resfed_codec.session.traffic import Traffic, bytes_text, ratio_text
from resfed_codec.stream.endpoint import Endpoint, chain_root
from resfed_codec.stream.link import digest64
from resfed_codec.stream.predictor import (
    LinearPredictor,
    Predictor,
    check_max_norm,
    predictor_of,
    predictor_text,
)
from resfed_codec.stream.update_encoder import UpdateEncoder
from resfed_codec.stream.versions import Version
from resfed_codec.tensors.layout import State, StateT, plain_text

ClientId: TypeAlias = "str | int"

LOW32 = 0xFFFFFFFF


class Session(Endpoint[StateT]):
    """Base of both sessions: the encoders of both directions and the depths of history.

    If the downlink's predictor reads the client's models, each client has a downlink of its own.
    Otherwise one payload serves all clients (``_broadcast``).
    """

    def __init__(
        self,
        initial_state: State,
        uplink: CodecConfig | None,
        downlink: CodecConfig | None,
        run: str,
        history: int,
    ) -> None:
        uplink, downlink = check_config("uplink", uplink), check_config("downlink", downlink)
        history = checked_integer("history", history, 1, 32)
        super().__init__(initial_state, run)
        self._history = history
        up, down = check_predictors(uplink, downlink)
        self._broadcast = is_broadcast(down)
        self._uplink_encoder = UpdateEncoder(self._layout, uplink, up, two_way=True)
        self._downlink_encoder = UpdateEncoder(
            self._layout, downlink, down, two_way=not self._broadcast
        )
        # Number of models that each direction's history keeps; an uplink may need none.
        self._keep_down = max(1, self._downlink_encoder.own_depth, self._uplink_encoder.other_depth)
        self._keep_up = max(self._uplink_encoder.own_depth, self._downlink_encoder.other_depth)
        self._begin_with(self._initial)
        self._traffic = Traffic(self._layout.n_bytes)
        wanted = uplink.error_feedback
        self._feeds_back_up = self._uplink_encoder.own_depth == 0 if wanted is None else wanted

    def _begin_with(self, initial: Version) -> None:
        """Let both chains begin with another version 0 than that of the model given.

        A session that is to load the state of another one needs that one's initial model only if
        it keeps models of version 0, and else its digest.
        """
        self._initial = initial
        self._down_root = chain_root("downlink", initial)
        self._up_root = chain_root("uplink", initial)

    @property
    @synchronized
    def stats(self) -> dict[str, int]:
        """What was sent and received since the session was made or :meth:`reset_stats` was called.

        The keys are the same on both ends; down is from the server to clients. "messages_down" and
        "messages_up" count what ``send`` and ``answer`` returned and ``receive`` accepted,
        "keyframes_down" and "keyframes_up" those that carried whole models, and "bytes_down" and
        "bytes_up" their bytes and those of acknowledgements. "uncompressed_bytes" is the size of
        as many models. The payload of ``update`` counts where it is received. The counts are not
        in :meth:`state_dict`.
        """
        return self._traffic.total

    @synchronized
    def reset_stats(self) -> None:
        """Let :attr:`stats` count from zero."""
        self._traffic.reset()

    def _repr(self, who: str) -> str:
        counts = self._traffic.total
        ways = [f"{bytes_text(counts[f'bytes_{way}'])} {way}" for way in ("down", "up")]
        return f"<{type(self).__name__}: {', '.join([who, *ways, *ratio_text(counts)])}>"

    def _first_downlink(self) -> Version:
        """Version 0 of a downlink. Unless uplinks keep models, it alone holds the initial model."""
        first = Version(0, self._down_root, self._initial.model)
        if not self._keep_up:
            self._initial.model = None
        return first

    def _first_uplink(self) -> Version | None:
        """Version 0 of an uplink, or None if uplinks keep no models."""
        return Version(0, self._up_root, self._initial.model) if self._keep_up else None

    def _depends(self) -> dict[str, Any]:
        return {
            **super()._depends(),
            "predictor of uplink": predictor_text(self._uplink_encoder.predictor),
            "predictor of downlink": predictor_text(self._downlink_encoder.predictor),
            "history": self._history,
        }


def check_predictors(uplink: CodecConfig, downlink: CodecConfig) -> tuple[Predictor, Predictor]:
    """The predictors of both directions.

    Raises:
        ValueError: One of them cannot be combined with error feedback.
    """
    up = predictor_of(uplink.predictor or "global")
    down = predictor_of(downlink.predictor or "previous")
    if uplink.error_feedback and isinstance(up, LinearPredictor) and up.own_depth:
        raise ValueError(
            f"uplink: error_feedback=True with predictor={uplink.predictor!r}: it predicts from the"
            " client's own recovered models, so what one uplink leaves out is in the next residual"
            " already and would count twice. Leave error_feedback out, or predict from global"
            ' models alone ("global")'
        )
    if downlink.error_feedback and not is_broadcast(down):
        raise ValueError(
            "downlink: error_feedback needs a predictor that serves all clients alike"
            ' ("previous" or "adaptive")'
        )
    check_max_norm("uplink", uplink.max_norm, up, "global")
    check_max_norm("downlink", downlink.max_norm, down, "previous")
    return up, down


def is_broadcast(down: Predictor) -> bool:
    """Whether a downlink with this predictor is the same for all clients."""
    return not (isinstance(down, LinearPredictor) and down.other_depth)


def client_name(client_id: ClientId) -> str | int:
    """A client's name as a plain str or int: equal names of different types are one client."""
    if isinstance(client_id, str):
        return plain_text(client_id)
    if isinstance(client_id, bool) or not isinstance(client_id, (int, np.integer)):
        raise TypeError(f"client_id={client_id!r}: must be a str or an integer")
    return index(client_id)


def client_tag(client_id: ClientId, run_digest: int) -> int:
    """64 bits that identify a client in messages and digests; never 0.

    They do not depend on the initial model: a client with another one is the same client.
    """
    name = client_name(client_id)
    kind = b"text" if isinstance(name, str) else b"number"
    text = str(name).encode("utf-8", "surrogatepass")
    return digest64(kind, run_digest.to_bytes(8, "little"), text) or 1
