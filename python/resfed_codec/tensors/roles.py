"""The role of each tensor: how its elements are selected and coded."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import NamedTuple

from resfed_codec._native import Role
from resfed_codec.config import CodecConfig
from resfed_codec.tensors.layout import Specs
from resfed_codec.tensors.replaced import replaced_tensors


class RoleOverrides(NamedTuple):
    """Ordinals of the float tensors that are not in the budget, ascending; no tensor is in both."""

    exclusions: tuple[int, ...] = ()
    dense: tuple[int, ...] = ()


NO_OVERRIDES = RoleOverrides()


@lru_cache(maxsize=16)
def role_overrides(specs: Specs, config: CodecConfig) -> RoleOverrides:
    """The tensors that ``exclude`` and ``dense`` name; ValueError for a pattern without any."""
    names, dense = [spec.name for spec in specs], config.dense
    excluded = named(names, config.exclude, "exclude")
    replaced = set(replaced_tensors(specs)) if dense is None else named(names, dense, "dense")
    floats = [(i, spec.name) for i, spec in enumerate(specs) if spec.is_float]
    return RoleOverrides(
        tuple(i for i, name in floats if name in excluded),
        tuple(i for i, name in floats if name in replaced and name not in excluded),
    )


def named(names: Sequence[str], patterns: Sequence[str], argument: str) -> set[str]:
    """The names that the patterns mean: one that is a name means just that, others by fnmatch.

    Raises ValueError for a pattern that means none.
    """
    chosen, known = set(), set(names)
    for pattern in patterns:
        if pattern in known:
            chosen.add(pattern)
            continue
        is_wild = any(wildcard in pattern for wildcard in "*?[")
        like = [name for name in names if fnmatchcase(name, pattern)] if is_wild else []
        if not like:
            close = get_close_matches(pattern, names[:1000], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{argument}: no tensor is named like {pattern!r}{hint}")
        chosen.update(like)
    return chosen


@lru_cache(maxsize=16)
def roles_of(specs: Specs, overrides: RoleOverrides = NO_OVERRIDES) -> tuple[Role, ...]:
    """The role of each tensor, a function of the layout and of what is excluded or dense.

    Integers, bool and excluded tensors are lossless; of the other floats that are not dense, those
    of two or more dimensions are matrices, the rest vectors. Where there is no matrix at all (say,
    one flat parameter vector) the vectors are treated as matrices.
    """
    exclusions, dense = map(set, overrides)
    roles = [
        Role.LOSSLESS
        if not spec.is_float or i in exclusions
        else Role.DENSE
        if i in dense
        else Role.MATRIX
        if len(spec.shape) >= 2
        else Role.VECTOR
        for i, spec in enumerate(specs)
    ]
    if Role.MATRIX in roles:
        return tuple(roles)
    return tuple(Role.MATRIX if role == Role.VECTOR else role for role in roles)
