"""The code for BatchNorm in docs/integrations.md: clients send statistics of the received model."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

import resfed_codec as rfc

torch = pytest.importorskip("torch")
nn = torch.nn
PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"


def test_the_server_gets_the_statistics_of_the_model_that_it_sent() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (code,) = (block for block in blocks if "update_bn" in block)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 3))
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    config = rfc.CodecConfig(sparsity=0.99)  # the default sends small models nearly whole
    server, session = (
        make(initial, config, config) for make in (rfc.ServerSession, rfc.ClientSession)
    )
    server.update({name: value + 1 for name, value in initial.items()})
    message = server.send("a")
    loader = [(part, None) for part in (3 * torch.randn(64, 6) + 1).split(16)]

    def train(model: Any, loader: Any) -> None:
        model.train()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
            for images, _ in loader:
                model(images)

    received = deepcopy(model)
    received.load_state_dict(rfc.ClientSession(initial, config, config).receive(message))
    torch.optim.swa_utils.update_bn(loader, received)
    scope: dict[str, Any] = {"torch": torch, "model": model, "loader": loader, "train": train}
    scope |= {"session": session, "message": message}
    exec(code, scope)
    recovered = server.receive("a", scope["payload"])
    for name in ("1.running_mean", "1.running_var"):
        right, trained = received.state_dict()[name], model.state_dict()[name]
        rounding = 0.2 * (right - initial[name]).norm()
        assert (recovered[name] - right).norm() < rounding < (trained - right).norm()
    assert recovered["1.num_batches_tracked"] == 4
    assert not torch.equal(model.state_dict()["1.running_mean"], recovered["1.running_mean"])
