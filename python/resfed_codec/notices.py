"""Warnings: about what a caller passes, on the caller's line."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

_PACKAGE = f"{Path(__file__).parent}{os.sep}"


def warn(text: str) -> None:
    """Warn at the line outside of the package that the call comes from.

    By default Python shows a text once for each line; ``warnings`` can make it an error. Whatever
    warns must do so before it changes anything.
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, UserWarning, stacklevel=level)
