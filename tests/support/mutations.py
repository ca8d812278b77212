"""Mutations of the messages and saved states of honest ends, with valid checksums."""

from __future__ import annotations

import contextlib
import copy
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np

import resfed_codec as rfc
import saved_states
from checksums import sealed
from models import State
from recorded import cut_together, payloads_of
from resfed_codec._native import FIXED_HEADER_BYTES
from resfed_codec.stream.link import (
    MAX_DEPTH,
    Link,
    link_digest,
    unit_terms,
    version_digest,
    write_link,
)
from resfed_codec.stream.message import (
    Ack,
    Keyframe,
    Message,
    VersionId,
    is_message,
    read_message,
    write_message,
)
from resfed_codec.stream.versions import Version
from resfed_codec.stream.wire import varint

T = TypeVar("T")

EDGES = [0, 1, 2, 63, 64, 127, 128, 255, 256, 2**14 - 1, 2**14, 2**24, 2**24 + 1, 2**31 - 1, 2**31,
         2**32 - 1, 2**32, 2**62 - 1, 2**62, 2**63 - 1]  # fmt: skip
LARGEST64 = 2**64 - 1


class Corpus:
    """The messages and saved states of honest ends, and their fields.

    Attributes:
        said, messages, payloads: All bytes, the parsed messages, and the payloads.
        keyframes: Bytes of keyframes.
        numbers: Numbers of the versions that ends hold, with the digests of each.
        digests, tags: All digests and tags.
        honest_keyframes: Versions, digests and bytes of genuine keyframes.
        saved: The saved states of each class at each moment.
    """

    def __init__(self, moments: list[dict[str, Any]], said: list[bytes], initial: State) -> None:
        said = list(dict.fromkeys(data for data in said if data))
        self.said = said
        self.messages = [read_message(data) for data in said if is_message(data)]
        self.payloads = [*payloads_of(said), rfc.encode(initial, initial)]
        frames = [m.keyframes for m in self.messages if m.keyframes]
        self.honest_keyframes = {tuple(k[:2] + k[3:] for k in ks) for ks in frames}
        self.keyframes = [k.data for ks in frames for k in ks] + [rfc.encode_keyframe(initial)]
        self.numbers: dict[int, set[int]] = defaultdict(set)
        self.saved: dict[type, list[dict[str, Any]]] = defaultdict(list)
        for ends in moments:
            for end in ends.values():
                self.saved[type(end)].append(end.state_dict())
                for version in versions_in(end._state):
                    self.numbers[version.number].add(version.digest)
        heads = {m.head for m in self.messages if m.head}
        self.digests = sorted(
            {d for digests in self.numbers.values() for d in digests}
            | {head.digest for head in heads}
            | {k.digest for ks in frames for k in ks}
            | {version_digest(data) for data in said}
        )
        self.tags = sorted({m.tag for m in self.messages} | {0})


def versions_in(value: Any) -> list[Version]:
    """All versions in a state."""
    if isinstance(value, Version):
        return value.lineage(9)
    if isinstance(value, dict):
        return [v for item in value.values() for v in versions_in(item)]
    return [v for item in value for v in versions_in(item)] if isinstance(value, tuple) else []


