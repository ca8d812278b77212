"""UpdateEncoder: encodes a model of one direction against the versions that it builds on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from resfed_codec import _native
from resfed_codec._native import MAX_COEF_LOG2, MAX_DEPTH, Role
from resfed_codec.codec import native_call
from resfed_codec.codec.native_call import PayloadPlan, tensors_of
from resfed_codec.codec.update import VECTOR_SHARE, native_options
from resfed_codec.config import DEFAULT_SPARSITY, CodecConfig
from resfed_codec.errors import native_errors
from resfed_codec.stream.link import Link, Terms, link_digest, unit_terms, write_link
from resfed_codec.stream.predictor import (
    AdaptivePredictor,
    Predictor,
    coarsest_log2,
    quantized_terms,
)
from resfed_codec.stream.versions import (
    OTHER,
    OWN,
    Feedback,
    Model,
    Part,
    Version,
    at_place,
    completed,
    model_of,
    new_feedback,
    prediction_tensors,
)
from resfed_codec.tensors.layout import Layout
from resfed_codec.tensors.memory import on_host
from resfed_codec.tensors.roles import named, role_overrides, roles_of
from resfed_codec.tensors.suspects import CHECKED, warn_of_suspects

ADAPTIVE_LOG2 = 5
_COEFFICIENT_BITS = 32
"""Approximate size of a tensor's three coefficients in the link."""


class UpdateEncoder:
    """The encoder of one direction, with its layout, configuration and predictor.

    ``two_way`` says whether predictions may read the other direction's versions.

    Raises:
        ValueError: The predictor needs the other direction and there is none, or a pattern matches
            no tensor.
    """

    def __init__(
        self, layout: Layout, config: CodecConfig, predictor: Predictor, *, two_way: bool
    ) -> None:
        self.layout, self.config, self.predictor, self.two_way = layout, config, predictor, two_way
        self.overrides = role_overrides(layout.specs, config)
        self.roles = roles_of(layout.specs, self.overrides)
        if isinstance(predictor, AdaptivePredictor):
            self.own_depth, self.other_depth = (1, 2) if two_way else (MAX_DEPTH, 0)
            return
        self.own_depth, self.other_depth = predictor.own_depth, predictor.other_depth
        if self.other_depth and not two_way:
            raise ValueError(
                "predictor: reads the other direction, which an Encoder does not have; use a"
                " session"
            )
        names = [spec.name for spec in layout.specs]
        self._named = [named(names, [pattern], "predictor") for pattern in predictor.tensors]

    def depends(self, with_feedback: bool | None) -> dict[str, Any]:
        """Properties that saved feedback depends on, by name: whether there is any (None: the
        session finds out), and for which tensors."""
        if with_feedback is False:
            return {"error_feedback": False}
        names = [spec.name for spec in self.layout.specs]
        return {
            "error_feedback": with_feedback,
            "exclude": [names[i] for i in self.overrides.exclusions],
            "dense": [names[i] for i in self.overrides.dense],
        }

    def encode(
        self,
        current: Part,
        *,
        number: int,
        base: Version | None,
        keep: int,
        out: Model | None,
        tag: int = 0,
        other: Version | None = None,
        feedback: Feedback | None = None,
        commit: PayloadPlan | None = None,
    ) -> bytes:
        """The payload of version ``number``; on success ``out`` and ``feedback`` are filled.

        ``tag`` identifies the client (0: a payload for all). ``commit`` returns the assignments to
        make in one step with the filling. A tensor that ``current`` lacks is the newest version's
        of ``other``, or else of ``base``: nothing of it is sent, and its feedback does not change.
        """
        reference = base or other
        own = base.lineage(max(1, self.own_depth)) if base else []
        others = other.lineage(max(1, self.other_depth)) if other else []
        absent = [i for i, array in enumerate(current) if array is None]
        whole = [array for array in current if array is not None]
        if absent:
            whole = completed(current, model_of((others or own)[0]))
        if number <= CHECKED and reference is not None and reference.model is not None:
            warn_of_suspects(self.layout.specs, self.roles, whole, reference.model)
        coef_log2, terms, per_tensor = self._terms(whole, own, others, feedback)
        if absent:
            alone = tuple(n << coef_log2 for n in unit_terms(OTHER if others else OWN))
            per_tensor = {i: t for i, t in per_tensor.items() if i not in absent}
            if terms != alone:
                lossy = [i for i in absent if self.roles[i] != Role.LOSSLESS]
                per_tensor |= dict.fromkeys(lossy, alone)
        link = Link(
            version=number,
            base=base.number if base else None,
            other=other.number if other else None,
            n_own=len(own),
            n_other=len(others),
            keep=keep,
            coef_log2=coef_log2,
            terms=terms,
            per_tensor=per_tensor,
        )
        if absent and feedback is not None:
            feedback = self._without(feedback, absent)
        tensors = prediction_tensors(
            self.layout, self.roles, link, own, others, current, out, feedback
        )
        specs, on = self.layout.specs, self.layout.device
        with native_errors(specs):
            options = native_options(self.config, specs, self.roles, self.overrides, tensors, on)
            options.digest = link_digest(
                tag, base.digest if base else 0, other.digest if other else 0
            )
            options.link = write_link(link)
            return native_call.encode(tensors, options, on, commit)

    def _without(self, feedback: Feedback, absent: Sequence[int]) -> Feedback:
        """The feedback, with zeros that are thrown away for the tensors that are absent."""
        zeros = new_feedback(self.layout, self.roles, absent)
        return [
            z if i in absent else f for i, (f, z) in enumerate(zip(feedback, zeros, strict=True))
        ]

    def _terms(
        self,
        current: Model,
        own: list[Version],
        others: list[Version],
        feedback: Feedback | None,
    ) -> tuple[int, Terms, dict[int, Terms]]:
        p = self.predictor
        if isinstance(p, AdaptivePredictor):
            return self._fit(current, own, others, feedback)
        if not own and self.own_depth:  # no history yet, or it was dropped
            return 0, unit_terms(OTHER), {}
        pairs = [(p.own, p.other)]
        chosen: dict[int, int] = {}
        for place, pair in enumerate(p.tensors.values(), start=1):
            pairs.append(pair)
            for i, spec in enumerate(self.layout.specs):
                if spec.name in self._named[place - 1] and self.roles[i] != Role.LOSSLESS:
                    chosen.setdefault(i, place)
        fine = [quantized_terms(MAX_COEF_LOG2, *pair) for pair in pairs]
        coef_log2 = coarsest_log2(fine, MAX_COEF_LOG2)
        all_terms = [quantized_terms(coef_log2, *pair) for pair in pairs]
        return coef_log2, all_terms[0], {i: all_terms[place] for i, place in chosen.items()}

    def _fit(
        self,
        current: Model,
        own: list[Version],
        others: list[Version],
        feedback: Feedback | None,
    ) -> tuple[int, Terms, dict[int, Terms]]:
        """Least squares over two steps; see AdaptivePredictor and docs/predictors.md.

        The sums are computed on the host; arrays on a device are copied there.
        """
        places = [OTHER, OWN, OTHER + 1] if others else [OWN, OWN + 1, OWN + 2]
        start = unit_terms(places[0])
        if not own or (not others and len(own) == 1):
            return 0, start, {}
        history = {place: model_of(at_place(place, own, others)) for place in places}
        models = [list(map(on_host, history[place])) for place in places]
        tensors = tensors_of(
            self.layout.specs,
            self.roles,
            models[0],
            current=list(map(on_host, current)),
            feedback=[None if f is None else on_host(f) for f in feedback] if feedback else None,
            terms=[
                [] if role == Role.LOSSLESS else list(versions)
                for role, *versions in zip(self.roles, *models, strict=True)
            ],
            coefficients=[[] if role == Role.LOSSLESS else [1.0, 0.0, 0.0] for role in self.roles],
        )
        one = 1 << ADAPTIVE_LOG2
        per_tensor = {}
        for i, sums in enumerate(_native.moments(tensors)):
            steps = least_squares(sums, self._expected_nonzeros(i)) if sums else (0, 0)
            if steps != (0, 0):
                numerators = dict(zip(places, (one + steps[0], steps[1], -sum(steps)), strict=True))
                per_tensor[i] = tuple(numerators.get(place, 0) for place in range(2 * MAX_DEPTH))
        if not per_tensor:
            return 0, start, {}
        return ADAPTIVE_LOG2, tuple(one * n for n in start), per_tensor

    def _expected_nonzeros(self, ordinal: int) -> float:
        if self.roles[ordinal] == Role.DENSE:
            return self.layout.specs[ordinal].n_elems
        sparsity = self.config.aimed_sparsity
        if sparsity is None:
            sparsity = DEFAULT_SPARSITY
        share = VECTOR_SHARE if self.roles[ordinal] == Role.VECTOR else 1
        return self.layout.specs[ordinal].n_elems * min(1.0, (1 - sparsity) * share)


