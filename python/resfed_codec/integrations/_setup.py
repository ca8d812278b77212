"""The setup of sessions that a server sends its clients: layout, configurations, run.

A client takes everything it needs from the setup, so only the server is configured. A client that
does not have the server's initial model starts from zeros, and its first message is a keyframe.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from resfed_codec.config import CodecConfig
from resfed_codec.errors import PayloadError
from resfed_codec.integrations._arrays import cast, described, is_array, zeros
from resfed_codec.session.client import ClientSession
from resfed_codec.stream.predictor import AdaptivePredictor, LinearPredictor

Model: TypeAlias = "dict[str, Any]"
"""NumPy arrays or torch tensors by name."""

Initial: TypeAlias = "Callable[[], Mapping[str, Any]]"

_DEFAULT = asdict(CodecConfig())


class Setup(NamedTuple):
    """What both ends of a run must have in common.

    Attributes:
        like: A model of the run's layout; its values are of no importance.
        uplink, downlink, run, history: Arguments of the sessions.
        shares_initial: Whether clients make the server's initial model themselves.
    """

    like: Model
    uplink: CodecConfig
    downlink: CodecConfig
    run: str
    history: int
    shares_initial: bool

    def written(self) -> bytes:
        return json.dumps(
            {
                "tensors": [described(name, array) for name, array in self.like.items()],
                "uplink": _plain(self.uplink),
                "downlink": _plain(self.downlink),
                "run": self.run,
                "history": self.history,
                "shares_initial": self.shares_initial,
            }
        ).encode()

    @classmethod
    def read(cls, setup: bytes) -> Setup:
        """The setup in what :meth:`written` returned; raises some exception for anything else."""
        saved = json.loads(setup)
        return cls(
            {tensor[0]: zeros(tensor) for tensor in saved["tensors"]},
            _config(saved["uplink"]),
            _config(saved["downlink"]),
            saved["run"],
            saved["history"],
            saved["shares_initial"],
        )

    def client_session(
        self,
        initial: Initial | None,
        uplink: CodecConfig | None = None,
        max_norm: float | None = None,
    ) -> ClientSession:
        """A new session that starts from ``initial()`` if the server does, and else from zeros.

        ``uplink`` replaces the setup's. ``max_norm`` bounds the client's updates, in addition to
        what the settings say.

        Raises:
            ValueError: The layout of ``initial()`` differs from the server's model, or the other
                settings do not go with ``max_norm``.
        """
        model = self.like
        if initial is not None and self.shares_initial:
            given = {n: v if is_array(v) else np.asarray(v) for n, v in initial().items()}
            fitted = fit(given, model)
            if fitted is None:
                where = difference(given, model)
                raise ValueError(f"initial: has another layout than the server's model: {where}")
            model = fitted
        up = uplink or self.uplink
        if max_norm is not None:
            up = replace(up, max_norm=min(max_norm, up.max_norm or max_norm))
        return ClientSession(model, up, self.downlink, run=self.run, history=self.history)


def read_setup(setup: bytes, initial: Initial | None) -> ClientSession:
    """The client's session, see :meth:`Setup.client_session`."""
    return Setup.read(setup).client_session(initial)


def write_config(config: CodecConfig) -> bytes:
    return json.dumps(_plain(config)).encode()


def read_config(data: bytes) -> CodecConfig:
    return _config(json.loads(data))


def check_fixed(config: CodecConfig, first: CodecConfig) -> None:
    """Raise ValueError if a setting of uplinks has changed that sessions are made with."""
    for name in ("predictor", "error_feedback", "exclude", "dense"):
        now, then = getattr(config, name), getattr(first, name)
        if now != then:
            raise ValueError(
                f"uplink: {name}={now!r}: must stay as in the first message, {then!r}; only targets"
                " and steps may change"
            )


def difference(model: Mapping[str, Any], like: Mapping[str, Any]) -> str:
    """The first tensor in which names or shapes differ; empty if in none."""
    for name, array in like.items():
        if name not in model:
            return f"tensor {name!r} is missing"
        if model[name].shape != array.shape:
            shapes = f"{list(model[name].shape)} instead of {list(array.shape)}"
            return f"tensor {name!r} has shape {shapes}"
    extra = next((name for name in model if name not in like), None)
    return "" if extra is None else f"tensor {extra!r} is new"


def fit(
    model: Mapping[str, Any], like: Mapping[str, Any], *, partial: bool = False
) -> Model | None:
    """``model`` with the dtypes of ``like``; None if names or shapes differ.

    With ``partial`` it may lack tensors, but not all. Frameworks average integers in float64; this
    function rounds them to integers again.
    """
    if partial:
        like = {name: array for name, array in like.items() if name in model}
    if not like or difference(model, like):
        return None
    return {name: cast(model[name], like[name]) for name in like}


def write_names(names: Collection[str], like: Mapping[str, Any]) -> bytes:
    """One bit for each tensor of a layout, in its order, from the low bit of the first byte on."""
    return np.packbits([name in names for name in like], bitorder="little").tobytes()


def part_of(model: Model, names: bytes) -> Model:
    """The tensors of ``model`` that :func:`write_names` was given.

    Raises:
        PayloadError: ``names`` is of another number of tensors, or of none.
    """
    bits = np.unpackbits(np.frombuffer(names, np.uint8), bitorder="little").tolist()
    n = len(model)
    if len(bits) != -(-n // 8) * 8 or any(bits[n:]) or not any(bits):
        raise PayloadError(f"payload: {len(names)} bytes do not name tensors of {n}")
    return {
        name: array
        for (name, array), is_held in zip(model.items(), bits[:n], strict=True)
        if is_held
    }


def _plain(config: CodecConfig) -> dict[str, Any]:
    """The fields that differ from their defaults, in the types of JSON."""
    return {name: value for name, value in asdict(config).items() if value != _DEFAULT[name]}


def _config(plain: dict[str, Any]) -> CodecConfig:
    """The configuration that :func:`_plain` was given."""
    predictor = plain.get("predictor")
    if isinstance(predictor, dict):
        predictor = LinearPredictor(**predictor) if predictor else AdaptivePredictor()
    return CodecConfig(**{**plain, "predictor": predictor})
