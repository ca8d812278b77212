"""Cost of the worst payloads for their receiver, compared with an honest one.

    python -m benchmarks.hostile

Each payload is valid; an attacker who knows the reference can make it. One process makes it, and a
new process receives it. Time is the processor time of one thread, the best of three. Memory is the
growth at the peak, including the result.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import resfed_codec as rfc
from benchmarks.common import write_results
from resfed_codec.codec import update as codec
from resfed_codec.stream.message import Message, read_message, write_message

State = dict[str, np.ndarray]
Make = Callable[[int], tuple[State, State]]
"""Makes a model and its reference with this number of elements."""


def matrix(values: Any) -> State:
    return {"w": np.asarray(values).reshape(-1, 1000)}


def honest(n: int) -> tuple[State, State]:
    rng = np.random.default_rng(0)
    reference = (rng.standard_normal(n) * 0.05).astype(np.float32)
    change = rng.standard_normal(n).astype(np.float32) ** 3 * np.float32(0.001)
    return matrix(reference + change), matrix(reference)


def every_element(n: int, level: int = 1, dtype: str = "float32") -> tuple[State, State]:
    """All elements are sent at one level, except for a few that set the threshold to 1."""
    values = np.full(n, level, dtype)
    values[::500] = 1
    return matrix(values), matrix(np.zeros(n, dtype))


def outer_signs(n: int) -> tuple[State, State]:
    """All elements are sent, by columns and with signs flipped."""
    rng = np.random.default_rng(0)
    rows, columns = (rng.choice([-1, 1], m).astype(np.float32) for m in (n // 1000, 1000))
    return matrix(np.outer(rows, columns)), matrix(np.zeros(n, np.float32))


def any_level(n: int, low: int = 0, high: int = 21) -> tuple[State, State]:
    """Levels of all magnitudes and both signs, so no decision is certain."""
    rng = np.random.default_rng(0)
    values = 2 ** rng.uniform(low, high, n) * rng.choice([-1, 1], n)
    values[::500] = 1
    return matrix(values.astype(np.float32)), matrix(np.zeros(n, np.float32))


def vectors(n: int, level: int) -> tuple[State, State]:
    (state, reference) = every_element(n, level)
    few = {"a": np.zeros((1, 1), np.float32)}
    return {**few, "w": state["w"].ravel()}, {**few, "w": reference["w"].ravel()}


def integers(n: int, dtype: str, most: int) -> tuple[State, State]:
    """All change by the same amount, or each by a random amount up to ``most``."""
    rng = np.random.default_rng(0)
    values = rng.integers(1, most, n, endpoint=True).astype(dtype)
    return matrix(values), matrix(np.zeros(n, dtype))


def moved_floats(n: int, most: int) -> tuple[State, State]:
    """Floats to 2^40 of all exponents; their bit patterns change as :func:`integers`."""
    rng = np.random.default_rng(0)
    largest = int(np.float32(2**40).view(np.uint32))
    bits = rng.integers(0, largest - most, n).astype(np.uint32)
    moved = bits + rng.integers(1, most, n, endpoint=True).astype(np.uint32)
    return matrix(moved.view(np.float32)), matrix(bits.view(np.float32))


def one_change_a_chunk(n: int) -> tuple[State, State]:
    """The exponents of all elements count for the place of a few."""
    state, reference = moved_floats(n, 1)
    few = reference["w"].copy()
    few.reshape(-1)[::65536] = state["w"].reshape(-1)[::65536]
    return matrix(few), reference


def coded_planes(n: int) -> tuple[State, State]:
    """Byte planes with two values, one of them rare: coded into few bytes."""
    bits = np.zeros(n, np.uint32)
    bits[::4096] = 0x01010101
    return matrix(bits.view(np.float32)), matrix(np.zeros(n, np.float32))


def raw_planes(n: int, among: int = 256) -> tuple[State, State]:
    """Random bytes; with 128 values, coding them just pays."""
    data = np.random.default_rng(0).integers(0, among, 4 * n, np.uint8)
    return matrix(data.view(np.float32)), matrix(np.zeros(n, np.float32))


FULL: dict[str, Any] = {"sparsity": 0}
EXTRAPOLATED = rfc.CodecConfig(
    sparsity=0.9, predictor=rfc.LinearPredictor(own=(3, -3, 1)), error_feedback=False
)
"""A downlink whose history is three models."""
STEP_1: dict[str, Any] = {"sparsity": 0, "step": 0.99}
EXCLUDED: dict[str, Any] = {"exclude": "*"}

UPDATES: dict[str, tuple[Make, dict[str, Any]]] = {
    "honest, sparsity 0.99": (honest, {"sparsity": 0.99}),
    "honest, sparsity 0": (honest, FULL),
    "every element, level 1": (every_element, FULL),
    "every element, level 14": (partial(every_element, level=14), STEP_1),
    "every element, level 2^13": (partial(every_element, level=2**13), STEP_1),
    "every element, level 2^21": (partial(every_element, level=2**21), STEP_1),
    "every element, levels from 2^18 to 2^23": (partial(any_level, low=18, high=23), STEP_1),
    "every element, levels 1 to 14": (partial(any_level, high=4), STEP_1),
    "every element, levels to 2^21": (any_level, STEP_1),
    "float16, level 1": (partial(every_element, dtype="float16"), FULL),
    "every element, signs of an outer product": (outer_signs, FULL),
    "lanes of 64, level 1": (every_element, {**FULL, "lane_log2": 6}),
    "lanes of 4,096, level 1": (every_element, {**FULL, "lane_log2": 12}),
    "vectors, level 2^21": (partial(vectors, level=2**21), STEP_1),
    "dense, 12 bits": (any_level, {"dense": "w", "dense_bits": 12}),
    "int64, each by 1": (partial(integers, dtype="int64", most=1), {}),
    "int64, each by anything": (partial(integers, dtype="int64", most=2**63 - 1), {}),
    "uint8, each by 1": (partial(integers, dtype="uint8", most=1), {}),
    "uint8, each by anything": (partial(integers, dtype="uint8", most=255), {}),
    "excluded float32, each by 1": (partial(moved_floats, most=1), EXCLUDED),
    "excluded float32, each by up to 2^30": (partial(moved_floats, most=2**30), EXCLUDED),
    "excluded float32, few changes": (one_change_a_chunk, EXCLUDED),
}

Case = tuple[bytes, State]
"""Payload and reference."""


@contextlib.contextmanager
def lanes_of(lane_log2: int) -> Iterator[None]:
    """Payloads with lanes of lengths that this version's encoder does not write."""
    original = codec.native_options

    def changed(*args: Any) -> Any:
        native = original(*args)
        native.lane_log2 = lane_log2
        return native

    codec.native_options = changed  # type: ignore[assignment]
    try:
        yield
    finally:
        codec.native_options = original


