"""The native codec and the reference, held against each other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import resfed_codec as rfc
from checksums import sealed
from models import assert_same
from resfed_codec import _native
from resfed_codec import reference as slow
from resfed_codec.codec import update
from resfed_codec.reference.frame import read_frame
from resfed_codec.reference.lanes import LOSSY, Tables, read_tables
from resfed_codec.reference.update import matrices_of
from resfed_codec.reference.values import groups_of, tensors_of

KERNELS = ("scalar", "avx2", "avx512", "neon")


@contextlib.contextmanager
def native_lanes(lane_log2: int) -> Iterator[None]:
    """The native encoder makes lanes of another size than it usually does."""
    original = update.native_options

    def changed(*args: Any) -> Any:
        options = original(*args)
        options.lane_log2 = lane_log2
        return options

    update.native_options = changed  # type: ignore[assignment]
    try:
        yield
    finally:
        update.native_options = original


def by_all_kernels(call: Callable[[], Any]) -> Iterator[Any]:
    """What a call of the native codec returns with each of its kernels that this processor has."""
    before = _native.kernels()
    try:
        for kernels in KERNELS:
            if _native.choose_kernels(kernels):
                yield call()
    finally:
        _native.choose_kernels(before)


def assert_agree(state: Any, base: Any, config: dict[str, Any], lane_log2: int = 10) -> bytes:
    """Both make the same bytes, which are returned, and both decode them to the same model."""
    running = [name for name in base if "running_" in name] if isinstance(base, dict) else []
    with np.errstate(all="ignore"):
        theirs = slow.encode(state, base, **{"dense": running, **config}, lane_log2=lane_log2)
        with native_lanes(lane_log2):
            for ours in by_all_kernels(lambda: rfc.encode(state, base, **config)):
                differ = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), None)  # noqa: B905
                lengths = f"{len(ours)} and {len(theirs)}"
                assert ours == theirs, f"first difference at byte {differ}: {lengths}"
        decoded = slow.decode(theirs, base)
        for model in by_all_kernels(lambda: rfc.decode(theirs, base)):
            assert_same(model, decoded)
    return theirs


def outcome(decode: Callable[[Any, Any], Any], payload: bytes, reference: Any) -> Any:
    try:
        return decode(payload, reference)
    except (rfc.PayloadError, rfc.StateMismatchError) as error:
        return type(error)


def n_refused(payload: bytes, part: bytes, reference: Any, n: int, rng: np.random.Generator) -> int:
    """How many of n bits of a part are refused as damage, under a checksum that is right.

    Both codecs raise the same error, or decode the same model.
    """
    begin, refused = payload.index(part), 0
    for at in begin + rng.integers(0, len(part), n):
        forged = bytearray(payload[:-4])
        forged[at] ^= 1 << int(rng.integers(8))
        theirs = outcome(slow.decode, sealed(bytes(forged)), reference)
        refused += theirs is rfc.PayloadError
        for ours in by_all_kernels(partial(outcome, rfc.decode, sealed(bytes(forged)), reference)):
            if isinstance(theirs, type):
                assert ours is theirs, at
            else:
                assert_same(ours, theirs)
    return refused


def tables_in(payload: bytes, base: Any) -> Tables:
    """What the tables of a payload say."""
    f = read_frame(payload)
    matrices, *_ = groups_of(tensors_of(base), f.exclusions, f.dense_tensors)
    return read_tables(LOSSY, f.tables, matrices_of(matrices), f.n_lanes)
