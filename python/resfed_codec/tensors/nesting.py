"""Nested states: mappings and sequences of each other, and what JAX takes as a pytree.

The name of a tensor joins the keys on the way to it with "/": ``{"dense": {"kernel": a}}`` has the
tensor "dense/kernel". Positions in a sequence are keys, too, as in "layers/0/kernel".
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from resfed_codec.tensors.jax_arrays import is_jax

_NO_KEY = object()


class Flat(dict[str, Any]):
    """A nested state's tensors by name. ``template`` is the state with names for tensors."""

    template: Any


class _Level(NamedTuple):
    """One level of a nested state: keys, what is under them, and how to make such a level again.

    A key of _NO_KEY adds nothing to names. Of JAX's own levels, a child may be None: no tensor.
    """

    keys: Iterable[Any]
    children: Iterable[Any]
    make: Callable[[Iterable[Any]], Any]
    is_jax: bool = False


def flattened(state: Any, tensors: dict[Any, Any] | list[Any], argument: str) -> Flat | None:
    """The tensors of a nested state; None if ``tensors``, what is in it, are tensors.

    JAX arrays in anything else than a dict or a list count as nested, because ``jax.tree.map``
    takes only equal kinds together.

    Raises:
        TypeError: A key is neither a str nor an int.
        ValueError: Two tensors have one name.
    """
    children = tensors.values() if isinstance(tensors, dict) else tensors
    kinds = {type(child): child for child in children}.values()
    is_plain = type(state) in (dict, list)
    is_flat = all(_level_of(child) is None for child in kinds)
    if is_flat and (is_plain or not any(map(is_jax, kinds))):
        return None
    keeps_kind = not is_plain and (type(state) is tuple or _is_registered(state))
    return _flat(state if keeps_kind else tensors, argument)


def registered(state: Any, argument: str) -> Flat | None:
    """The tensors of a pytree that is neither a mapping nor a sequence; None for anything else."""
    return _flat(state, argument) if _is_registered(state) else None


def _flat(state: Any, argument: str) -> Flat:
    flat = Flat()
    flat.template = _named(state, "", argument, flat)
    return flat


def _named(node: Any, path: str, argument: str, flat: Flat) -> Any:
    """The template of a part of a state; adds its tensors to ``flat``."""
    level = _level_of(node)
    if level is None:
        if path in flat:
            raise ValueError(f"{argument}: two tensors have the name {path!r}")
        flat[path] = node
        return path
    return level.make(
        [
            None
            if child is None and level.is_jax
            else _named(child, _joined(path, key, argument), argument, flat)
            for key, child in zip(level.keys, level.children, strict=True)
        ]
    )


def _joined(path: str, key: Any, argument: str) -> str:
    if key is _NO_KEY:
        return path
    if not isinstance(key, (str, int)):
        inside = f" in {path!r}" if path else ""
        raise TypeError(f"{argument}: the name {key!r}{inside} must be a str or an int")
    text = str.__str__(key) if isinstance(key, str) else int.__repr__(key)
    return f"{path}/{text}" if path else text


def rebuilt(template: Any, values: Mapping[str, Any]) -> Any:
    """A state of the template's kind and nesting, with these tensors."""
    if isinstance(template, str):
        return values[template]
    level = _level_of(template)
    if level is None:
        return template
    return level.make([rebuilt(child, values) for child in level.children])


def _level_of(node: Any) -> _Level | None:
    """The level that a part of a state is; None for a tensor."""
    kind = type(node)
    if kind is dict:
        return _Level(node, node.values(), lambda children: dict(zip(node, children, strict=True)))
    if kind is list or kind is tuple:
        return _Level(range(len(node)), node, kind)
    if isinstance(node, (str, bytes, bytearray)) or node is None:
        return None
    if _is_registered(node):
        return _jax_level(node)
    if isinstance(node, Mapping):
        keys, children = list(node), list(node.values())
        return _Level(keys, children, lambda values: dict(zip(keys, values, strict=True)))
    return _Level(range(len(node)), node, list) if isinstance(node, Sequence) else None


def _is_registered(node: Any) -> bool:
    """Whether JAX knows this kind as a level of pytrees."""
    trees = getattr(sys.modules.get("jax"), "tree_util", None)
    return trees is not None and node is not None and not trees.all_leaves([node])


def _jax_level(node: Any) -> _Level:
    trees = sys.modules["jax"].tree_util
    found, tree = trees.tree_flatten_with_path(node, is_leaf=lambda part: part is not node)
    children = [child for _, child in found]
    keys: Iterable[Any] = range(len(children))
    if isinstance(node, _variables()):
        keys = [_NO_KEY] * len(children)
    elif not isinstance(node, tuple):  # a named tuple is a sequence, whether JAX is there or not
        keys = [_key_of(path[0]) for path, _ in found]
    return _Level(keys, children, tree.unflatten, is_jax=True)


def _key_of(entry: Any) -> Any:
    for attribute in ("key", "idx", "name"):  # of JAX's kinds of keys, each has one
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return str(entry)


def _variables() -> tuple[type, ...]:
    """Flax NNX's wrappers of arrays, whose own key, "value", says nothing."""
    nnx = sys.modules.get("flax.nnx")
    names = ("Variable", "VariableState")
    return tuple(vars(nnx)[name] for name in names if nnx and name in vars(nnx))
