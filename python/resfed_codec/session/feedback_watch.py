"""FeedbackWatch: which kind of server this is, so whether downlinks need error feedback.

A server either builds the new global model on the one that clients recovered, as the mean of their
models is, or keeps an exact model of its own, as server optimizers do. Only the new model of an
exact server contains what the downlink before left out. So the server's session compares

    e = the model last given to update - the model that clients hold
    r = the new model                  - the model that clients hold

and looks at <r, e> / <e, e>: the share of e that is in r. It is near 1 where the server keeps an
exact model, and near 0 where it does not. benchmarks/feedback.py has the measurement.
"""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

from resfed_codec import _native
from resfed_codec._native import Role
from resfed_codec.codec.native_call import tensors_of
from resfed_codec.notices import warn
from resfed_codec.stream.update_encoder import UpdateEncoder
from resfed_codec.stream.versions import Feedback, Model, Version, model_of
from resfed_codec.tensors.memory import on_host

_log = logging.getLogger(__name__)

ONE = 1024
"""Shares are integers, in 1/1024: a resumed run decides alike."""

EXACT = 820
"""A share above this, 0.8, says that the server keeps an exact model."""

MEAN = 410
"""A share below this, 0.4, says that it does not."""

N_RECENT = 3
"""So many shares in sequence must say the same."""

N_SKIPPED = 1
"""The first share is not considered: a training's first rounds are unlike the others."""

N_WATCHED = 20
"""After so many shares the watch ends: the server is of the kind that it has been."""

_NEGLIGIBLE = 1e-6
"""If e has less of r's energy, what is left out does not matter and its share is noise."""


class FeedbackWatch(NamedTuple):
    """What is known so far.

    Attributes:
        last: The model last given to ``update``; None before the first one.
        recent: The last shares, the newest one last.
        n_shares: Number of shares so far.
    """

    last: Model | None = None
    recent: tuple[int, ...] = ()
    n_shares: int = 0

    def after(self, share: int | None) -> FeedbackWatch:
        """With one more share; None if there was none to measure."""
        if share is None:
            return self
        return self._replace(recent=(*self.recent, share)[-N_RECENT:], n_shares=self.n_shares + 1)

    @property
    def _is_long(self) -> bool:
        return self.n_shares >= N_RECENT + N_SKIPPED

    @property
    def says_exact(self) -> bool:
        """Whether the server keeps an exact model: feedback counts twice what was left out."""
        return self._is_long and min(self.recent) > EXACT

    @property
    def says_mean(self) -> bool:
        """Whether what was left out is lost unless there is feedback."""
        return self._is_long and max(self.recent) < MEAN

    @property
    def is_over(self) -> bool:
        return self.n_shares >= N_WATCHED


def share_of_left_out(
    encoder: UpdateEncoder, current: Model, held: Model, last: Model
) -> int | None:
    """<r, e> / <e, e> over matrices and vectors, in 1/1024; None if e is negligible.

    The sums are computed on the host, in an order that no number of threads changes.
    """
    lossy = [role in (Role.MATRIX, Role.VECTOR) for role in encoder.roles]
    held, last = list(map(on_host, held)), list(map(on_host, last))
    tensors = tensors_of(
        encoder.layout.specs,
        encoder.roles,
        held,
        current=list(map(on_host, current)),
        terms=[[h, m] if yes else [] for yes, h, m in zip(lossy, held, last, strict=True)],
        coefficients=[[1.0, 0.0] if yes else [] for yes in lossy],
    )
    rr = re = ee = 0.0
    for sums in _native.moments(tensors):  # with e negated
        if sums:
            rr, re, ee = rr + sums[0], re - sums[1], ee + sums[2]
    if not math.isfinite(rr + re + ee) or ee <= _NEGLIGIBLE * rr or ee == 0:
        return None
    return round(max(-1024.0, min(1024.0, re / ee)) * ONE)


def next_feedback(
    encoder: UpdateEncoder,
    current: Model,
    held: Version,
    feedback: Feedback | None,
    watch: FeedbackWatch | None,
) -> tuple[Feedback | None, FeedbackWatch | None]:
    """The feedback that a server's session encodes ``current`` with, and the watch after that.

    The caller of ``update`` is warned of a setting that costs accuracy; then the watch ends.
    """
    if watch is None:
        return feedback, None
    if watch.last is not None:
        watch = watch.after(share_of_left_out(encoder, current, model_of(held), watch.last))
    setting = encoder.config.error_feedback
    shares = ", ".join(f"{share / ONE:.2f}" for share in watch.recent)
    if setting is None and watch.says_exact:
        _log.info(
            "downlink: error feedback is off from global model %d on: the server keeps an exact"
            " model, for the last ones contain what downlinks had left out (shares: %s)",
            held.number + 1,
            shares,
        )
        return None, None
    problem = ""
    if setting is True and watch.says_exact:
        problem = (
            "the server keeps an exact model: the last ones contain what downlinks had left out"
            f" (shares: {shares}), so feedback counts it twice, and the training collapses"
        )
    if setting is False and watch.says_mean:
        problem = (
            "the server builds on what clients hold: the last global models lack what downlinks had"
            f" left out (shares: {shares}), which costs accuracy"
        )
    if problem:
        warn(f"downlink: error_feedback={setting}, but {problem}. Leave error_feedback out")
    if problem or watch.is_over:
        return feedback, None
    return feedback, watch._replace(last=encoder.layout.copy_of(current))
