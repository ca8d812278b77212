"""Faults around the codec: interrupts, lack of memory, threads, forks, interpreter shutdown.

After a fault a call has had its whole effect or none. tests/native/faults.cpp makes every
allocation of the native code fail in turn.
"""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import resfed_codec as rfc
from models import assert_same, clustered, cnn_pair
from resfed_codec.tensors.layout import Layout
from snapshots import snapshot

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX signals and processes")


class AlarmError(Exception):
    pass


@posix
def test_an_interrupt_changes_nothing() -> None:
    """Python handles signals between its own instructions, that is after a native call.

    By then the native code has overwritten the prediction's model. So the native code checks for
    signals itself before it writes.
    """

    def ring(*_: object) -> None:
        raise AlarmError

    rng = np.random.default_rng(0)
    reference = {"w": rng.standard_normal((4000, 1000), np.float32)}
    state = {"w": reference["w"] + rng.standard_normal((4000, 1000), np.float32)}
    encoder = rfc.Encoder(reference, sparsity=0.5, error_feedback=True)
    decoder = rfc.Decoder(reference)
    payload = rfc.Encoder(reference, sparsity=0.5).encode(state)
    before = snapshot(encoder), snapshot(decoder)
    calls: list[Callable[[], object]] = [
        lambda: encoder.encode(state),
        lambda: decoder.decode(payload, copy=False),
    ]
    old = signal.signal(signal.SIGALRM, ring)
    try:
        for call in calls:
            signal.setitimer(signal.ITIMER_REAL, 0.01)  # the calls take much longer than the timer
            with pytest.raises(AlarmError):
                call()
    finally:
        signal.signal(signal.SIGALRM, old)
    assert (snapshot(encoder), snapshot(decoder)) == before
    assert_same(decoder.decode(payload), rfc.Decoder(reference).decode(payload))
    fresh = rfc.Decoder(reference)
    assert_same(fresh.decode(encoder.encode(state)), encoder.state)


class Ends:
    """An encoder, a decoder, a server and a client, all after one round."""

    def __init__(self, uplink: str = "global") -> None:
        rng = np.random.default_rng(3)
        self.state, self.reference = cnn_pair(rng)
        config = rfc.CodecConfig(sparsity=0.9, predictor=uplink)
        self.encoder = rfc.Encoder(self.reference, sparsity=0.9)
        self.decoder = rfc.Decoder(self.reference)
        self.server = rfc.ServerSession(self.reference, config, rfc.CodecConfig(sparsity=0.9))
        self.client = rfc.ClientSession(self.reference, config, rfc.CodecConfig(sparsity=0.9))
        self.server.update(self.state)
        self.client.receive(self.server.send("ada"))
        self.server.receive("ada", self.client.send(self.reference))
        self.server.update(self.reference)
        self.down = self.server.send("ada")
        self.payload = copy.deepcopy(self.encoder).encode(self.state)

    def calls(self) -> dict[str, tuple[Any, Callable[[], object]]]:
        up = copy.deepcopy(self.client).send(self.state)
        return {
            "encode": (self.encoder, lambda: self.encoder.encode(self.state)),
            "decode": (self.decoder, lambda: self.decoder.decode(self.payload)),
            "update": (self.server, lambda: self.server.update(self.state)),
            "receive": (self.client, lambda: self.client.receive(self.down)),
            "send": (self.client, lambda: self.client.send(self.state)),
            "uplink": (self.server, lambda: self.server.receive("ada", up)),
        }


