"""What the codec costs Flower's strategies: accuracy with and without it.

    python -m benchmarks.integrations_flower_strategies [--seeds 0 1 2] [--only FedAvgM]
    python -m benchmarks.integrations_flower_strategies --robust

The training is that of the suite "servers": digits, a CNN of 9k parameters, ten clients with four
classes each, 30 rounds. The strategies are Flower's own. All clients run in this process, behind a
Grid that does to models what CodecGrid and CodecMod do.

A strategy that compares clients element by element (a median) loses what few clients send. With
``--robust`` clients of such strategies send every element, in about two bits.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
)
from flwr.supercore.task_identity import TaskIdentity

import resfed_codec as rfc
from benchmarks.common import write_results
from benchmarks.federated.data import load
from benchmarks.federated.models import build
from benchmarks.federated.splits import split
from benchmarks.federated.suites import DIGITS
from benchmarks.federated.train import State, Trainer

STRATEGIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "FedAvg": (FedAvg, {}),
    "FedProx": (FedProx, {"proximal_mu": 0.1}),
    "FedAvgM": (FedAvgM, {"server_momentum": 0.9}),
    "FedAdam": (FedAdam, {"eta": 0.01}),
    "FedYogi": (FedYogi, {"eta": 0.01}),
    "FedAdagrad": (FedAdagrad, {"eta": 0.01}),
    "FedTrimmedAvg": (FedTrimmedAvg, {}),
    "FedMedian": (FedMedian, {}),
    "Krum": (Krum, {"num_malicious_nodes": 1}),
}


class Case(NamedTuple):
    """How models are sent.

    Attributes:
        sparsity: Of both directions; None: no codec.
        up, down: Error feedback.
        all_up: Whether clients send every element, in two bits.
        on_exact: Whether the strategy gets replies on its own model: that model plus the client's
            change of the one that it recovered. Otherwise it gets local models as decoded.
    """

    sparsity: float | None = 0.99
    up: bool | None = None
    down: bool | None = None
    on_exact: bool = False
    all_up: bool = False


CASES = {
    "no codec": Case(None),
    "sparsity 0.99": Case(),
    "feedback up off": Case(up=False),
    "sparsity 0.9": Case(0.9),
    "on the exact model": Case(down=False, on_exact=True),
}
ROBUST = ("FedTrimmedAvg", "FedMedian", "Krum")
ROBUST_CASES = {
    "no codec": Case(None),
    "every element up": Case(all_up=True),
    "every element up, sparsity 0.9 down": Case(0.9, all_up=True),
    "every element both ways, no feedback": Case(0.0, up=False, down=False),
}


class Training(Grid):
    """Clients and the channel to them.

    Attributes:
        held: Accuracy of the model that clients recovered, by round.
        own: Accuracy of the strategy's model, by round.
        n_bytes: Of both directions.
        result: What the strategy returned.
    """

    def __init__(self, seed: int, case: Case) -> None:
        config = DIGITS
        data = load(config.data, None)
        self._shards = split(config.split, data.labels, config.clients, seed)
        network = build(config.model, data.images.shape[1:], data.n_classes, seed)
        options = {"lr": config.lr, "momentum": config.momentum, "batch": config.batch}
        self._trainer = Trainer(network, data, **options)  # type: ignore[arg-type]
        self._seed, self._case = seed, case
        self.first = self._trainer.state()
        self.held: list[float] = []
        self.own: list[float] = []
        self.n_bytes = 0
        self.result: Any = None
        if case.sparsity is not None:
            up = rfc.CodecConfig(sparsity=case.sparsity, error_feedback=case.up)
            if case.all_up:
                up = rfc.CodecConfig(sparsity=0.0, bits=2)
            down = rfc.CodecConfig(sparsity=case.sparsity, error_feedback=case.down)
            self._server = rfc.ServerSession(self.first, up, down)
            self._clients = [rfc.ClientSession(self.first, up, down) for _ in self._shards]

    @property
    def feeds_back_down(self) -> bool | None:
        """Whether downlinks have error feedback now; None without codec."""
        return None if self._case.sparsity is None else self._server.error_feedback

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        messages = list(messages)
        if not messages:
            return []
        sent = models_of(messages[0].content["arrays"])
        sent = {name: value.astype(np.float32) for name, value in sent.items()}
        if self._case.sparsity is not None:
            self._server.update(sent)
        self.own.append(self._trainer.accuracy(sent))
        return [self._reply(message, sent) for message in messages]

    def _reply(self, message: Message, sent: State) -> Message:
        client, config = message.metadata.dst_node_id - 1, message.content["config"]
        held = sent
        if self._case.sparsity is not None:
            data = self._server.send(client)
            held = self._clients[client].receive(data)
            self.n_bytes += len(data)
        if client == 0:
            self.held.append(self._trainer.accuracy(held))
        local = self.local_model(held, client, config)
        if self._case.sparsity is not None:
            data = self._clients[client].send(local)
            local = self._server.receive(client, data)
            self.n_bytes += len(data)
        if self._case.on_exact:
            local = {name: sent[name] + (local[name] - held[name]) for name in sent}
        metrics = MetricRecord({"num-examples": self.n_examples(client)})
        content = RecordDict({"arrays": record_of(local), "metrics": metrics})
        return Message(content, reply_to=message)

    def local_model(self, held: State, client: int, config: ConfigRecord) -> State:
        """The client's model after a round of training."""
        rng = np.random.default_rng([self._seed, int(config["server-round"]), client])
        pull = float(config.get("proximal-mu", 0.0))
        return self._trainer.train(held, self._shards[client], rng, pull=pull)

    def n_examples(self, client: int) -> int:
        return len(self._shards[client])

    def get_node_ids(self) -> Iterable[int]:
        return range(1, len(self._shards) + 1)

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return Message(*args, **kwargs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError


def models_of(record: ArrayRecord) -> State:
    return {name: array.numpy() for name, array in record.items()}


def record_of(model: State) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in model.items()})