def update(n: int, make: Make, options: dict[str, Any]) -> bytes:
    options = dict(options)
    with lanes_of(options.pop("lane_log2", 10)):
        return rfc.encode(*make(n), **options)


def uplink(n: int, make: Make, options: dict[str, Any]) -> bytes:
    state, reference = make(n)
    config = rfc.CodecConfig(error_feedback=False, **options)
    return rfc.ClientSession(reference, config, client_id="a").send(state)


def keyframe(n: int, make: Make, options: dict[str, Any]) -> bytes:
    return rfc.encode_keyframe(make(n)[0])


def downlinks(n: int, make: Make, options: dict[str, Any]) -> bytes:
    """``payloads`` updates in one message, each with the same change."""
    state, reference = make(n)
    config = rfc.CodecConfig(sparsity=options["sparsity"])
    server = rfc.ServerSession(reference, downlink=config)
    model, change = reference["w"].copy(), state["w"] - reference["w"]
    payloads: list[bytes] = []
    for _ in range(options["payloads"]):
        model = model + change
        payloads += _message(server.update({"w": model})).payloads
    message = read_message(server.send("a"))
    return write_message(message._replace(keyframes=(), head=None, payloads=tuple(payloads)))


def _message(data: bytes) -> Message:
    return read_message(data) if data[:3] == b"RFM" else Message(0, payloads=(data,))


def three_keyframes(n: int, make: Make, options: dict[str, Any]) -> bytes:
    state, reference = make(n)
    server = rfc.ServerSession(reference, downlink=EXTRAPOLATED)
    for model in (state, reference, state):
        server.update(model)
    return server.send("a", fresh=True)


def _sessions(make: Callable[[State], Any]) -> Callable[[Case], list[Any]]:
    return lambda case: [make(case[1]) for _ in range(3)]


def _nothing(case: Case) -> None:
    return None


