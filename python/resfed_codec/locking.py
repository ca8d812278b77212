"""One lock per object: several threads may call the methods of a stream or session."""

from __future__ import annotations

import threading
from collections.abc import Callable
from copy import deepcopy
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from resfed_codec.tensors.torch_tensors import untraced


class Synchronized:
    """Base of objects with a reentrant lock, which :func:`synchronized` methods hold.

    Copying and pickling hold the lock, too. Methods write into the object's arrays in place, so a
    shallow copy is a deep one.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # in C: no interrupt between taking it and the with block

    def __copy__(self: Self) -> Self:
        return deepcopy(self)

    def __deepcopy__(self: Self, memo: dict[int, Any]) -> Self:
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        new.__setstate__(self._copied(memo))
        return new

    def __getstate__(self) -> dict[str, Any]:
        return self._copied({})  # pickle reads it after the lock has been released

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    def _copied(self, memo: dict[int, Any]) -> dict[str, Any]:
        with self._lock:
            return deepcopy({k: v for k, v in self.__dict__.items() if k != "_lock"}, memo)


Self = TypeVar("Self", bound=Synchronized)
Args = ParamSpec("Args")
Result = TypeVar("Result")


def synchronized(
    method: Callable[Concatenate[Self, Args], Result],
) -> Callable[Concatenate[Self, Args], Result]:
    """Decorator: the method holds the object's lock, and torch does not trace it."""

    @wraps(method)
    @untraced
    def call(self: Self, /, *args: Args.args, **kwargs: Args.kwargs) -> Result:
        with self._lock:
            return method(self, *args, **kwargs)

    return call
