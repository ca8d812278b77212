"""Fuzz messages, requests, sessions, streams and saved states; Python and NumPy alone.

    python tests/fuzz/sessions.py --runs 1000       numbered executions, reproducible
    python tests/fuzz/sessions.py --seconds 60      executions with random numbers
    python tests/fuzz/sessions.py --repeat 12345    one execution, with the bytes that it delivers

The number of an execution determines everything that it does. It copies ends from the middle of a
run, mutates recorded messages (with valid checksums and digests) and passes them to every call that
reads bytes. It checks:

- Calls raise only errors of the codec (`ValueError` for a saved state), and then change nothing.
- An execution takes at most SECONDS. In every eighth, a call takes at most `most_memory` bytes.
- Every end can be saved and restored.
- Honest ends recover: after at most ROUNDS updates, each with ANSWERS answers, client and server
  hold the same model, bit for bit. Two forgeries are excluded because no end can detect them: a
  keyframe with the digest of another model, and another client's name in an acknowledgement for a
  client without `client_id`.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import faulthandler
import secrets
import sys
import time
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import resfed_codec as rfc
import saved_states
from federation import RULES, model
from models import State
from mutations import Corpus, Mutator
from published_rules import moved
from recorded import REMEMBERED, Ends, Recorded
from resfed_codec.codec.payload import REQUEST, UPDATE, kind_of
from resfed_codec.session.base import client_tag
from resfed_codec.stream.message import is_message, read_message
from resfed_codec.stream.versions import model_of
from snapshots import snapshot

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "fuzz"

SECONDS = 60.0
"""Limit of one execution with all its calls. It detects hangs, also on a busy machine."""

ROUNDS, ANSWERS = 3, 3
MEMORY_EVERY = 8

Reader = Callable[[Any, bytes], Any]


def most_memory(n_bytes: int, model_bytes: int) -> int:
    """Limit of Python and NumPy memory of a call, by the sizes of its input and of the model."""
    return 16 * (n_bytes + model_bytes) + (1 << 20)


class PromiseError(AssertionError):
    """A promise of the codec does not hold."""


# ---- honest ends


class World:
    """A run of honest ends: copies of them at several moments, and all their messages.

    Attributes:
        moments: Copies of the ends at each moment.
        corpus: Their messages.
        initial: Their first model.
        is_stream: Whether they are an encoder and a decoder.
    """

    def __init__(self, moments: list[Ends], said: list[bytes], initial: State) -> None:
        self.moments, self.initial = moments, initial
        self.is_stream = "encoder" in moments[0]
        self.corpus = Corpus(moments, said, initial)
        self.model_bytes = sum(value.nbytes for value in initial.values())

    def readers(self) -> list[tuple[str, str, Reader]]:
        """All calls that read bytes: name of the end, name of the call, the call."""
        if self.is_stream:
            return [
                ("decoder", "decode", lambda end, data: end.decode(data)),
                ("decoder", "decode(copy=False)", lambda end, data: end.decode(data, copy=False)),
                ("encoder", "answer", lambda end, data: end.answer(data)),
            ]
        calls: list[tuple[str, str, Reader]] = []
        for n in ("a", "b", "new", 7):
            calls += [
                ("server", f"receive({n!r})", lambda end, data, n=n: end.receive(n, data)),
                ("server", f"answer({n!r})", lambda end, data, n=n: end.answer(n, data)),
                (
                    "server",
                    f"acknowledged({n!r})",
                    lambda end, data, n=n: end.acknowledged(n, data),
                ),
                (
                    "server",
                    f"receive_into({n!r})",
                    lambda end, data, n=n: end.receive_into(n, data, end.aggregator()),
                ),
            ]
        for name in self.moments[0]:
            if name != "server":
                # Twice: clients have fewer calls, but these do more.
                calls += 2 * [
                    (name, "receive", lambda end, data: end.receive(data)),
                    (name, "receive(copy=False)", lambda end, data: end.receive(data, copy=False)),
                    (name, "answer", lambda end, data: end.answer(data)),
                ]
        return calls


def sessions(rules: str, feedback: bool, **arguments: Any) -> World:
    fed = Recorded(RULES[rules], feedback, **arguments)
    other = Recorded(RULES[rules], feedback, **{**arguments, "run": "another"})
    for ends in (fed.past[2], fed.past[3]):
        for name in ("a", "b", "stranger"):
            fed.said += answers(ends["server"].answer, fed.said, name)
        for name in ("a", "b"):
            fed.said += answers(ends[name].answer, fed.said)
        fed.said.append(copy.deepcopy(ends["server"]).send("late", fresh=True))
    last = copy.deepcopy({"server": fed.server, **fed.clients})
    pending = copy.deepcopy(last)  # all have sent, and nothing has arrived
    pending["server"].update(moved(pending["server"].state, fed.rng))
    for name in ("a", "b"):
        fed.said += [pending[name].send(moved(pending[name].state, fed.rng)) for _ in range(2)]
        fed.said.append(pending["server"].send(name))
    return World([*fed.past, last, pending], fed.said + other.said[:12], fed.initial)


def answers(answer: Callable[..., bytes], requests: list[bytes], *name: str) -> list[bytes]:
    """What an end answers; as it is a copy that is asked, nothing depends on the order."""
    made = []
    for request in dict.fromkeys(requests):
        with contextlib.suppress(rfc.CodecError):
            made.append(copy.deepcopy(answer.__self__).answer(*name, request))  # type: ignore[attr-defined]
    return made


def stream(predictor: str, feedback: bool) -> World:
    rng = np.random.default_rng(7)
    initial = model(rng)
    options = {"sparsity": 0.8, "predictor": predictor, "error_feedback": feedback}
    encoder, decoder = rfc.Encoder(initial, **options), rfc.Decoder(initial)
    other = rfc.Encoder(initial, run="another", **options)
    said, moments = [], []
    for _ in range(4):
        moments.append(copy.deepcopy({"encoder": encoder, "decoder": decoder}))
        said.append(encoder.encode(moved(encoder.state, rng)))
        late = copy.deepcopy(decoder)
        late.decode(said[-1])
        said += [encoder.keyframe(), other.encode(moved(other.state, rng)), other.keyframe()]
        try:
            decoder.decode(encoder.encode(moved(encoder.state, rng)))
        except rfc.StateMismatchError as error:
            said += [error.request, encoder.answer(error.request)]
            decoder.decode(said[-1])
    return World(moments, said, initial)


SETTINGS: dict[str, Callable[[], World]] = {
    "default": lambda: sessions("default", False),
    "default, feedback": lambda: sessions("default", True),
    "own history": lambda: sessions("own history", False),
    "long history": lambda: sessions("long history", False),
    "adaptive, feedback": lambda: sessions("adaptive", True),
    "own downlinks": lambda: sessions("own downlinks", False),
    "own downlinks, feedback": lambda: sessions("own downlinks", True),
    "all": lambda: sessions("all", False),
    "all, history of 2": lambda: sessions("all", False, history=2),
    "default, feedback, history of 1": lambda: sessions("default", True, history=1),
    "stream": lambda: stream("previous", False),
    "stream, feedback": lambda: stream("previous", True),
    "stream, adaptive": lambda: stream("adaptive", True),
}


@cache
def world_of(setting: str) -> World:
    return SETTINGS[setting]()


# ---- one execution


class Trial:
    """Ends of one moment, and the steps done with them."""

    def __init__(self, world: World, rng: np.random.Generator, *, measure: bool) -> None:
        self.world, self.rng, self.measure = world, rng, measure
        self.ends: Ends = copy.deepcopy(world.moments[int(rng.integers(len(world.moments)))])
        self.mutator = Mutator(world.corpus, rng)
        self.steps: list[str] = []
        self.is_impersonated = False
        self.n_accepted = self.n_refused = 0
        self._before: dict[str, dict[str, bytes]] = {}

    def deliver(self, name: str, call: str, read: Reader, data: bytes) -> None:
        """Pass bytes to a call. It must succeed, or raise CodecError and change nothing."""
        self.steps.append(f"{name}.{call}: {data.hex()}")
        end = self.ends[name]
        before = self._before.get(name) or snapshot(end)
        try:
            with self._measured(len(data)):
                made = read(end, data)
        except rfc.CodecError as error:
            self.n_refused += 1
            self._before.pop(name, None)
            if getattr(error, "request", b""):
                self.mutator.record(error.request)
            if any(text in str(error) for text in REMEMBERED):
                return
            self._before[name] = before
            if snapshot(end) != before:
                raise PromiseError(f"{name}.{call}: refused, but changed: {error}") from error
        else:
            self.n_accepted += 1
            self._before.pop(name, None)
            if isinstance(made, bytes):
                self.mutator.record(made)
            self.is_impersonated |= self._impersonates(data)

    def stateless(self, data: bytes) -> None:
        """Pass bytes to the functions that need only a model."""
        for name, read in STATELESS.items():
            self.steps.append(f"{name}: {data.hex()}")
            with contextlib.suppress(rfc.CodecError), self._measured(len(data)):
                read(data, self.world.initial)

    def honest(self) -> None:
        """An end trains and sends. It may fail if a forged message gave it an invalid model."""
        names = [name for name in self.ends if name != "decoder"]
        name = str(self.rng.choice(names))
        end = self.ends[name]
        self.steps.append(f"{name} trains and sends")
        self._before.pop(name, None)
        with contextlib.suppress(ValueError):
            if name == "server":
                if self.rng.random() < 0.3:
                    self.mutator.record(end.update(moved(end.state, self.rng)))
                self.mutator.record(end.send(str(self.rng.choice(["a", "b", "new"]))))
            elif name == "encoder":
                self.mutator.record(end.encode(moved(end.state, self.rng)))
            else:
                self.mutator.record(end.send(moved(end.state, self.rng)))
        self.mutator.observe(self.ends.values())

    def restored(self) -> None:
        """Save and restore every end."""
        for name, end in self.ends.items():
            self.steps.append(f"{name} is restored")
            end.load_state_dict(end.state_dict())

    @contextlib.contextmanager
    def _measured(self, n_bytes: int) -> Iterator[None]:
        if not self.measure:
            yield
            return
        tracemalloc.reset_peak()
        held = tracemalloc.get_traced_memory()[0]
        yield
        peak = tracemalloc.get_traced_memory()[1] - held
        if peak > most_memory(n_bytes, self.world.model_bytes):
            raise PromiseError(f"{peak:,} bytes of memory for {n_bytes:,} given")

    def _impersonates(self, data: bytes) -> bool:
        """Whether these are keyframes with the digest of another model."""
        if not is_message(data):
            return False
        frames = tuple(k[:2] + k[3:] for k in read_message(data).keyframes)
        corpus = self.world.corpus
        return bool(frames) and frames not in corpus.honest_keyframes

    # ---- honest ends again

    def come_together(self) -> None:
        if self.world.is_stream:
            self._together("stream", self._encode_and_decode)
            return
        for name in self.ends:
            if name != "server" and not self._is_misnamed(name):
                self._together(name, lambda n=name: self._exchange(n))

    def _is_misnamed(self, name: str) -> bool:
        """Whether a client without `client_id` got a forged answer to an uplink of its own."""
        client = self.ends[name]
        return client._state.named and client._state.tag != client_tag(name, client._run_digest)

    def _together(self, name: str, exchange: Callable[[], None]) -> None:
        last: Exception | None = None
        for i in range(ROUNDS):
            self.steps.append(f"honest round {i} of {name}")
            try:
                exchange()
            except (rfc.StateMismatchError, PromiseError) as error:
                last = error
            else:
                return
        if not self.is_impersonated or isinstance(last, rfc.CodecError):
            raise PromiseError(f"{name}: the ends do not come together: {last}") from last

    def _encode_and_decode(self) -> None:
        encoder, decoder = self.ends["encoder"], self.ends["decoder"]
        payload = encoder.encode(moved(encoder.state, self.rng))
        self._deliver_and_recover(payload, decoder.decode, encoder.answer)
        require_same(decoder.state, encoder.state, "decoder and encoder")

    def _exchange(self, name: str) -> None:
        server, client = self.ends["server"], self.ends[name]
        server.update(moved(server.state, self.rng))
        try:
            self._deliver_and_recover(
                server.send(name), client.receive, lambda r: server.answer(name, r)
            )
        except rfc.StateMismatchError:
            # It trains from what it holds, and perhaps learns from the answer who it is.
            self._deliver_and_recover(
                client.send(client.state), lambda m: server.receive(name, m), client.answer
            )
            raise
        record = server._state.clients[name]
        if record.downlinks:
            theirs = record.downlinks[max(record.downlinks)]
            require_same(client.state, client._layout.state_of(model_of(theirs)), "downlink")
        else:
            require_same(client.state, server.state, "client and server")
        if not np.array_equal(client.state["n"], server.state["n"]):
            raise PromiseError("not the newest global model")
        local = moved(client.state, self.rng)
        uplink = client.send(local)
        received = self._deliver_and_recover(
            uplink, lambda data: server.receive(name, data), client.answer
        )
        if not np.array_equal(received["n"], local["n"]):
            raise PromiseError("not this local model")
        sent = client._state.sent[max(client._state.sent)].version.model
        if sent is not None:
            require_same(received, client._layout.state_of(sent), "uplink")

    def _deliver_and_recover(
        self, message: bytes, receive: Callable[[bytes], Any], answer: Callable[[bytes], bytes]
    ) -> Any:
        for _ in range(ANSWERS):
            try:
                return receive(message)
            except rfc.StateMismatchError as error:
                if not error.request:
                    raise
                message = answer(error.request)
        return receive(message)


def require_same(one: State, other: State, what: str) -> None:
    for name, value in one.items():
        if value.tobytes() != other[name].tobytes():
            raise PromiseError(f"{what}: tensor {name!r} differs")


STATELESS: dict[str, Callable[[bytes, State], Any]] = {
    "inspect": lambda data, _: rfc.inspect(data),
    "decode": lambda data, model: rfc.decode(data, model),
    "decode_keyframe": lambda data, model: rfc.decode_keyframe(data, model),
    "Aggregator.add": lambda data, model: rfc.Aggregator(model).add(data),
}


def may_take(data: bytes, name: str, call: str) -> bool:
    """Whether the call takes valid bytes of this kind and direction."""
    call = call.partition("(")[0]
    if (kind_of(data) == REQUEST) != (call in ("answer", "acknowledged")):
        return False
    if kind_of(data) == UPDATE or name in ("encoder", "decoder"):
        return True
    try:
        from_server = read_message(data).ack is not None
    except rfc.PayloadError:
        return True
    return from_server == (name != "server")


def deliver_messages(trial: Trial) -> None:
    readers, rng = trial.world.readers(), trial.rng
    for i in range(int(rng.integers(2, 9))):
        if i < 2 or rng.random() < 0.3:
            trial.honest()
            continue
        data = trial.mutator.message() if rng.random() < 0.7 else trial.mutator.payload()
        if rng.random() < 0.1:
            trial.stateless(data)
        fitting = [r for r in readers if may_take(data, *r[:2])]
        for among in (readers, fitting, fitting, fitting):
            trial.deliver(*among[int(rng.integers(len(among)))], data)
    trial.restored()
    trial.come_together()


def load_state(trial: Trial) -> None:
    """Load a mutated state: an error that changes nothing, or the ends continue with it."""
    name = str(trial.rng.choice(list(trial.ends)))
    end = trial.ends[name]
    before = snapshot(end)
    state_dict = trial.mutator.state_dict(type(end))
    structure = bytes(np.asarray(state_dict["structure"]))
    trial.steps.append(f"{name}.load_state_dict: {structure!r}")
    size = sum(np.asarray(value).nbytes for value in state_dict.values())
    try:
        with trial._measured(size):
            end.load_state_dict(state_dict)
    except ValueError as error:
        trial.n_refused += 1
        if type(error) is not ValueError or not str(error).startswith("state_dict: "):
            raise PromiseError(f"{name}: another error than promised: {error!r}") from error
        if snapshot(end) != before:
            raise PromiseError(f"{name}: refused, and yet changed: {error}") from error
        return
    trial.n_accepted += 1
    trial.restored()
    if trial.world.is_stream:
        saved_states.play_stream(trial.ends["encoder"], trial.ends["decoder"])
    else:
        saved_states.play_sessions(trial.ends["server"], trial.ends["a" if name != "b" else "b"])
    trial.restored()


def execute(number: int, trials: list[Trial]) -> Trial:
    """Run one execution. It appends the trial to ``trials`` before the first call."""
    rng = np.random.default_rng(number)
    setting = list(SETTINGS)[number % len(SETTINGS)]
    measure = number // len(SETTINGS) % MEMORY_EVERY == 0
    trial = Trial(world_of(setting), rng, measure=measure)
    trial.steps.append(f"setting: {setting}")
    trials.append(trial)
    if measure:
        tracemalloc.start()
    try:
        (load_state if rng.random() < 0.3 else deliver_messages)(trial)
    finally:
        tracemalloc.stop()
    return trial


# ---- many executions


def numbers(args: argparse.Namespace) -> Iterator[int]:
    if args.repeat is not None:
        yield args.repeat
    elif args.runs:
        yield from range(args.runs)
    else:
        end = time.monotonic() + args.seconds
        number = secrets.randbits(40)
        while time.monotonic() < end:
            yield number
            number += 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/fuzz/sessions.py")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=int, default=60)
    length.add_argument("--runs", type=int)
    length.add_argument("--repeat", type=int, metavar="NUMBER")
    args = parser.parse_args()

    BUILD.mkdir(parents=True, exist_ok=True)
    rfc.set_num_threads(1)
    failures: dict[str, int] = {}
    n = n_accepted = n_refused = 0
    with open(BUILD / "sessions.number", "wb", buffering=0) as current:
        for number in numbers(args):
            # After a crash or a hang this file has the number of the execution.
            current.seek(0)
            current.write(b"%-20d\n" % number)
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            trials: list[Trial] = []
            try:
                execute(number, trials)
            except Exception as error:
                frames = traceback.extract_tb(error.__traceback__)
                kind = f"{type(error).__name__} {frames[-1].name}:{frames[-1].lineno}"
                if kind not in failures:
                    failures[kind] = number
                    text = "\n".join([*(trials[0].steps if trials else []), ""])
                    (BUILD / f"sessions-{number}.txt").write_text(text)
                    traceback.print_exc()
                    print(f"again: python {Path(__file__).relative_to(ROOT)} --repeat {number}")
            faulthandler.cancel_dump_traceback_later()
            n += 1
            if trials:
                n_accepted += trials[0].n_accepted
                n_refused += trials[0].n_refused
    if args.repeat is not None and trials:
        print(*trials[0].steps, sep="\n")
    print(f"sessions: {n:,} executions, {n_accepted:,} calls accepted, {n_refused:,} refused")
    if failures:
        print(f"sessions: FAILED, {len(failures)} kinds: {failures}")
    return bool(failures)


if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(main())
