"""Flower's differential privacy with the codec: norms of what the server decodes, and accuracy.

    python -m benchmarks.integrations_flower_privacy [--seeds 0 1 2]

The training is that of ``resfed-codec demo`` with FedAvg in Flower, all ten clients in each round.
Nodes run in this process. The norm is that of a client's decoded update, which the strategy sees,
minus the model that the client received; the noise is calibrated to the clipping norm.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, fixedclipping_mod
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
)
from threadpoolctl import threadpool_limits

import resfed_codec as rfc
from benchmarks.common import write_results
from resfed_codec.cli import demo
from resfed_codec.integrations import _flower_records, flower
from resfed_codec.integrations.flower import CodecGrid, codec_mod

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "integration"))

from local_grid import LocalGrid  # type: ignore[import-not-found]

CLIENTS = 10
Model = dict[str, Any]


class Training:
    """The clients of one training, and what the server saw.

    Attributes:
        norms: Of each decoded update.
        accuracies: Of the global model, by round.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.data = demo._load_digits(rng)
        self.shards = demo._split(self.data.labels, CLIENTS, rng)
        self.first = demo._first_model(self.data.images.shape[1], rng)
        self.seed = seed
        self.norms: list[float] = []
        self.accuracies: list[float] = []

    def app(self, *mods: Any) -> ClientApp:
        app = ClientApp()

        @app.train(mods=[*mods])  # type: ignore[untyped-decorator]
        def train(message: Message, context: Context) -> Message:
            client = int(context.node_config["partition-id"])
            number = int(message.content["config"]["server-round"])
            order = np.random.default_rng([self.seed, number, client]).permutation(
                self.shards[client]
            )
            model = models_of(message.content["arrays"])
            local = demo._train(model, self.data.images[order], self.data.labels[order])
            metrics = MetricRecord({"num-examples": 1})  # the noise is for equal weights
            content = RecordDict({"arrays": record_of(local), "metrics": metrics})
            return Message(content, reply_to=message)

        return app

    def see(self, held: Model, replies: list[Message]) -> None:
        for reply in replies:
            local = models_of(reply.content["arrays"])
            squares = [np.sum(np.square(local[n].astype(float) - held[n])) for n in held]
            self.norms.append(float(np.sqrt(sum(squares))))

    def evaluate(self, number: int, arrays: ArrayRecord) -> None:
        self.accuracies.append(demo._accuracy(models_of(arrays), self.data))


def models_of(record: ArrayRecord) -> Model:
    return {name: array.numpy() for name, array in record.items()}


def record_of(model: Model) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in model.items()})


def train(args: argparse.Namespace, seed: int, case: Case) -> Training:
    training = Training(seed)
    wrapper, mods, codec = case
    plain: Grid = LocalGrid(
        training.app(*([codec_mod] if codec else []), *[make(args) for make in mods]), CLIENTS
    )
    uplink = rfc.CodecConfig(sparsity=args.sparsity)
    grid = CodecGrid(plain, uplink, uplink) if codec else plain
    receive = grid.send_and_receive

    def measured(messages: Any, **options: Any) -> list[Message]:
        messages = list(messages)
        if not messages:
            return []
        held = models_of(messages[0].content["arrays"])
        replies = list(receive(messages, **options))
        training.see(grid.session.state if isinstance(grid, CodecGrid) else held, replies)
        return replies

    grid.send_and_receive = measured  # type: ignore[method-assign]
    strategy: Any = FedAvg(fraction_evaluate=0.0, min_available_nodes=CLIENTS)
    if wrapper is not None:
        strategy = wrapper(strategy, args.noise, args.norm, CLIENTS)
    strategy.start(
        grid=grid,
        initial_arrays=record_of(training.first),
        num_rounds=args.rounds,
        evaluate_fn=training.evaluate,
    )
    return training


Case = tuple[Any, list[Callable[[argparse.Namespace], Any]], bool]


def local_mod(args: argparse.Namespace) -> LocalDpMod:
    """Noise of a standard deviation as large as all clients' noise together has."""
    epsilon = 1.0
    delta = 1e-5
    sensitivity = args.noise * args.norm / np.sqrt(2 * np.log(1.25 / delta)) / np.sqrt(CLIENTS)
    return LocalDpMod(args.norm, sensitivity * epsilon, epsilon, delta)


def clipping(args: argparse.Namespace) -> Any:
    return fixedclipping_mod


CLIENT, SERVER = (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
)
CASES: dict[tuple[str, str], Case] = {
    ("none", "no"): (None, [], False),
    ("none", "yes"): (None, [], True),
    ("client-side clipping", "no"): (CLIENT, [clipping], False),
    ("client-side clipping", "yes"): (CLIENT, [clipping], True),
    ("client-side clipping", "yes, without the bound"): (CLIENT, [clipping], True),
    ("server-side clipping", "no"): (SERVER, [], False),
    ("server-side clipping", "yes"): (SERVER, [], True),
    ("LocalDpMod", "no"): (None, [local_mod], False),
    ("LocalDpMod", "yes"): (None, [local_mod], True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sparsity", type=float, default=0.99)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--norm", type=float, default=2.0, help="clipping norm")
    parser.add_argument("--noise", type=float, default=0.02, help="noise multiplier")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    rows = []
    with threadpool_limits(limits=1, user_api="blas"):
        for (privacy, codec), case in CASES.items():
            norm_of = (
                (lambda content: None) if "without" in codec else _flower_records.clipping_norm
            )
            with mock.patch.object(flower, "clipping_norm", norm_of):
                found = [train(args, seed, case) for seed in args.seeds]
            norms = [n for t in found for n in t.norms]
            finals = [statistics.mean(t.accuracies[-5:]) for t in found]
            rows.append(
                {
                    "differential privacy": privacy,
                    "codec": codec,
                    "greatest norm decoded": max(norms),
                    "norms above": f"{sum(n > args.norm for n in norms)} of {len(norms)}",
                    "accuracy": statistics.mean(finals),
                    "least": min(finals),
                    "greatest": max(finals),
                }
            )
    note = (
        f"Clipping norm {args.norm:g}, noise multiplier {args.noise:g}, sparsity"
        f" {args.sparsity:g}, {args.rounds} rounds, {CLIENTS} clients, seeds {args.seeds}."
        " Accuracy: mean of the last five rounds. The noise is small, so that the effect of the"
        " codec is seen; it is no privacy. Norms above: above the clipping norm. LocalDpMod adds"
        " noise after clipping."
    )
    title = "Differential privacy of Flower, digits"
    print(write_results("integrations_flower_privacy", title, rows, note))


if __name__ == "__main__":
    main()