def strategy_of(name: str) -> Any:
    cls, options = STRATEGIES[name]
    return cls(fraction_evaluate=0.0, min_available_nodes=DIGITS.clients, **options)


def train(name: str, case: Case, seed: int, rounds: int) -> Training:
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    random.seed(seed)  # the order in which the strategy samples clients
    training = Training(seed, case)
    # The model of a round is tested when the next one begins.
    options = {"initial_arrays": record_of(training.first), "num_rounds": rounds + 1}
    training.result = strategy_of(name).start(grid=training, **options)
    return training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=DIGITS.rounds)
    parser.add_argument("--only", nargs="+", choices=STRATEGIES, default=[*STRATEGIES])
    parser.add_argument("--robust", action="store_true", help="robust strategies, all elements up")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    cases = ROBUST_CASES if args.robust else CASES
    rows = []
    for name in ROBUST if args.robust else args.only:
        plain: list[float] = []
        for label, case in cases.items():
            found = [train(name, case, seed, args.rounds) for seed in args.seeds]
            held = [statistics.mean(t.held[-5:]) for t in found]
            own = [statistics.mean(t.own[-5:]) for t in found]
            plain = plain or own
            ends = [t.feeds_back_down for t in found if t.feeds_back_down is not None]
            rows.append(
                {
                    "strategy": name,
                    "codec": label,
                    "accuracy, %": _spread(held),
                    "cost": _spread([a - b for a, b in zip(plain, held, strict=True)]),
                    "strategy's own model": _spread(own),
                    "kB per client": statistics.mean(t.n_bytes for t in found)
                    / DIGITS.clients
                    / 1e3
                    or None,
                    "feedback down": f"{sum(ends)} of {len(ends)}" if ends else None,
                }
            )
            print(*rows[-1].values(), sep=" | ", flush=True)
    note = (
        f"{args.rounds} rounds, seeds {args.seeds}; sparsity 0.99 where the row names none."
        " Accuracy: of the model that clients recover, mean of the last five rounds; mean and"
        " standard deviation over seeds. Cost: points less than without codec, seed by seed."
        " Strategy's own model: the accuracy of what it gives to send. Feedback down: with how many"
        " seeds downlinks have it after the last round. Options of strategies: "
        + "; ".join(
            f"{name} {', '.join(f'{key}={value}' for key, value in options.items())}"
            for name, (_, options) in STRATEGIES.items()
            if options
        )
        + ". On the exact model: the strategy gets its own model plus what clients changed of the"
        " one that they recovered, and downlinks have no feedback. CodecGrid does not do that."
        " Every element up: in two bits."
    )
    name = "integrations_flower_robust" if args.robust else "integrations_flower_strategies"
    print(write_results(name, "Flower's strategies", rows, note))


def _spread(values: list[float]) -> str:
    """Mean and sample standard deviation in per cent."""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


if __name__ == "__main__":
    main()
