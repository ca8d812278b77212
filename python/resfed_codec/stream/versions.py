"""Versions of a model, predictions from them, and payloads that make new versions.

stream.py and the sessions decide which version a payload builds on. A model is a list of arrays in
coding order, see :class:`resfed_codec.tensors.layout.Layout`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resfed_codec import _native
from resfed_codec._native import MAX_DEPTH, Payload, Role, Tensors
from resfed_codec.codec import native_call
from resfed_codec.codec.native_call import Plan, tensors_of
from resfed_codec.codec.numbers import Numbers
from resfed_codec.codec.payload import parse_payload
from resfed_codec.errors import PayloadError, StateMismatchError, native_errors
from resfed_codec.stream.link import (
    Link,
    Terms,
    digest64,
    link_digest,
    link_from,
    unit_terms,
    version_digest,
)
from resfed_codec.tensors.layout import Layout, TensorSpec, plain_text
from resfed_codec.tensors.memory import Memory, device_of, on_host, placed
from resfed_codec.tensors.roles import RoleOverrides, roles_of

Model = list[Memory]
Part = Sequence["Memory | None"]
"""A model of which some tensors are missing."""

Feedback = list["Memory | None"]

OWN, OTHER = 0, MAX_DEPTH
"""Places of the newest version of each direction among a link's terms."""


@dataclass(eq=False)
class Version:
    """A recovered model of one direction, as both ends know it.

    ``model`` is None if no prediction will read it. ``parent`` is the version that it was built on,
    or None at the start of the history that is kept.
    """

    number: int
    digest: int
    model: Model | None
    parent: Version | None = None

    def lineage(self, depth: int) -> list[Version]:
        """This version and those it was built on, newest first, at most ``depth``."""
        versions, version = [self], self.parent
        while version is not None and len(versions) < depth:
            versions.append(version)
            version = version.parent
        return versions

    def shortened(self, depth: int) -> Version:
        """The same version with at most ``depth`` versions of its lineage; it shares the models.

        This version and its parents do not change: payloads may still build on them.
        """
        version = None
        for v in reversed(self.lineage(depth)):
            version = Version(v.number, v.digest, v.model, version)
        assert version is not None
        return version

    def __str__(self) -> str:
        return f"version {self.number} (digest {self.digest:016x})"


def run_name(run: str) -> str:
    """A run's name as a plain str; TypeError if it is not a str."""
    if not isinstance(run, str):
        raise TypeError(f"run={run!r}: must be a str")
    return plain_text(run)


def run_digest(layout: Layout, run: str) -> int:
    """Digest of a run: its name and the layout of its models."""
    name = run.encode("utf-8", "surrogatepass")
    return digest64(b"run", layout.digest.to_bytes(8, "little"), name)


def initial_version(layout: Layout, model: Model, run: str) -> Version:
    """Version 0: its digest covers the run and every byte of the model."""
    digest = digest64(
        b"initial",
        run_digest(layout, run).to_bytes(8, "little"),
        *(on_host(array).reshape(-1).view(np.uint8).data for array in model if array.size),
    )
    return Version(0, digest, model)


def new_feedback(
    layout: Layout, roles: Sequence[Role], only: Sequence[int] | None = None
) -> Feedback:
    """Zeros for matrices and vectors, None for other tensors; ``only`` has ordinals of tensors."""
    return [
        None
        if role in (Role.LOSSLESS, Role.DENSE) or (only is not None and i not in only)
        else placed(np.zeros(spec.shape, np.float32), layout.device)
        for i, (spec, role) in enumerate(zip(layout.specs, roles, strict=True))
    ]


def completed(part: Part, model: Sequence[Memory]) -> Model:
    """``part`` with the tensors of ``model`` where it has none."""
    return [there if array is None else array for array, there in zip(part, model, strict=True)]


