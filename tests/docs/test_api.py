"""docs/api.md lists every public name, and docstrings describe every parameter."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import resfed_codec as rfc

REFERENCE = Path(__file__).parents[2] / "docs" / "api.md"
NATIVE = "resfed_codec._native"
"""Its classes have no signatures; docs/gpu.md describes DeviceArray."""
NAMES = [name for name in rfc.__all__ if name != "__version__"]


def functions() -> list[tuple[str, Any]]:
    """Public functions, methods and properties, as "name" or "Class.name"."""
    found: list[tuple[str, Any]] = []
    for name in NAMES:
        value = getattr(rfc, name)
        if not inspect.isclass(value):
            found.append((name, value))
            continue
        for base in value.__mro__:
            if base.__module__.startswith("resfed_codec") and base.__module__ != NATIVE:
                found += [
                    (f"{name}.{member}", attribute)
                    for member, attribute in vars(base).items()
                    if not member.startswith("_")
                    and (inspect.isfunction(attribute) or isinstance(attribute, property))
                ]
    return found


def described(docstring: str) -> set[str]:
    """The names before colons in the sections Args and Attributes."""
    names: set[str] = set()
    for section in re.findall(r"^(?:Args|Attributes):\n((?: {4}.*\n|\n)*)", docstring, re.M):
        for entry in re.findall(r"^ {4}([\w*, ]+):", section, re.M):
            names |= {name.strip(" *") for name in entry.split(",")}
    return names


def parameters(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self"}


def test_the_reference_has_every_name() -> None:
    section = REFERENCE.read_text().split("## Flower")[0]
    listed = re.findall(r"^\.\. auto(?:function|class|exception):: (\w+)", section, re.M)
    assert sorted(listed) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_classes_describe_their_fields_and_arguments(name: str) -> None:
    value = getattr(rfc, name)
    assert value.__doc__
    told_here = inspect.isclass(value) and value.__module__ != NATIVE
    if told_here and not issubclass(value, Exception):
        assert parameters(value) <= described(inspect.getdoc(value) + "\n")


@pytest.mark.parametrize(("name", "function"), functions())
def test_functions_describe_their_arguments(name: str, function: Any) -> None:
    docstring = inspect.getdoc(function)
    assert docstring, f"{name} has no docstring"
    if not isinstance(function, property):
        assert parameters(function) <= described(docstring + "\n"), name
