"""What the worst payloads cost their receiver, beside an honest one: python -m benchmarks.hostile.

Each payload is sound: an attacker who knows the reference can make it. Time is one thread's, the
best of three; memory is what the process held more at its peak, the result included.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import multiprocessing
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import resfed_codec as rfc

State = dict[str, np.ndarray]


def honest(n: int, rng: np.random.Generator) -> tuple[State, State]:
    reference = {"w": (rng.standard_normal((n // 1000, 1000)) * 0.05).astype(np.float32)}
    change = rng.standard_normal((n // 1000, 1000)).astype(np.float32) ** 3 * np.float32(0.001)
    return {"w": reference["w"] + change}, reference


def every_element(n: int, rng: np.random.Generator, high: bool) -> tuple[State, State]:
    """Each element is sent, at the lowest level or at one of the highest that cost no bits."""
    reference = {"w": np.zeros((n // 1000, 1000), np.float32)}
    state = {"w": np.ones((n // 1000, 1000), np.float32)}
    if high:
        state["w"] *= 14
        state["w"][:, ::500] = 1
    return state, reference


def constant_bytes(n: int) -> State:
    """Planes with two values each, one of them rare: coded, and next to nothing on the wire."""
    bits = np.zeros(n, np.uint32)
    bits[::4096] = 0x01010101
    return {"w": bits.view(np.float32).reshape(n // 1000, 1000)}


def _measured(make: Callable[[], Any], call: Callable[[Any], Any], queue: Any) -> None:
    rfc.set_num_threads(1)
    given = make()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before is not to be used again
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")
    before = _resident("VmRSS")
    start = time.process_time()
    call(given)
    first = time.process_time() - start
    more = _resident("VmHWM") - before
    times = [first]
    for _ in range(2):
        start = time.process_time()
        call(given)
        times.append(time.process_time() - start)
    queue.put((len(given[0]), min(times), more))


def _resident(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(field))


def measured(make: Callable[[], Any], call: Callable[[Any], Any]) -> tuple[int, float, int]:
    """Bytes of the payload, seconds, bytes of memory; in a process of its own."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_measured, args=(make, call, queue))
    process.start()
    result = queue.get()
    process.join()
    return result  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile")
    parser.add_argument("--elements", type=int, default=4_000_000)
    n = parser.parse_args().elements // 1000 * 1000
    rng = np.random.default_rng(0)

    def update(pair: tuple[State, State], **options: Any) -> Callable[[], Any]:
        payload = rfc.encode(*pair, **options)
        return lambda: (payload, pair[1])

    def session(pair: tuple[State, State], **options: Any) -> Callable[[], Any]:
        config = rfc.CodecConfig(error_feedback=False, **options)
        client = rfc.ClientSession(pair[1], config, client_id="a")
        payload = client.send(pair[0])

        def make() -> Any:
            return payload, pair[1], [rfc.ServerSession(pair[1]) for _ in range(3)]

        return make

    def keyframe(state: State) -> Callable[[], Any]:
        payload = rfc.encode_keyframe(state)
        return lambda: (payload, state)

    kinds = {
        "honest, sparsity 0.99": (honest(n, rng), {"sparsity": 0.99}),
        "honest, sparsity 0": (honest(n, rng), {"sparsity": 0}),
        "every element, level 1": (every_element(n, rng, False), {"sparsity": 0}),
        "every element, level 14": (every_element(n, rng, True), {"sparsity": 0, "step": 0.99}),
    }
    calls: list[tuple[str, Callable[[Any], Any], Callable[..., Any]]] = [
        ("decode", lambda g: rfc.decode(*g), update),
        ("Aggregator.add", lambda g: rfc.Aggregator(g[1]).add(g[0]), update),
        ("receive", lambda g: g[2].pop().receive("a", g[0]), session),
        ("inspect", lambda g: rfc.inspect(g[0]), update),
    ]
    print("| call | payload | bytes | ns an element | times honest | memory, models |")
    print("|---|---|---|---|---|---|")

    def row(call: str, name: str, result: tuple[int, float, int], base: float) -> None:
        n_bytes, seconds, more = result
        print(
            f"| `{call}` | {name} | {n_bytes:,} | {seconds / n * 1e9:.2f}"
            f" | {seconds / base:.1f} | {more / (4 * n):.1f} |",
            flush=True,
        )

    for call, run, made in calls:
        base = 0.0
        for name, (pair, options) in kinds.items():
            result = measured(made(pair, **options), run)
            base = base or result[1]
            row(call, name, result, base)
    base = 0.0
    for name, state in [("honest", honest(n, rng)[0]), ("coded planes", constant_bytes(n))]:
        result = measured(keyframe(state), lambda g: rfc.decode_keyframe(*g))
        base = base or result[1]
        row("decode_keyframe", name, result, base)


if __name__ == "__main__":
    main()
