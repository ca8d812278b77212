"""Calls that take turns: streams and sessions may be used from several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar


class Turn:
    """A lock that a thread may take again. A copy, or what is unpickled, is a lock of its own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Turn], tuple[()]]:
        return Turn, ()


class HasTurn(Protocol):
    _turn: Turn


Self = TypeVar("Self", bound=HasTurn)
Args = ParamSpec("Args")
Result = TypeVar("Result")


def in_turn(
    method: Callable[Concatenate[Self, Args], Result],
) -> Callable[Concatenate[Self, Args], Result]:
    """A method that waits until no other one of the same object is at work."""

    @wraps(method)
    def call(self: Self, /, *args: Args.args, **kwargs: Args.kwargs) -> Result:
        with self._turn:
            return method(self, *args, **kwargs)

    return call
