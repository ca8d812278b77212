"""Marks for parameters of tests."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_except(fast: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """The values for ``parametrize``; those that are not in ``fast`` are marked slow."""
    slow = pytest.mark.slow
    return [v if v in fast else pytest.param(v, marks=slow) for v in values]
