"""A server and one client with the same predictors, and rounds between them."""

from __future__ import annotations

from typing import Any

import numpy as np

import resfed_codec as rfc
from models import assert_same
from published_rules import moved, random_model

RULES = [("global", "previous"), ("res2", "adaptive"), ("adaptive", "res2"), ("res1", "previous")]


def configs(
    rules: tuple[str, str], feedback: bool = False, sparsity: float = 0.7
) -> tuple[rfc.CodecConfig, rfc.CodecConfig]:
    """Of both directions, with feedback where predictors allow it."""
    allowed = rules[0] in ("global", "adaptive"), rules[1] in ("previous", "adaptive")
    up, down = (
        rfc.CodecConfig(sparsity=sparsity, predictor=rule, error_feedback=feedback and may)
        for rule, may in zip(rules, allowed, strict=True)
    )
    return up, down


def pair(
    rules: tuple[str, str] = RULES[0], feedback: bool = False, **arguments: Any
) -> tuple[rfc.ServerSession, rfc.ClientSession, np.random.Generator]:
    rng = np.random.default_rng(5)
    initial = random_model(rng)
    both = configs(rules, feedback)
    server = rfc.ServerSession(initial, *both, **arguments)
    return server, rfc.ClientSession(initial, *both, **arguments), rng


def run(server: Any, client: Any, rng: np.random.Generator, n: int = 3, name: Any = "a") -> None:
    for _ in range(n):
        server.update(moved(server.state, rng))
        assert_same(client.receive(server.send(name)), client.state)
        local = moved(client.state, rng)
        assert_same([server.receive(name, client.send(local))["steps"]], [local["steps"]])