def least_squares(sums: Sequence[float], n_nonzeros: float) -> tuple[int, int]:
    """Steps (x, y), in units of 2**-5, that minimize |r - x u - y v|^2.

    ``sums`` are (rr, ru, rv, uu, uv, vv). If the residual's energy falls by a factor f, each
    nonzero saves log2(f) / 2 bits, as in high-resolution quantization. The result is (0, 0) if that
    saves less than the coefficients cost.
    """
    rr, ru, rv, uu, uv, vv = sums
    candidates = [(0.0, 0.0)]
    if uu > 0:
        candidates.append((ru / uu, 0.0))
    if vv > 0:
        candidates.append((0.0, rv / vv))
    determinant = uu * vv - uv * uv
    if determinant > 1e-6 * uu * vv:
        candidates.append(((ru * vv - rv * uv) / determinant, (rv * uu - ru * uv) / determinant))
    one = 1 << ADAPTIVE_LOG2
    best, least = (0, 0), rr
    for exact in candidates:
        if not all(abs(x) < 4 for x in exact):
            continue
        x, y = round(one * exact[0]), round(one * exact[1])
        a, b = x / one, y / one
        energy = rr - 2 * (a * ru + b * rv) + a * a * uu + 2 * a * b * uv + b * b * vv
        if energy < least:
            best, least = (x, y), energy
    if least <= 0 or n_nonzeros / 2 * math.log2(rr / least) > _COEFFICIENT_BITS:
        return best
    return 0, 0