def keep_newest(
    versions: Mapping[int, Version], n: int, always: int | None = None
) -> dict[int, Version]:
    """The newest ``n``, and the one numbered ``always``."""
    dropped = set(sorted(versions)[: max(0, len(versions) - n)]) - {always}
    return {number: version for number, version in versions.items() if number not in dropped}


def at_place(place: int, own: list[Version], others: list[Version]) -> Version:
    """The version at a link's place; the oldest one also takes the places before it."""
    side = own if place < OTHER else others
    return side[min(place % MAX_DEPTH, len(side) - 1)]


def model_of(version: Version) -> Model:
    assert version.model is not None, f"{version} was kept without its model"
    return version.model


def _combination(
    terms: Terms, coef_log2: int, own: list[Version], others: list[Version]
) -> list[tuple[Model, float]]:
    """Models and coefficients, each version once; version 0 is the same in both directions."""
    merged: dict[tuple[bool, int], int] = {}
    models = {}
    for place, numerator in enumerate(terms):
        if numerator:
            version = at_place(place, own, others)
            key = (place < OTHER and version.number > 0, version.number)
            merged[key] = merged.get(key, 0) + numerator
            models[key] = model_of(version)
    kept = [key for key in merged if merged[key]] or list(merged)[:1]
    return [(models[key], merged[key] / 2**coef_log2) for key in kept]


def prediction_tensors(
    layout: Layout,
    roles: Sequence[Role],
    link: Link,
    own: list[Version],
    others: list[Version],
    current: Part | None,
    out: Model | None,
    feedback: Feedback | None,
) -> Tensors:
    """The tensors of a native call that predicts as ``link`` says; ``current`` None: it decodes.

    A tensor that ``current`` lacks is as predicted: its prediction must be a version, unchanged.
    """
    common = _combination(link.terms, link.coef_log2, own, others)
    of_tensor = {
        i: _combination(terms, link.coef_log2, own, others) for i, terms in link.per_tensor.items()
    }
    reference: Model = []
    terms: list[Model] = []
    coefficients: list[list[float]] = []
    for i, role in enumerate(roles):
        combination = common if role == Role.LOSSLESS else of_tensor.get(i, common)
        reference.append(combination[0][0][i])
        copies = role == Role.LOSSLESS or (len(combination) == 1 and combination[0][1] == 1)
        terms.append([] if copies else [model[i] for model, _ in combination])
        coefficients.append([] if copies else [coefficient for _, coefficient in combination])
    return tensors_of(
        layout.specs,
        roles,
        reference,
        current=None if current is None else completed(current, reference),
        out=out,
        feedback=feedback,
        terms=terms,
        coefficients=coefficients,
    )


class ParsedPayload:
    """A payload of a stream that has been verified and read, not yet decoded.

    The receiver's layout bounds the lists in the payload.

    Raises:
        PayloadError: Damaged, or not of a stream.
        StateMismatchError: It names tensors that the layout does not have.
    """

    def __init__(self, data: bytes, layout: Layout) -> None:
        self.native = parse_payload(data, len(layout.specs))
        if self.native.link is None:
            raise PayloadError("payload: belongs to no stream: give it to decode()")
        self.link = link_from(self.native.link)

    @cached_property
    def digest(self) -> int:
        """Digest of the version that the payload makes."""
        return version_digest(self.native.data)

    @property
    def overrides(self) -> RoleOverrides:
        """The tensors that the payload carries losslessly, or dense."""
        return overrides_in(self.native)

    def builds_on(self, tag: int, base: Version | None, other: Version | None) -> bool:
        """Whether these are what the payload names, by digest; see UpdateEncoder.encode."""
        expected = link_digest(tag, base.digest if base else 0, other.digest if other else 0)
        return self.native.digest == expected

    def copies(self, place: int) -> bool:
        """Whether the prediction of every tensor is the version at this place, unchanged."""
        link = self.link
        one = 1 << link.coef_log2
        return not link.per_tensor and link.terms == tuple(one * n for n in unit_terms(place))

    def decode(
        self,
        layout: Layout,
        base: Version | None,
        other: Version | None,
        out: Model,
        commit: Plan | None = None,
    ) -> None:
        """Fill ``out``; all or nothing. The caller has asked ``builds_on``.

        ``commit`` says what changes with it.

        Raises:
            PayloadError: The entropy coded part is damaged.
            StateMismatchError: Less history is held than the payload needs, or other values.
        """
        link = self.link
        own = base.lineage(link.n_own) if base else []
        others = other.lineage(link.n_other) if other else []
        if len(own) < link.n_own or len(others) < link.n_other:
            raise StateMismatchError(
                f"payload: {link}, predicts from {link.n_own} and {link.n_other} versions back;"
                f" {len(own)} and {len(others)} are held here"
            )
        if any(version.model is None for version in (*own, *others)):
            raise StateMismatchError(f"payload: {link}, of which no model is kept here")
        roles = roles_of(layout.specs, self.overrides)
        tensors = prediction_tensors(layout, roles, link, own, others, None, out, None)
        with native_errors(layout.specs, len(self.native.data)):
            native_call.decode(self.native, self.native.digest, tensors, layout.device, commit)


