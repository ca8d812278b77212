"""Refuses to be imported in a subinterpreter, where importing the native module hangs."""

from __future__ import annotations

import importlib
from typing import Any


def _is_main() -> bool:
    for name in ("_interpreters", "_xxsubinterpreters"):  # of Python 3.13, of those before
        try:
            module: Any = importlib.import_module(name)
        except ImportError:
            continue
        return bool(module.get_current() == module.get_main())
    return True  # a Python without subinterpreters


if not _is_main():
    raise ImportError(
        "resfed_codec cannot be used in a subinterpreter: like NumPy, its native module works in"
        " the main interpreter of a process only. Use a thread, or a process of its own"
    )
