"""Flower's differential privacy with the codec: norms of what the server decodes."""

from __future__ import annotations

from logging import ERROR
from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc

pytest.importorskip("flwr", reason="needs Flower: pip install 'resfed-codec[flower]'")

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    FedAvg,
)

from local_grid import LocalGrid
from resfed_codec.integrations import _flower_mod, _flower_notices
from resfed_codec.integrations._flower_records import clipping_norm
from resfed_codec.integrations.flower import CodecGrid, codec_mod

pytestmark = pytest.mark.integration

N_NODES, ROUNDS, NORM = 3, 6, 2.0

Model = dict[str, Any]


def first_model() -> Model:
    rng = np.random.default_rng(0)
    return {"w": rng.standard_normal((60, 50)), "b": rng.standard_normal(50).astype(np.float32)}


def app_with(*mods: Any) -> ClientApp:
    """Clients move in a direction of their own, by a norm of about 4."""
    app = ClientApp()

    @app.train(mods=[*mods])
    def train(message: Message, context: Any) -> Message:
        rng = np.random.default_rng(int(context.node_config["partition-id"]))
        model = {n: a.numpy() for n, a in message.content["arrays"].items()}
        local = {
            n: (a + 0.07 * rng.standard_normal(a.shape)).astype(a.dtype) for n, a in model.items()
        }
        content = {
            "arrays": ArrayRecord({n: Array(a) for n, a in local.items()}),
            "metrics": MetricRecord({"num-examples": 1, "loss": 1.0}),
        }
        return Message(RecordDict(content), reply_to=message)

    return app


class MeasuringGrid(CodecGrid):
    """Keeps the norms of what replies change in the model that clients received."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.norms: list[float] = []
        self.errors: list[str] = []

    def pull_messages(self, message_ids: Any) -> Any:
        held = self.session.state
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            if reply.has_error():
                self.errors.append(reply.error.reason)
                continue
            decoded = {n: a.numpy() for n, a in reply.content["arrays"].items()}
            squares = [np.sum((decoded[n].astype(float) - held[n]) ** 2) for n in held]
            self.norms.append(float(np.sqrt(sum(squares))))
        return replies


def run(app: ClientApp, wrapper: Any = None, **settings: Any) -> MeasuringGrid:
    grid = MeasuringGrid(LocalGrid(app, N_NODES), rfc.CodecConfig(sparsity=0.9, **settings))
    strategy: Any = FedAvg(fraction_evaluate=0.0, min_available_nodes=N_NODES)
    if wrapper is not None:
        strategy = wrapper(strategy)
    arrays = ArrayRecord({n: Array(a) for n, a in first_model().items()})
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=ROUNDS)
    return grid


def fixed(strategy: Any) -> Any:
    return DifferentialPrivacyClientSideFixedClipping(strategy, 0.01, NORM, N_NODES)


def adaptive(strategy: Any) -> Any:
    return DifferentialPrivacyClientSideAdaptiveClipping(
        strategy, 0.05, N_NODES, initial_clipping_norm=NORM, clip_norm_lr=1e-9
    )


@pytest.mark.parametrize(
    ("wrapper", "mod"),
    [(fixed, fixedclipping_mod), (adaptive, adaptiveclipping_mod)],
    ids=["fixed", "adaptive"],
)
def test_the_strategys_norm_bounds_what_is_decoded(wrapper: Any, mod: Any) -> None:
    """Although the clients' error feedback adds to what they have clipped."""
    grid = run(app_with(codec_mod, mod), wrapper)
    assert not grid.errors
    assert len(grid.norms) == N_NODES * ROUNDS
    assert max(grid.norms) <= NORM * (1 + 1e-8)  # the adaptive one changes a little
    assert max(grid.norms) > 0.99 * NORM


def test_a_norm_of_ones_own_bounds_it_too() -> None:
    grid = run(app_with(codec_mod, fixedclipping_mod), fixed, max_norm=0.5)
    assert 0.49 < max(grid.norms) <= 0.5


def test_without_a_norm_feedback_exceeds_what_was_clipped(monkeypatch: Any) -> None:
    """What the bound is for."""
    monkeypatch.setattr(_flower_mod, "clipping_norm", lambda content: None)
    grid = run(app_with(codec_mod, fixedclipping_mod), fixed)
    assert max(grid.norms) > 1.2 * NORM


@pytest.mark.parametrize(
    ("wrapper", "mod"),
    [
        (fixed, fixedclipping_mod),
        (adaptive, adaptiveclipping_mod),
        (None, LocalDpMod(NORM, 1.0, 1.0, 1e-5)),
    ],
    ids=["fixed", "adaptive", "local"],
)
def test_the_wrong_order_is_an_error_that_says_so(
    wrapper: Any, mod: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[tuple[int, str]] = []
    monkeypatch.setattr(
        _flower_notices, "log", lambda level, text, *args: logged.append((level, text % args))
    )
    grid = run(app_with(mod, codec_mod), wrapper)
    assert not grid.norms
    assert len(grid.errors) == N_NODES * ROUNDS
    assert all(
        "comes before it: ClientApp(mods=[codec_mod, ...])" in error for error in grid.errors
    )
    (error,) = [text for level, text in logged if level == ERROR]
    assert "reads a model that is still encoded" in error


def test_settings_that_cannot_keep_the_norm_are_refused() -> None:
    grid = run(app_with(codec_mod, fixedclipping_mod), fixed, predictor="res1")
    assert not grid.norms
    assert all("max_norm bounds what changes in the model" in error for error in grid.errors)


def test_a_message_without_a_norm_has_none() -> None:
    grid = run(app_with(codec_mod))
    assert max(grid.norms) > NORM
    config = RecordDict({"config": ConfigRecord({"clipping_norm": "2"})})
    assert clipping_norm(config) is None