def overrides_in(payload: Payload) -> RoleOverrides:
    exclusions, dense = Numbers(payload.exclusions, "I"), Numbers(payload.dense_tensors, "I")
    return RoleOverrides(tuple(exclusions), tuple(dense))


def differences(layout: Layout, roles: Sequence[Role], new: Model, old: Model) -> Feedback:
    """New minus old of matrices and vectors, computed on the host and rounded to float32."""
    result: Feedback = []
    for role, spec, a, b in zip(roles, layout.specs, new, old, strict=True):
        if role in (Role.LOSSLESS, Role.DENSE):
            result.append(None)
            continue
        ours, theirs = on_host(a), on_host(b)
        with np.errstate(invalid="ignore", over="ignore"):
            difference = np.asarray(_widened(ours, spec) - _widened(theirs, spec))
            difference = difference.astype(np.float32)
        bits = f"u{ours.itemsize}"
        difference[ours.view(bits) == theirs.view(bits)] = 0  # infinities and NaNs, too
        result.append(placed(difference, layout.device))
    return result


def _widened(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    if spec.dtype == "bfloat16":
        return np.asarray(array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array if spec.dtype == "float64" else array.astype(np.float32)


def sum_of(feedback: Feedback, addends: Iterable[Feedback]) -> Feedback:
    """The sum as new arrays on the device of ``feedback``; it is computed on the host."""
    total = _copied_to_host(feedback)
    for addend in addends:
        for array, memory in zip(total, addend, strict=True):
            if array is not None and memory is not None:
                array += on_host(memory)
    return _placed_like(feedback, total)


def with_payload_values(layout: Layout, payloads: Sequence[bytes], feedback: Feedback) -> Feedback:
    """New arrays: ``feedback`` plus the dequantized matrices and vectors of the payloads.

    The host adds them, at a cost proportional to the nonzeros.
    """
    total = _copied_to_host(feedback)
    for payload in payloads:
        parsed = parse_payload(payload, len(layout.specs))
        roles = roles_of(layout.specs, overrides_in(parsed))
        tensors = Tensors(
            roles=roles,
            dtypes=[spec.float_dtype for spec in layout.specs],
            n_elems=[spec.n_elems for spec in layout.specs],
            row_lengths=[spec.row_length for spec in layout.specs],
            feedback=total,
        )
        with native_errors(layout.specs, len(payload)):
            _native.add_values(parsed, tensors)
    return _placed_like(feedback, total)


def _copied_to_host(feedback: Feedback) -> list[NDArray[Any] | None]:
    return [None if memory is None else np.array(on_host(memory)) for memory in feedback]


def _placed_like(feedback: Feedback, arrays: list[NDArray[Any] | None]) -> Feedback:
    return [
        None if memory is None or array is None else placed(array, device_of(memory))
        for memory, array in zip(feedback, arrays, strict=True)
    ]
