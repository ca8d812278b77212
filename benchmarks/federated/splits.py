"""Splits of the images among clients: a list of index arrays, one per client."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Shards = list[NDArray[np.int64]]

MIN_EXAMPLES = 8
"""A Dirichlet split that leaves a client fewer than this is drawn again."""


def split(spec: str, labels: Labels, clients: int, seed: int) -> Shards:
    """Split by ``classes:C``, ``dirichlet:ALPHA`` or ``iid``; the clients' images are disjoint.

    Raises:
        ValueError: The specification is unknown, or there are too few images for it.
    """
    rng = np.random.default_rng([seed, 2])
    kind, _, value = spec.partition(":")
    if kind == "iid" and not value:
        return [np.sort(part) for part in np.array_split(rng.permutation(len(labels)), clients)]
    if kind == "classes" and value.isdigit():
        return by_class(labels, clients, int(value), rng)
    if kind == "dirichlet":
        return dirichlet(labels, clients, float(value), rng)
    raise ValueError(f"split {spec!r}: must be classes:C, dirichlet:ALPHA or iid")


def by_class(labels: Labels, clients: int, classes: int, rng: np.random.Generator) -> Shards:
    """Every client gets ``classes`` classes; the owners of a class share it equally.

    Classes are shuffled and dealt in turn, so that all have nearly the same number of owners.
    """
    names = rng.permutation(np.unique(labels))
    if not 1 <= classes <= len(names):
        raise ValueError(f"classes:{classes}: the data has {len(names)} classes")
    first = [client * len(names) // clients for client in range(clients)]
    shards: list[list[NDArray[np.int64]]] = [[] for _ in range(clients)]
    for i, name in enumerate(names):
        owners = [c for c in range(clients) if (i - first[c]) % len(names) < classes]
        if not owners:
            continue  # too few clients: no client has this class
        members = rng.permutation(np.flatnonzero(labels == name))
        for owner, part in zip(owners, np.array_split(members, len(owners)), strict=True):
            shards[owner].append(part)
    return [np.sort(np.concatenate(shard)) for shard in shards]


def dirichlet(labels: Labels, clients: int, alpha: float, rng: np.random.Generator) -> Shards:
    """Each class is divided in proportions drawn from Dirichlet(alpha).

    Hsu, Qi, Brown, "Measuring the effects of non-identical data distribution for federated visual
    classification", arXiv:1909.06335.
    """
    if alpha <= 0:
        raise ValueError(f"dirichlet:{alpha:g}: alpha must be positive")
    for _ in range(1000):
        shards: list[list[NDArray[np.int64]]] = [[] for _ in range(clients)]
        for name in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == name))
            shares = rng.dirichlet(np.full(clients, alpha))
            cuts = (np.cumsum(shares)[:-1] * len(members)).astype(int)
            for shard, part in zip(shards, np.split(members, cuts), strict=True):
                shard.append(part)
        joined = [np.sort(np.concatenate(shard)) for shard in shards]
        if min(map(len, joined)) >= MIN_EXAMPLES:
            return joined
    raise ValueError(f"dirichlet:{alpha:g}: no split leaves all clients {MIN_EXAMPLES} images")
