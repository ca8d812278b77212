"""What the two ends of a session share: directions, depths of history, names of clients.

client.py and server.py hold the sessions themselves; docs/predictors.md explains the protocol.
"""

from __future__ import annotations

from operator import index
from typing import Any, TypeAlias

import numpy as np

from resfed_codec.config import CodecConfig
from resfed_codec.errors import StateMismatchError
from resfed_codec.locking import Synchronized, synchronized
from resfed_codec.stream.identity import Identity
from resfed_codec.stream.link import digest64
from resfed_codec.stream.message import Message, read_message
from resfed_codec.stream.predictor import LinearPredictor, Predictor, predictor_of, text_of
from resfed_codec.stream.schema import Tensors
from resfed_codec.stream.snapshot import layout_of, read_snapshot, write_snapshot
from resfed_codec.stream.update_encoder import UpdateEncoder
from resfed_codec.stream.versions import Version, initial_version, run_digest, run_name
from resfed_codec.tensors.layout import Layout, State, plain_text

ClientId: TypeAlias = "str | int"

LOW32 = 0xFFFFFFFF


class Session(Synchronized):
    """Base of both sessions: the initial model, both directions' coders, what follows from them.

    With predictors that look at the client's models the downlink is different for every client;
    else one payload serves all ("broadcast").
    """

    _state: Any
    """All that changes; replaced as a whole."""

    def __init__(
        self,
        initial_state: State,
        uplink: CodecConfig | None,
        downlink: CodecConfig | None,
        run: str,
        history: int,
    ) -> None:
        super().__init__()
        uplink, downlink = (
            check_config(name, config)
            for name, config in (("uplink", uplink), ("downlink", downlink))
        )
        run = run_name(run)
        if isinstance(history, bool) or not isinstance(history, int):
            raise TypeError(f"history={history!r}: must be an integer")
        if not 1 <= history <= 32:
            raise ValueError(f"history={history}: must lie in [1, 32]")
        self._run, self._history = run, index(history)
        self._layout = Layout(initial_state, "initial_state")
        model = self._layout.copy_of(self._layout.model_of(initial_state, "initial_state"))
        self._initial = initial_version(self._layout, model, run)
        self._run_digest = run_digest(self._layout, run)
        self._identity = Identity(run, self._run_digest, self._layout.specs)
        up, down = check_rules(uplink, downlink)
        self._broadcast = serves_all(down)
        self._uplink_encoder = UpdateEncoder(self._layout, uplink, up, two_way=True)
        self._downlink_encoder = UpdateEncoder(
            self._layout, downlink, down, two_way=not self._broadcast
        )
        # How many models back each direction's history must reach; an uplink may need none.
        self._keep_down = max(1, self._downlink_encoder.own_depth, self._uplink_encoder.other_depth)
        self._keep_up = max(self._uplink_encoder.own_depth, self._downlink_encoder.other_depth)
        self._down_root = digest64(b"downlink", self._initial.digest.to_bytes(8, "little"))
        self._up_root = digest64(b"uplink", self._initial.digest.to_bytes(8, "little"))

    def _first_downlink(self) -> Version:
        """Version 0 of a downlink; it alone holds the initial model unless uplinks keep models."""
        first = Version(0, self._down_root, self._initial.model)
        if not self._keep_up:
            self._initial.model = None
        return first

    def _first_uplink(self) -> Version | None:
        """Version 0 of an uplink, where its models are kept."""
        return Version(0, self._up_root, self._initial.model) if self._keep_up else None

    def _depends(self) -> dict[str, Any]:
        """What saved state is of no use without."""
        return {
            "layout": layout_of(self._layout.specs),
            "run": self._run,
            "initial_state": self._initial.digest,
            "predictor of uplink": text_of(self._uplink_encoder.predictor),
            "predictor of downlink": text_of(self._downlink_encoder.predictor),
            "history": self._history,
        }

    def _fields(self) -> dict[str, Any]:
        """What is saved."""
        raise NotImplementedError

    def _checked(self, saved: Any, tensors: Tensors) -> Any:
        """The ``_state`` that :meth:`_fields` was made from, all of it checked."""
        raise NotImplementedError

    @synchronized
    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, as plain tensors of the host (torch if the initial state held
        any)."""
        kind, as_torch = type(self).__name__, self._layout.uses_torch
        return write_snapshot(kind, self._depends(), self._fields(), as_torch=as_torch)

    @synchronized
    def load_state_dict(self, state_dict: Any) -> None:
        """Continue from what :meth:`state_dict` returned, in an object of the same arguments.

        Args:
            state_dict: What was saved.

        Raises:
            ValueError: Saved by another class, from another initial state or run, with other
                predictors, history or setting of error_feedback (with it, other dense or excluded
                tensors), or damaged. What differs is named, and nothing has changed.
        """
        saved = read_snapshot(type(self).__name__, self._depends(), state_dict)
        self._state = self._checked(saved, Tensors(self._layout))


def check_config(name: str, config: CodecConfig | None) -> CodecConfig:
    if config is None:
        return CodecConfig()
    if not isinstance(config, CodecConfig):
        raise TypeError(f"{name}: must be a CodecConfig, not {type(config).__name__}")
    return config


def check_rules(uplink: CodecConfig, downlink: CodecConfig) -> tuple[Predictor, Predictor]:
    """The predictors of both directions.

    Raises:
        ValueError: One of them does not go with error feedback.
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
    if downlink.error_feedback and not serves_all(down):
        raise ValueError(
            "downlink: error_feedback needs a predictor that serves all clients alike"
            ' ("previous" or "adaptive")'
        )
    return up, down


def serves_all(down: Predictor) -> bool:
    """Whether a downlink of this predictor is the same for all clients."""
    return not (isinstance(down, LinearPredictor) and down.other_depth)


def client_name(client_id: ClientId) -> str | int:
    """A client's name as it is kept: of equal names, whatever their types, there is one.

    Raises:
        TypeError: ``client_id`` is neither a str nor an integer.
    """
    if isinstance(client_id, str):
        return plain_text(client_id)
    if isinstance(client_id, bool) or not isinstance(client_id, (int, np.integer)):
        raise TypeError(f"client_id={client_id!r}: must be a str or an integer")
    return index(client_id)


def client_tag(client_id: ClientId, run_digest: int) -> int:
    """64 bits that stand for a client in messages and digests; never 0.

    They do not depend on the initial model: a client with another one is still the same client.

    Raises:
        TypeError: ``client_id`` is neither a str nor an integer.
    """
    name = client_name(client_id)
    kind = b"text" if isinstance(name, str) else b"number"
    text = str(name).encode("utf-8", "surrogatepass")
    return digest64(kind, run_digest.to_bytes(8, "little"), text) or 1


def open_request(request: bytes, tag: int, identity: Identity) -> Message:
    """A request addressed to or from the client ``tag``; a client without a name yet has tag 0."""
    message = read_message(request)
    identity.require_same(message)
    if tag and message.tag and message.tag != tag:
        raise StateMismatchError("payload: a request of another client")
    return message
