"""Headers with counts beyond the receiver's layout: an error before any work or allocation.

The tests count work and memory: calls of Python functions, and bytes of Python and of the process.
"""

from __future__ import annotations

import os
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import resfed_codec as rfc
from checksums import sealed
from resfed_codec import reference as slow
from resfed_codec.reference.frame import read_frame as slow_read_frame
from resfed_codec.reference.stream import read_link as slow_read_link
from resfed_codec.stream.message import MAX_PAYLOADS, Ack, Message, read_message, write_message
from resfed_codec.stream.versions import ParsedPayload
from resfed_codec.stream.wire import varint

MODEL = {"b": np.zeros(5, np.float32), "w": np.zeros((10, 10), np.float32)}
N = 300_000
"""The count in the forged headers; each item takes one byte or a little more."""

MOST_CALLS = 3000
"""Limit of Python calls for an error, independent of the length of the bytes."""

FIXED = 1 << 20
"""Memory in bytes that any call may use, independent of its input."""


def payload(flags: int, rest: bytes, *, lane_log2: int = 10, own_digest: bool = True) -> bytes:
    digest = rfc.encode(MODEL, MODEL)[6:14] if own_digest else bytes(8)
    return sealed(b"RFD\1" + bytes([flags, lane_log2]) + digest + bytes(4) + rest)


def with_link(link: bytes) -> bytes:
    return payload(2, varint(len(link)) + link + bytes([100, 5, 0, 0, 0]), own_digest=False)


QUANTIZER = np.array([1, 1], "<f4").tobytes() + b"\0"
COUNTS = bytes([100, 5, 0, 0, 0])
PLAIN_LINK = bytes([1, 0, 1, 0x14, 8])
LINKED = varint(len(PLAIN_LINK)) + PLAIN_LINK
EXPONENTS = (
    varint(100) + varint(2**60) + b"\0\0\1" + QUANTIZER + varint(N) + bytes(N) + b"\0" + bytes(4)
)
LONG_TABLES = varint(64) + b"\0\0" + varint(64) + QUANTIZER + varint(N) + b"\xff" * N + bytes(4)
N_SLICES = N // 128
N_IN_SLICES = varint(32 * 64 * N_SLICES)
SLICES = (
    N_IN_SLICES + b"\0\0" + N_IN_SLICES + QUANTIZER + b"\0" + b"\x40" * (N_SLICES - 1)
    + bytes(128 * N_SLICES)
)  # fmt: skip