@pytest.mark.parametrize("uplink", ["global", "res0"])
@pytest.mark.parametrize("call", ["encode", "decode", "update", "receive", "send", "uplink"])
def test_no_memory_for_a_model_changes_nothing(
    call: str, uplink: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Allocations of the size of a model are the most likely to fail."""
    ends = Ends(uplink)
    end, run = ends.calls()[call]
    before = snapshot(end)
    empty, left = Layout.empty, 0

    def scarce(layout: Layout) -> list[np.ndarray]:
        nonlocal left
        left -= 1
        if left < 0:
            raise MemoryError
        return empty(layout)

    monkeypatch.setattr(Layout, "empty", scarce)
    for n in range(10):
        left = n
        try:
            run()
            break
        except MemoryError:
            assert snapshot(end) == before
    else:
        raise AssertionError("it needs memory without end")


def test_concurrent_calls_are_serialized() -> None:
    """Otherwise an encoder would use a version number twice."""
    ends = Ends()
    encoder = rfc.Encoder(ends.reference, sparsity=0.9)
    with ThreadPoolExecutor(8) as pool:
        payloads = list(pool.map(lambda _: encoder.encode(ends.state), range(64)))
    assert encoder.version == 64
    decoder = rfc.Decoder(ends.reference)
    by_version = {rfc.inspect(p).link.version: p for p in payloads}  # type: ignore[union-attr]
    assert sorted(by_version) == list(range(1, 65))
    with ThreadPoolExecutor(8) as pool:

        def decode(version: int) -> None:
            while True:
                try:
                    return decoder.decode(by_version[version])
                except rfc.StateMismatchError:  # earlier payloads first
                    assert decoder.version < version

        list(pool.map(decode, range(1, 65)))
    assert_same(decoder.state, encoder.state)


def test_a_server_with_many_threads() -> None:
    rng = np.random.default_rng(0)
    _, reference = cnn_pair(rng)
    config = rfc.CodecConfig(sparsity=0.9)
    server = rfc.ServerSession(reference, config, config)
    clients = [rfc.ClientSession(reference, config, config) for _ in range(12)]
    states = [
        {n: v + clustered(v.shape, rng) if v.ndim > 1 else v for n, v in reference.items()}
        for _ in clients
    ]
    expected = rfc.ServerSession(reference, config, config)
    sum_of = server.aggregator()

    def round_of(i: int) -> Any:
        received = clients[i].receive(server.send(i))
        assert_same(received, reference)
        payload = clients[i].send(states[i])
        assert server.receive_into(i, payload, sum_of, 1.0)
        assert not server.receive_into(i, payload, sum_of, 1.0)
        return payload, server.receive(i, payload)

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(round_of, range(len(clients))))
    for i, (payload, local) in enumerate(results):
        expected.send(i)
        assert_same(local, expected.receive(i, payload))
    assert sum_of.count == len(clients)
    assert sorted(server.clients) == list(range(len(clients)))  # type: ignore[type-var]


def test_copies_and_pickles_have_locks_of_their_own() -> None:
    ends = Ends()
    for end in (ends.encoder, ends.decoder, ends.server, ends.client):
        with end._lock:  # type: ignore[attr-defined]
            again = [copy.deepcopy(end), pickle.loads(pickle.dumps(end))]
            with ThreadPoolExecutor(1) as pool:
                for other in again:
                    assert_same(pool.submit(lambda other=other: other.state).result(10), end.state)


class Probe:
    """Records, when copied, whether another thread could call its owner at that moment."""

    def __init__(self, end: Any) -> None:
        self.lock, self.was_free = end._lock, []  # type: ignore[var-annotated]

    def __deepcopy__(self, memo: object) -> None:
        with ThreadPoolExecutor(1) as pool:
            self.was_free.append(pool.submit(self.lock.acquire, False).result())


@pytest.mark.parametrize("made", [copy.deepcopy, copy.copy, pickle.dumps])
def test_copies_and_pickles_wait_for_the_lock(made: Callable[[Any], object]) -> None:
    """Calls write in place, so copying excludes other calls; a copy shares nothing."""
    ends = Ends()
    for end in (ends.encoder, ends.decoder, ends.server, ends.client):
        end.probe = probe = Probe(end)  # type: ignore[attr-defined]
        made(end)
        assert probe.was_free == [False]
        del end.probe  # type: ignore[attr-defined]
    other = copy.copy(ends.encoder)
    before = snapshot(ends.encoder)
    other.encode(ends.state)
    assert snapshot(ends.encoder) == before
    with pytest.raises(TypeError, match="Aggregator can be neither copied nor pickled"):
        made(rfc.Aggregator(ends.reference))


@posix
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("threads", [1, 3])
def test_fork_after_use(threads: int) -> None:
    """A call starts its threads and ends them, so a forked child does not lack any."""
    rfc.set_num_threads(threads)
    rng = np.random.default_rng(0)
    reference = {"w": rng.standard_normal((3300, 1000), np.float32)}
    state = {"w": reference["w"] + clustered((3300, 1000), rng)}
    encoder = rfc.Encoder(reference)
    encoder.encode(state)
    expected = copy.deepcopy(encoder).encode(reference)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, b"same" if encoder.encode(reference) == expected else b"not the same")
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as end:
        assert end.read() == b"same"
    assert os.waitpid(child, 0)[1] == 0
    assert encoder.encode(reference) == expected


def run_python(code: str, folder: Path, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env=environ,
        cwd=folder,
        **kwargs,
    )


AT_WORK = """
import threading, numpy as np, resfed_codec as rfc
reference = {"w": np.zeros((2000, 1000), np.float32)}
state = {"w": np.random.default_rng(0).standard_normal((2000, 1000), np.float32)}
alive = [rfc.Encoder(reference), rfc.Decoder(reference), rfc.Aggregator(reference)]
alive.append(rfc.ServerSession(reference))
alive.append(alive)  # a cycle, so that only the end of the interpreter ends them
class Late:
    def __del__(self):
        print(len(rfc.encode(self.state, self.reference)) > 100)
late = Late()
late.state, late.reference = state, reference
"""


def test_the_interpreter_ends_with_live_objects(tmp_path: Path) -> None:
    done = run_python(AT_WORK + "alive[0].encode(state)\ndel late\n", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_the_interpreter_ends_during_a_call(tmp_path: Path) -> None:
    """A daemon thread is in the native code when the main thread ends."""
    code = """
def work():
    while True:
        alive[0].encode(state)
threading.Thread(target=work, daemon=True).start()
import time
time.sleep(0.3)
del late.__class__.__del__
"""
    done = run_python(AT_WORK + code, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@posix
@pytest.mark.parametrize("delay", [0.0, 0.002, 0.01, 0.03])
def test_killed_while_writing(tmp_path: Path, delay: float) -> None:
    """A killed program leaves the old model file or the new one, never a mixture."""
    pytest.importorskip("safetensors")
    from safetensors.numpy import load_file, save_file

    old = {"w": np.zeros((1500, 1000), np.float32)}
    new = {"w": np.ones((1500, 1000), np.float32)}
    save_file(old, tmp_path / "old")
    save_file(new, tmp_path / "new")
    output = tmp_path / "out"
    save_file(old, output)
    (tmp_path / "payload").write_bytes(rfc.encode(new, old, sparsity=0))
    code = (
        "from resfed_codec.cli import commands, main\n"
        "write = commands.write\n"
        "def announced(*args):\n"
        "    print('writing', flush=True)\n"
        "    write(*args)\n"
        "commands.write = announced\n"
        "main.main(['decode', 'payload', '--reference', 'old', '-o', 'out'])\n"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=environ, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        if delay:
            time.sleep(delay)
        process.kill()
    assert load_file(output)["w"].tobytes() in (old["w"].tobytes(), new["w"].tobytes())
    payload = (tmp_path / "payload").read_bytes()
    assert_same(rfc.decode(payload, old), load_file(tmp_path / "new"))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_does_not_grow() -> None:
    """A leak of one model per call would be 16 MB."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    ends = Ends("res0")
    broken = ends.payload[:-1]

    def turn() -> None:
        payload = ends.encoder.encode(ends.state)
        ends.decoder.decode(payload)
        rfc.decode(rfc.encode(ends.state, ends.reference), ends.reference)
        with pytest.raises(rfc.PayloadError):
            ends.decoder.decode(broken)
        ends.server.update(ends.state)
        ends.client.receive(ends.server.send("ada"))
        ends.server.receive("ada", ends.client.send(ends.state))

    for _ in range(100):
        turn()
    before = resident()
    for _ in range(250):
        turn()
    assert resident() - before < 4 << 20