CALLS: dict[str, tuple[Callable[..., bytes], Callable[[Case], Any], Callable[[Case, Any], Any]]] = {
    "decode": (update, _nothing, lambda c, _: rfc.decode(*c)),
    "Aggregator.add": (update, _nothing, lambda c, _: rfc.Aggregator(c[1]).add(c[0])),
    "receive": (
        uplink,
        _sessions(rfc.ServerSession),
        lambda c, sessions: sessions.pop().receive("a", c[0]),
    ),
    "inspect": (update, _nothing, lambda c, _: rfc.inspect(c[0])),
    "decode_keyframe": (keyframe, _nothing, lambda c, _: rfc.decode_keyframe(*c)),
    "receive, many payloads": (
        downlinks,
        _sessions(lambda reference: rfc.ClientSession(reference, client_id="a")),
        lambda c, sessions: sessions.pop().receive(c[0]),
    ),
    "receive, three keyframes": (
        three_keyframes,
        _sessions(
            lambda reference: rfc.ClientSession(reference, downlink=EXTRAPOLATED, client_id="a")
        ),
        lambda c, sessions: sessions.pop().receive(c[0]),
    ),
}
"""Functions that make the bytes and the receiver, and the measured call."""


def measure(call: str, make: Make, n: int, payload: bytes, queue: Any) -> None:
    warnings.simplefilter("ignore")
    rfc.set_num_threads(1)
    _, prepare, run = CALLS[call]
    case = payload, {name: array.copy() for name, array in make(n)[1].items()}
    given = prepare(case)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # memory freed earlier must not be reused
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")
    before = _resident("VmRSS")
    times = []
    for repetition in range(3):
        start = time.process_time()
        run(case, given)
        times.append(time.process_time() - start)
        if repetition == 0:
            more = _resident("VmHWM") - before
    queue.put((min(times), more, sum(array.nbytes for array in case[1].values())))


def make_payload(call: str, make: Make, n: int, options: dict[str, Any], queue: Any) -> None:
    queue.put(CALLS[call][0](n, make, options))


def _resident(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(field))


def in_a_process(target: Callable[..., None], *args: Any) -> Any:
    """Run ``target`` in a new process; return what it puts into the queue, its last argument."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=target, args=(*args, queue))
    process.start()
    while True:
        try:
            result = queue.get(timeout=1)
            break
        except Exception as error:  # queue.Empty
            if not process.is_alive():
                raise RuntimeError("the process ended without a result") from error
    process.join()
    return result


def cases(n: int) -> list[tuple[str, str, Make, dict[str, Any], int]]:
    """Call, payload, function that makes it, options, elements; for each call, honest first."""
    some = ("honest", "every element")
    few = n // 20 // 1000 * 1000
    found = []
    for call in ("decode", "Aggregator.add", "receive", "inspect"):
        for name, (make, options) in UPDATES.items():
            if call in ("decode", "Aggregator.add") or name.startswith(some):
                found.append((call, name, make, options, n))
    planes: dict[str, Make] = {
        "honest": honest,
        "coded planes, nearly constant": coded_planes,
        "coded planes, 128 values": partial(raw_planes, among=128),
        "raw planes": raw_planes,
    }
    found += [("decode_keyframe", name, make, {}, n) for name, make in planes.items()]
    call = "receive, many payloads"
    for name, make, sparsity in (("honest", honest, 0.99), ("every element", every_element, 0)):
        for count in (1, 256):
            options = {"sparsity": sparsity, "payloads": count}
            found.append((call, f"{count} x {name}", make, options, few))
    call = "receive, three keyframes"
    found.append((call, "honest", honest, {}, n))
    found.append((call, "coded planes, nearly constant", coded_planes, {}, n))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile")
    parser.add_argument("--elements", type=int, default=4_000_000)
    n = parser.parse_args().elements // 1000 * 1000
    rows: list[dict[str, Any]] = []
    base: dict[str, float] = {}
    for call, name, make, options, elements in cases(n):
        payload = in_a_process(make_payload, call, make, elements, options)
        seconds, more, model = in_a_process(measure, call, make, elements, payload)
        ns = seconds / elements * 1e9
        rows.append(
            {
                "call": f"`{call}`",
                "payload": name,
                "elements": elements,
                "bytes": len(payload),
                "ns an element": ns,
                "times honest": ns / base.setdefault(call, ns),
                "memory, models": round(more / model, 2),
            }
        )
        print(" | ".join(str(value) for value in rows[-1].values()), flush=True)
    note = "The honest payload of a call is its first row."
    print(write_results("hostile", "The worst payloads", rows, note))


if __name__ == "__main__":
    main()
