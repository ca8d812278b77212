"""Links, messages and requests as bytes: round trips and forged bytes."""

from __future__ import annotations

import contextlib
import copy
import tracemalloc
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import resfed_codec as rfc
from checksums import sealed, with_flipped_bits
from published_rules import moved, random_model
from resfed_codec._native import MAX_NUMERATOR
from resfed_codec.session.client_record import ClientRecord
from resfed_codec.stream.link import Link, parse_link, write_link
from resfed_codec.stream.message import ACK_WINDOW, Ack, Keyframe, Message, VersionId, read_message
from resfed_codec.stream.message import write_message as write
from resfed_codec.stream.wire import WireReader, varint
from session_pairs import pair, run
from snapshots import snapshot

LARGEST = 2**63 - 1
NUMBERS = st.one_of(
    st.integers(0, 300), st.integers(0, LARGEST), st.sampled_from([127, 128, 2**32, LARGEST])
)
BITS32, BITS64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)


def varints(*numbers: int) -> bytes:
    return b"".join(varint(n) for n in numbers)


# ---- numbers


@given(NUMBERS)
def test_varint(value: int) -> None:
    data = varint(value)
    assert len(data) == max(1, -(-value.bit_length() // 7))
    reader = WireReader(data, "test")
    assert reader.varint() == value
    reader.end()
    for n in range(len(data)):
        with pytest.raises(rfc.PayloadError, match="the test is truncated, before its byte"):
            WireReader(data[:n], "test").varint()
    longer = data[:-1] + bytes([data[-1] | 0x80, 0])
    with pytest.raises(rfc.PayloadError, match="not in its shortest form"):
        WireReader(longer, "test").varint()


@pytest.mark.parametrize(
    "data", [b"\x80\x00", b"\xff\x80\x00", b"\x80" * 9 + b"\x01", b"\xff" * 30]
)
def test_numbers_that_are_too_long(data: bytes) -> None:
    with pytest.raises(rfc.PayloadError, match="not in its shortest form"):
        WireReader(data, "test").varint()


def test_limits() -> None:
    assert WireReader(varint(LARGEST), "test").varint() == LARGEST
    assert WireReader(varint(9), "test").varint(9) == 9
    with pytest.raises(rfc.PayloadError, match="holds 10, which is not allowed"):
        WireReader(varint(10), "test").varint(9)


# ---- links


@st.composite
def links(draw: st.DrawFn) -> Link:
    version = draw(NUMBERS.filter(bool))
    base = draw(st.none() | st.integers(max(0, version - 5), version - 1))
    other = draw(st.one_of(st.none() if base is not None else st.nothing(),
                           NUMBERS.filter(lambda n: n < LARGEST)))  # fmt: skip
    held = [base is not None] * 3 + [other is not None] * 3
    numerator = st.one_of(st.integers(-2, 2), st.integers(-MAX_NUMERATOR, MAX_NUMERATOR))

    def terms() -> tuple[int, ...]:
        values = st.tuples(*(numerator if h else st.just(0) for h in held))
        return draw(values.filter(any))

    return Link(
        version=version,
        base=base,
        other=other,
        n_own=0 if base is None else draw(st.integers(1, 3)),
        n_other=0 if other is None else draw(st.integers(1, 3)),
        keep=draw(st.integers(1, 3)),
        coef_log2=draw(st.integers(0, 12)),
        terms=terms(),  # type: ignore[arg-type]
        per_tensor={i: terms() for i in draw(st.sets(st.integers(0, 70), max_size=3))},  # type: ignore[misc]
    )


def exact(link: Link) -> tuple[Any, ...]:
    """The link with its coefficients as fractions, because two encodings may be equal."""
    one = 2**link.coef_log2
    return (
        link[:6],
        [Fraction(n, one) for n in link.terms],
        {i: [Fraction(n, one) for n in terms] for i, terms in link.per_tensor.items()},
    )


@given(links())
def test_link(link: Link) -> None:
    data = write_link(link)
    parsed = parse_link(data)
    assert exact(parsed) == exact(link)
    assert write_link(parsed) == data
    assert str(link.version) in str(link)
    for n in range(len(data)):
        with pytest.raises(rfc.PayloadError, match="payload: the link"):
            parse_link(data[:n])
    with pytest.raises(rfc.PayloadError, match="the link goes on where it must end"):
        parse_link(data + b"\0")


def test_links_of_plain_streams_are_short() -> None:
    none = Link(5, 4, None, 1, 0, 1, 0, (1, 0, 0, 0, 0, 0), {})
    assert write_link(none) == bytes([5, 1, 0, 0b010001, 1])
    assert write_link(none._replace(coef_log2=3, terms=(8, 0, 0, 0, 0, 0))) == write_link(none)


@given(st.one_of(st.binary(max_size=40), links().map(write_link)), st.data())
def test_any_bytes_are_a_valid_link_or_an_error(data: bytes, draw: Any) -> None:
    if data:
        at = draw.draw(st.integers(0, len(data) - 1))
        data = data[:at] + bytes([draw.draw(st.integers(0, 255))]) + data[at + 1 :]
    try:
        link = parse_link(data)
    except rfc.PayloadError:
        return
    assert exact(parse_link(write_link(link))) == exact(link)
    assert 1 <= link.version <= LARGEST
    assert link.base is None or 0 <= link.base < link.version
    assert (link.base is None, link.other is None) == (link.n_own == 0, link.n_other == 0)
    assert 1 <= link.keep <= 3
    for terms in (link.terms, *link.per_tensor.values()):
        assert any(terms)
        assert all(abs(n) <= MAX_NUMERATOR for n in terms)
        assert all(n == 0 for n in terms[3 * (link.base is not None) : 3]), "no such history"
        assert link.other is not None or not any(terms[3:]), "no such history"


BAD_LINKS = {
    "version 0": varints(0, 0, 0, 0x11, 1),
    "base before 0": varints(3, 4, 0, 0x11, 1),
    "reserved bit": varints(3, 1, 0) + b"\x51\x01",
    "keep 0": varints(3, 1, 0, 0x01, 1),
    "base without history": varints(3, 1, 0, 0x10, 1),
    "history without base": varints(3, 0, 4, 0x15, 8),
    "other without history": varints(3, 1, 4, 0x11, 1),
    "no terms": varints(3, 1, 0, 0x11, 0),
    "term of no history": varints(3, 1, 0, 0x11, 8),
    "two terms without coefficients": varints(3, 1, 0, 0x11, 3),
    "tensors without coefficients": varints(3, 1, 0, 0x11, 0x41, 1, 1),
    "coefficients too fine": varints(3, 1, 0, 0x11) + b"\x81" + varints(13, 2),
    "coefficient too large": varints(3, 1, 0, 0x11) + b"\x81" + varints(0, 2 * MAX_NUMERATOR + 1),
    "coefficients all 0": varints(3, 1, 0, 0x11) + b"\x81" + varints(0, 0),
    "a tensor's coefficients all 0": varints(3, 1, 0, 0x11) + b"\xc1" + varints(0, 2, 1, 1, 0),
    "empty list of tensors": varints(3, 1, 0, 0x11) + b"\xc1" + varints(0, 2, 0),
    "list of tensors too long": varints(3, 1, 0, 0x11) + b"\xc1" + varints(0, 2, 2, 1, 0, 2),
}


@pytest.mark.parametrize("data", BAD_LINKS.values(), ids=BAD_LINKS.keys())
def test_bad_links(data: bytes) -> None:
    with pytest.raises(rfc.PayloadError, match="payload: the link "):
        parse_link(data)


# ---- messages


HEADS = st.builds(VersionId, NUMBERS, BITS64)
KEYFRAMES = st.builds(Keyframe, NUMBERS, BITS64, BITS64, st.binary(max_size=20))
MESSAGES = st.builds(
    Message,
    tag=BITS64,
    is_request=st.booleans(),
    ack=st.none() | st.builds(Ack, NUMBERS, BITS32, BITS32),
    head=st.none() | HEADS,
    payloads=st.lists(st.binary(max_size=20), max_size=3).map(tuple),
    keyframes=st.lists(KEYFRAMES, max_size=3).map(tuple),
    refused=st.none() | BITS32,
    run=BITS32,
    identity=st.binary(max_size=20),
)


@given(MESSAGES)
def test_message(message: Message) -> None:
    data = write(message)
    assert read_message(data) == message
    for n in range(len(data)):
        with pytest.raises(rfc.PayloadError, match="payload: "):
            read_message(data[:n])
    with pytest.raises(rfc.PayloadError, match="payload: "):
        read_message(data + b"\0")


@given(MESSAGES)
def test_every_flipped_bit(message: Message) -> None:
    for flipped in with_flipped_bits(write(message)):
        with pytest.raises(rfc.PayloadError, match="payload: "):
            read_message(flipped)


@given(MESSAGES, st.data())
def test_forged_messages(message: Message, draw: Any) -> None:
    """With a valid checksum: a message that can be written again, or an error."""
    body = bytearray(write(message)[:-4])
    body[draw.draw(st.integers(3, len(body) - 1))] = draw.draw(st.integers(0, 255))
    data = sealed(bytes(body))
    try:
        forged = read_message(data)
    except rfc.PayloadError:
        return
    assert write(forged) == data


HEADER = b"RFM\x01"
TAG = bytes(12)
"""The tag and the run's 32 bits."""


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (b"RFM\x02\x00" + TAG + b"\0", "message version 2 is not known"),
        (HEADER + b"\x40" + TAG + b"\0", "holds unknown flags"),
        (HEADER + b"\x20" + TAG + b"\0\0", "announces an identity and holds none"),
        (HEADER + b"\x20" + TAG + varints(9) + b"abc", "is truncated"),
        (HEADER + b"\x08" + TAG + b"\0\0", "announces keyframes and holds none"),
        (HEADER + b"\x08" + TAG + b"\4", "holds 4, which is not allowed"),
        (HEADER + b"\x02" + TAG + varints(1, 2**32), "holds 4294967296, which is not allowed"),
        (HEADER + b"\x00" + TAG + varints(1, 2**50), "is truncated"),
        (HEADER + b"\x00" + TAG + varints(2**50), "holds 1125899906842624, which is not allowed"),
        (HEADER + b"\x00" + TAG + b"\x80\x00", "not in its shortest form"),
        (HEADER + b"\x00" + TAG + b"\0\0", "goes on where it must end"),
        (HEADER, "truncated|damaged"),
    ],
)
def test_bad_messages(body: bytes, match: str) -> None:
    with pytest.raises(rfc.PayloadError, match=match):
        read_message(sealed(body))


