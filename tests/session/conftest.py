"""Federations with each pair of predictors."""

from __future__ import annotations

import pytest

from federation import RULES, Federation, Running


@pytest.fixture(params=RULES.values(), ids=RULES.keys())
def fed(request: pytest.FixtureRequest) -> Federation:
    return Federation(request.param)


@pytest.fixture
def running(fed: Federation) -> Running:
    """A federation after some rounds."""
    client = fed.new_client()
    fed.rounds(client, 4)
    return fed, client
