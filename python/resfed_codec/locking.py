"""Calls that take turns: streams and sessions may be used from several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from copy import deepcopy
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from resfed_codec.tensors.torch_tensors import untraced


class TakesTurns:
    """An object whose methods take turns. Copies and pickles take one too.

    Calls write into the object's arrays in place, so a copy shares nothing with it, a shallow one
    neither.
    """

    def __init__(self) -> None:
        self._turn = threading.RLock()  # in C: no interrupt between taking it and the with block

    def __copy__(self: Self) -> Self:
        return deepcopy(self)

    def __deepcopy__(self: Self, memo: dict[int, Any]) -> Self:
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        new.__setstate__(self._copied(memo))
        return new

    def __getstate__(self) -> dict[str, Any]:
        return self._copied({})  # pickle reads it after the turn has been given back

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _turn=threading.RLock())

    def _copied(self, memo: dict[int, Any]) -> dict[str, Any]:
        with self._turn:
            return deepcopy({k: v for k, v in self.__dict__.items() if k != "_turn"}, memo)


Self = TypeVar("Self", bound=TakesTurns)
Args = ParamSpec("Args")
Result = TypeVar("Result")


def in_turn(
    method: Callable[Concatenate[Self, Args], Result],
) -> Callable[Concatenate[Self, Args], Result]:
    """A method that waits until no other one of the same object is at work."""

    @wraps(method)
    @untraced
    def call(self: Self, /, *args: Args.args, **kwargs: Args.kwargs) -> Result:
        with self._turn:
            return method(self, *args, **kwargs)

    return call