@given(st.sets(st.integers(1, 90), max_size=60))
@example({1, 33})
@example({1, 34})
@example({2, 3, 35, 67})
def test_acknowledgements(arrived: set[int]) -> None:
    """A window lists exactly the uplinks that arrived, as far back as it reaches."""
    record = ClientRecord(1, None, {}, {})
    assert record.ack() == Ack()
    for number in sorted(arrived):
        record = record.with_uplink(number, digest=2**40 + number)
        ack = record.ack()
        assert (ack.newest, ack.digest) == (number, number)
        assert 0 <= ack.window < 2**ACK_WINDOW
    for number in range(max(1, max(arrived, default=0) - ACK_WINDOW), 100):
        assert record.ack().has(number) == (number in arrived), number


# ---- forged bytes at sessions and streams


def peak_bytes(call: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(rfc.CodecError):
            call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("n", [2**20, 2**40, LARGEST])
def test_forged_lengths_allocate_nothing(n: int) -> None:
    """Allocations depend on the size of the message, not on the lengths in it."""
    head = varints(3, 1, 0, 0x11) + b"\xc1" + varints(0, 2)
    keyframe = HEADER + b"\x08" + TAG + varints(1, 5) + bytes(16) + varints(n)
    for data, call in (
        (head + varints(n) + b"\xff", parse_link),
        (sealed(HEADER + b"\x00" + TAG + varints(n)), read_message),
        (sealed(HEADER + b"\x00" + TAG + varints(1, n)), read_message),
        (sealed(keyframe), read_message),
        (sealed(keyframe), rfc.Decoder([np.zeros(3, np.float32)]).decode),
    ):
        assert peak_bytes(lambda call=call, data=data: call(data)) < 50_000  # type: ignore[misc]


def forged_links(payload: bytes) -> Iterator[bytes]:
    """The payload with each byte of its link changed to others and a valid checksum."""
    n = rfc.inspect(payload).link_bytes
    for at in range(18, 18 + n):
        for value in {*range(0, 256, 7), *(payload[at] ^ 1 << bit for bit in range(8))}:
            yield sealed(payload[:at] + bytes([value]) + payload[at + 1 : -4])


def survives(end: Any, call: Callable[[bytes], Any], data: bytes) -> None:
    """The call succeeds, or raises CodecError and changes nothing."""
    before = snapshot(end)
    try:
        call(data)
    except rfc.CodecError:
        assert snapshot(end) == before


@pytest.mark.parametrize(
    "rules",
    [("res2", "adaptive"), pytest.param(("adaptive", "res2"), marks=pytest.mark.slow)],
    ids=str,
)
def test_forged_links(rules: tuple[str, str]) -> None:
    server, client, rng = pair(rules)
    run(server, client, rng)
    for data in forged_links(client.send(moved(client.state, rng))):
        other = copy.deepcopy(server)
        survives(other, lambda m, s=other: s.receive("a", m), data)
    server.update(moved(server.state, rng))
    message = read_message(server.send("a"))
    for data in forged_links(message.payloads[0]):
        other_client = copy.deepcopy(client)
        survives(other_client, other_client.receive, write(message._replace(payloads=(data,))))


@pytest.mark.parametrize("own", [(2.5,), (0.5, 0.25, 0.25)], ids=str)
def test_forged_links_of_streams(own: tuple[float, ...], rng: np.random.Generator) -> None:
    initial = random_model(rng)
    tensors = {"w32": ((0.5,), ())}
    enc = rfc.Encoder(initial, predictor=rfc.LinearPredictor(own, tensors=tensors))
    dec = rfc.Decoder(initial)
    for _ in range(3):
        dec.decode(enc.encode(moved(enc.state, rng)))
    for data in forged_links(enc.encode(moved(enc.state, rng))):
        end = copy.deepcopy(dec)
        survives(end, end.decode, data)


@given(MESSAGES)
def test_sessions_survive_any_message(message: Message) -> None:
    server, client, _ = SESSIONS
    for own in (False, True):
        mine = {"tag": client._state.tag, "run": client._identity.check} if own else {}
        data = write(message._replace(**mine))
        for end, call in (
            (server, lambda m: server.receive("a", m)),
            (server, lambda m: server.answer("a", m)),
            (client, client.receive),
            (client, client.answer),
        ):
            saved = end.state_dict()
            if call == client.answer:  # what a request tells is taken in even if there is no answer
                with contextlib.suppress(rfc.CodecError):
                    call(data)
            else:
                survives(end, call, data)
            end.load_state_dict(saved)


SESSIONS = pair(("res1", "previous"))
run(*SESSIONS)