class Mutator:
    """Draws from a corpus and mutates the result."""

    def __init__(self, corpus: Corpus, rng: np.random.Generator) -> None:
        self._corpus, self._rng = corpus, rng
        self._recorded: list[bytes] = []
        self._payloads = corpus.payloads
        self._held = corpus.numbers

    def record(self, data: bytes) -> None:
        """Add new bytes of an end."""
        if data:
            self._recorded.append(data)
            self._payloads = [*self._payloads, *3 * payloads_of([data])]

    def observe(self, ends: Iterable[Any]) -> None:
        """Use the versions of these ends from now on."""
        self._held = defaultdict(set)
        for end in ends:
            for version in versions_in(end._state):
                self._held[version.number].add(version.digest)

    def _one(self, items: list[T]) -> T:
        return items[int(self._rng.integers(len(items)))]

    def _below(self, n: int) -> int:
        return int(self._rng.integers(n)) if n > 0 else 0

    # ---- numbers

    def _number(self, value: int) -> int:
        return self._one([
            self._one(EDGES), 2**62, 2**63 - 1, value + 1, max(0, value - 1), value + 2**24,
            value + 2**24 + 1, self._one(list(self._held)), self._one(list(self._held)),
        ])  # fmt: skip

    def _bits64(self, value: int) -> int:
        known = self._one(self._corpus.digests)
        flipped = value ^ 1 << self._below(64)
        return self._one([known, known, known, flipped, 0, LARGEST64, self._one(self._corpus.tags)])

    # ---- bytes

    def raw(self, data: bytes, others: list[bytes]) -> bytes:
        """Flip bits, remove, repeat or replace bytes, or insert numbers."""
        i, n = self._below(len(data)), 1 + self._below(9)
        part = self._one(others)
        j = self._below(len(part))
        return self._one([
            data[:i] + bytes([data[i] ^ 1 << self._below(8)]) + data[i + 1 :] if data else b"\0",
            data[:i],
            data[:i] + data[i + n :],
            data[: i + n] + data[i:],
            data[:i] + part[j:],
            data[:i] + part[j : j + n] + data[i + n :],
            data[:i] + varint(self._one(EDGES)) + data[i + 1 :],
            data[:i] + bytes(n) + data[i:],
        ])  # fmt: skip

    def payload(self) -> bytes:
        """A payload of a stream or a stateless one; most have a valid checksum and digest."""
        data = self._one(self._payloads)
        kind = self._below(10)
        if kind == 0:
            return self.raw(data, self._payloads)
        if kind <= 3:
            return sealed(self.raw(data[:-4], self._payloads))
        if kind <= 5:
            return next(cut_together(self._payloads, self._rng, 1))
        if kind == 6:
            return data
        with contextlib.suppress(LookupError, ValueError):  # some links cannot be written
            return self._with_changed_link(data)
        return data

    def _with_changed_link(self, data: bytes) -> bytes:
        """Change the link, and use the digest of versions that it may name."""
        info = rfc.inspect(data)
        if info.link is None:
            return data
        link = info.link
        if self._below(2):
            return self._with_link(data, self._valid_link(link))
        for _ in range(1 + self._below(2)):
            field = self._one(["version", "base", "other", "n_own", "n_other", "keep", "terms"])
            value: Any = getattr(link, field)
            if field == "terms":
                value = list(value)
                value[self._below(6)] = self._one([0, 1, -1, 2**12, 2**20, -(2**20), 3])
                value = tuple(value)
            elif field in ("n_own", "n_other", "keep"):
                value = self._below(4)
            else:
                new = self._number(value or 0)
                value = new if field == "version" else self._one([None, new, new])
            link = link._replace(**{field: value})
        return self._with_link(data, link)

    def _valid_link(self, link: Link) -> Link:
        """A link that predicts from held versions, as a predictor could make it."""
        held = list(self._held)
        base = self._one([link.base, link.base, self._one(held)])
        other = self._one([link.other, self._one(held), None if base is not None else 0])
        n_own, n_other = (0 if n is None else 1 + self._below(3) for n in (base, other))
        place = self._one([*range(n_own), *range(MAX_DEPTH, MAX_DEPTH + n_other)])
        return link._replace(
            version=max(held) + 1, base=base, other=other, n_own=n_own, n_other=n_other,
            coef_log2=0, terms=unit_terms(place), per_tensor={},
        )  # fmt: skip

    def _with_link(self, data: bytes, link: Link) -> bytes:
        """A payload with this link and the digest of held versions."""
        digests = [
            self._one(sorted(self._held.get(-1 if n is None else n, {0})))
            for n in (link.base, link.other)
        ]
        tag = self._one([0, 0, self._one(self._corpus.tags)])
        digest = link_digest(tag, *digests).to_bytes(8, "little")
        raw = write_link(link)
        rest = data[FIXED_HEADER_BYTES + rfc.inspect(data).link_bytes : -4]
        return sealed(
            data[:6] + digest + data[14:FIXED_HEADER_BYTES] + varint(len(raw)) + raw + rest
        )

    def keyframe(self) -> bytes:
        data = self._one(self._corpus.keyframes)
        if self._below(3) == 0:
            return data
        return sealed(self.raw(data[:-4], self._corpus.keyframes))

    # ---- messages

    def message(self) -> bytes:
        """A valid message, or one with fields of others, invalid fields or mutated bytes."""
        kind = self._below(12)
        if self._recorded and self._below(3):
            data = self._one(self._recorded)
            if kind <= 1 or not is_message(data):
                return data
            m = read_message(data)
        elif kind == 2:
            return self._one(self._corpus.said)
        else:
            m = self._one(self._corpus.messages)
        if kind == 3:
            return self.raw(write_message(m), self._corpus.said)
        if kind <= 5:
            return sealed(self.raw(write_message(m)[:-4], self._corpus.said))
        for _ in range(1 + self._below(3)):
            m = self._changed(m)
        return write_message(m)

    def _changed(self, m: Message) -> Message:
        field = self._one([*Message._fields, *2 * ("ack", "head", "payloads", "keyframes")])
        if self._below(2):
            return m._replace(**{field: getattr(self._one(self._corpus.messages), field)})
        value = getattr(m, field)
        change: Callable[[Any], Any] = getattr(self, f"_other_{field}")
        return m._replace(**{field: change(value)})

    def _other_tag(self, tag: int) -> int:
        return self._one([self._one(self._corpus.tags), self._bits64(tag)])

    def _other_is_request(self, is_request: bool) -> bool:
        return not is_request

    def _other_ack(self, ack: Ack | None) -> Ack | None:
        newest, window, digest = ack or Ack()
        known = self._bits64(digest) & 0xFFFFFFFF
        return self._one([
            Ack(min(self._number(newest), 2**63 - 1), window, digest),
            Ack(newest, self._one([0, 1, 2**32 - 1, window ^ 1]), digest),
            Ack(newest, window, known),
            Ack(min(self._number(newest), 2**63 - 1), 2**32 - 1, known),
            None,
        ])  # fmt: skip

    def _other_head(self, head: VersionId | None) -> VersionId | None:
        number = self._one(list(self._held))
        true = VersionId(number, self._one(sorted(self._held[number])))
        version, digest = head or true
        return self._one([
            true, VersionId(self._number(version), digest),
            VersionId(version, self._bits64(digest)), None,
        ])  # fmt: skip

    def _other_payloads(self, payloads: tuple[bytes, ...]) -> tuple[bytes, ...]:
        new = self.payload()
        i = self._below(len(payloads))
        return self._one([
            (new,), (*payloads, new), (new, *payloads), payloads[:i] + payloads[i + 1 :],
            (*payloads[:i], new, *payloads[i + 1 :]), payloads[::-1], payloads * 2,
            payloads[:i] * (1 + self._below(256)), (b"",), (),
        ])  # fmt: skip

    def _other_keyframes(self, keyframes: tuple[Keyframe, ...]) -> tuple[Keyframe, ...]:
        number = self._one(list(self._held))
        made = Keyframe(number, self._bits64(0), self._bits64(0), self.keyframe())
        one = self._one([*keyframes, *keyframes, made])
        new = self._one([
            one._replace(version=self._number(one.version)),
            one._replace(digest=self._bits64(one.digest)),
            one._replace(replaces=self._bits64(one.replaces)),
            one._replace(data=self.keyframe()),
            one._replace(data=self.payload()),
        ])  # fmt: skip
        i = self._below(len(keyframes))
        return self._one([
            (new,), (*keyframes, new), (new, *keyframes), keyframes[::-1], keyframes[1:], (),
            (*keyframes[:i], new, *keyframes[i + 1 :]),
        ])  # fmt: skip

    def _other_refused(self, refused: int | None) -> int | None:
        return self._one([None, self._bits64(refused or 0) & 0xFFFFFFFF])

    def _other_run(self, run: int) -> int:
        return self._one([run ^ 1 << self._below(32), self._one(self._corpus.messages).run])

    def _other_identity(self, identity: bytes) -> bytes:
        known = [m.identity for m in self._corpus.messages if m.identity] or [b"\0"]
        return self.raw(identity or self._one(known), known)

    # ---- saved states

    def state_dict(self, kind: type) -> dict[str, Any]:
        """A saved state of this class with 0 to 3 changes and a valid digest."""
        saved = self._corpus.saved[kind]
        structure, arrays = saved_states.opened(self._one(saved))
        other_structure, other_arrays = saved_states.opened(self._one(saved))
        arrays = dict(arrays)
        for _ in range(self._below(4)):
            if self._below(3) == 0:
                self._change_array(arrays, other_arrays)
            else:
                structure = self._other_structure(structure, other_structure)
        return saved_states.resealed(structure, arrays)

    def _other_structure(self, structure: Any, other: Any) -> Any:
        paths = list(saved_states.places_of(structure))
        path = self._one(paths)
        theirs = list(saved_states.places_of(other))
        value = _at(other, path if path in theirs and self._below(2) else self._one(theirs))
        change = self._one([
            saved_states.setting(self._one(saved_states.OTHER_LEAVES)),
            saved_states.setting(self._one([*EDGES, 2**63, LARGEST64, 2**64])),
            saved_states.setting(copy.deepcopy(value)),
            saved_states.setting(copy.deepcopy(value)),
            saved_states.setting(self._one(self._corpus.digests)),
            saved_states.without,
            saved_states.twice,
        ])  # fmt: skip
        return saved_states.changed(structure, path, change)

    def _change_array(self, arrays: dict[str, Any], others: dict[str, Any]) -> None:
        if not arrays:
            return
        name = self._one(sorted(arrays))
        array = np.array(arrays[name])
        if array.dtype == np.uint8 and array.ndim == 1:
            new = self._one(
                [self.message, self.payload, lambda: self.raw(array.tobytes(), [b"\0"])]
            )()
            arrays[name] = np.frombuffer(new, np.uint8)
            return
        flat = array.reshape(-1).copy()
        if flat.size:
            raw = flat.view(np.uint8)
            raw[self._below(raw.size)] ^= 1 << self._below(8)
        with np.errstate(invalid="ignore"):
            wider = flat.astype(np.float64)
        arrays[name] = self._one([
            flat.reshape(array.shape), flat[:1], flat[:-1], wider, np.zeros_like(array),
            np.ones_like(array), np.asarray(others.get(name, array)),
        ])  # fmt: skip


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value