def per_tensor(n: int) -> bytes:
    bitmap = b"\xff" * (n // 8)
    return bytes([1, 0, 1, 0x14, 200, 0, 2]) + varint(len(bitmap)) + bitmap + b"\2" * n


FORGED = {
    "tensors in the link": with_link(per_tensor(N)),
    "last tensor of the link": with_link(
        bytes([1, 0, 1, 0x14, 200, 0, 2]) + varint(N) + bytes(N - 1) + b"\x80\2"
    ),
    "exclusions": payload(3, LINKED + COUNTS + varint(N) + bytes(N)),
    "exclusions without a link": payload(1, COUNTS + varint(N) + bytes(N)),
    "dense tensors": payload(6, LINKED + bytes([100, 5, 0, 0, 0, 0]) + varint(N) + bytes(N)),
    "dense tensors without a link": payload(4, bytes([100, 5, 0, 0, 0, 0]) + varint(N) + bytes(N)),
    "exponents": payload(2, LINKED + EXPONENTS),
    "exponents without a link": payload(0, EXPONENTS),
    "tables": payload(0, LONG_TABLES),
    "slices": payload(0, SLICES, lane_log2=6),
}
NAMED = {"last tensor of the link": 1, "tables": 1, "slices": N_SLICES}
"""Least numbers that inspect lists; of all others N."""


def server_end() -> Callable[[bytes], Any]:
    session = rfc.ServerSession(MODEL)
    return lambda data: session.receive("a", data)


def server_sum() -> Callable[[bytes], Any]:
    session = rfc.ServerSession(MODEL)
    return lambda data: session.receive_into("a", data, session.aggregator())


def client_end() -> Callable[[bytes], Any]:
    session = rfc.ClientSession(MODEL, client_id="a")
    return lambda data: session.receive(write_message(Message(0, ack=Ack(), payloads=(data,))))


RECEIVERS: dict[str, Callable[[], Callable[[bytes], Any]]] = {
    "decode": lambda: lambda data: rfc.decode(data, MODEL),
    "Decoder": lambda: rfc.Decoder(MODEL).decode,
    "Aggregator": lambda: rfc.Aggregator(MODEL).add,
    "ServerSession": server_end,
    "receive_into": server_sum,
    "ClientSession": lambda: rfc.ClientSession(MODEL, client_id="a").receive,
    "ClientSession, wrapped": client_end,
}


def peak_resident() -> int:
    """Peak resident memory of this process since :func:`forget_peak`, in bytes."""
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def forget_peak() -> None:
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")


CAN_FORGET = os.access("/proc/self/clear_refs", os.W_OK)


def cost(call: Callable[[], Any]) -> tuple[int, int]:
    """Peak bytes of Python or of the process, and the number of function calls."""
    n_calls = 0

    def count(*_: Any) -> None:
        nonlocal n_calls
        n_calls += 1

    resident = 0
    if CAN_FORGET:
        forget_peak()
        resident = peak_resident()
    tracemalloc.start()
    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
        traced = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    more = peak_resident() - resident if CAN_FORGET else 0
    return max(traced, more), n_calls


def refused(call: Callable[[bytes], Any], data: bytes) -> None:
    with pytest.raises(rfc.CodecError, match=r"^payload: "):
        call(data)


@pytest.mark.parametrize("receiver", RECEIVERS)
@pytest.mark.parametrize("what", FORGED)
def test_counts_beyond_the_layout(what: str, receiver: str) -> None:
    data, receive = FORGED[what], RECEIVERS[receiver]()
    with pytest.raises(rfc.CodecError):
        receive(data[:200])  # one-time allocations happen here
    n_bytes, n_calls = cost(lambda: refused(receive, data))
    assert n_bytes < 5 * len(data) + FIXED
    assert n_calls < MOST_CALLS


@pytest.mark.parametrize("what", FORGED)
def test_inspect_takes_a_small_multiple_of_the_bytes(what: str) -> None:
    """inspect has no layout to check against, so its memory depends only on the payload's size.

    Numbers are held twice: in the payload that was read, and in what inspect returns.
    """
    data = FORGED[what]

    def look() -> None:
        info = rfc.inspect(data)
        counted = (info.exponents, info.exclusions, info.dense_tensors, info.lossy_slices)
        n_named = sum(map(len, counted))
        if info.link is not None:
            n_named += len(info.link.per_tensor)
        assert n_named >= NAMED.get(what, N)

    n_bytes, n_calls = cost(look)
    assert n_bytes < 20 * len(data) + FIXED
    assert n_calls < MOST_CALLS


def slow_refuses(data: bytes) -> bool:
    try:
        frame = slow_read_frame(data, len(MODEL))
        if frame.link:
            slow_read_link(frame.link, len(MODEL))
        else:
            slow.decode(data, MODEL)
    except rfc.CodecError:
        return True
    return False


@given(
    st.sampled_from(["link", "exclusions", "dense", "exponents"]),
    st.integers(0, 5),
    st.integers(0, 3),
)
def test_the_second_implementation_refuses_the_same(what: str, n: int, first: int) -> None:
    """Lists of about as many tensors as the layout has, 2."""
    if what == "link":
        bits = ((1 << n) - 1) << first
        bitmap = bits.to_bytes((bits.bit_length() + 7) // 8, "little")
        link = bytes([1, 0, 1, 0x14, 200, 0, 2]) + varint(len(bitmap)) + bitmap + b"\2" * n
        data = with_link(link)
    elif what == "exclusions":
        data = payload(1, COUNTS + varint(n) + varint(first) + bytes(max(n - 1, 0)))
    elif what == "dense":
        lists = varint(n) + varint(first) + bytes(max(n - 1, 0))
        data = payload(4, bytes([100, 5, 0, 0, 0, 0]) + lists)
    else:
        data = payload(0, bytes([100, 5, 0, 0, 1]) + QUANTIZER + varint(n) + bytes(n + 4))
    try:
        if what == "link":
            ParsedPayload(data, rfc.ServerSession(MODEL)._layout)
        else:
            rfc.decode(data, MODEL)
        fast = False
    except rfc.CodecError:
        fast = True
    assert fast == slow_refuses(data)
    if n + first > 2 and what != "exponents":
        assert fast


def test_a_message_has_a_bounded_number_of_payloads() -> None:
    longest = write_message(Message(1, payloads=(b"",) * MAX_PAYLOADS))
    assert len(read_message(longest).payloads) == MAX_PAYLOADS
    body = longest[:-4].replace(varint(MAX_PAYLOADS) + b"\0", varint(N) + b"\0", 1) + bytes(N)
    n_bytes, n_calls = cost(lambda: refused(read_message, sealed(body)))
    assert n_bytes < 3 * len(body) + FIXED
    assert n_calls < MOST_CALLS


def test_a_client_that_missed_many_rounds_gets_a_keyframe() -> None:
    """Also if the payloads are small."""
    model = {"w": np.zeros(100_000, np.float32)}
    server = rfc.ServerSession(model, history=1)
    client = rfc.ClientSession(model, client_id="a")
    for _ in range(MAX_PAYLOADS):
        server.update(model)
    assert len(read_message(server.send("a")).payloads) == MAX_PAYLOADS
    server.update(model)
    message = server.send("a")
    assert read_message(message).keyframes
    assert np.array_equal(client.receive(message)["w"], model["w"])


@pytest.mark.parametrize("receiver", ["decode", "Aggregator"])
def test_more_exponents_than_tensors_of_the_own_layout_are_a_bad_field(receiver: str) -> None:
    count = len(MODEL) + 1
    data = payload(0, varint(100) + varint(50) + b"\0\0\1" + QUANTIZER + varint(count) + bytes(60))
    with pytest.raises(rfc.PayloadError, match=f"holds {count}"):
        RECEIVERS[receiver]()(data)
