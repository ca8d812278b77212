"""A small federated training, with and without the codec.

Ten clients train one network on scikit-learn's handwritten digits. Each client holds images of
only four of the ten digits, so no client can learn the task alone. The same training runs twice
from the same seed: once with the codec in both directions, and once with raw float32 models (plain
federated averaging). Both runs count every byte.

Server and clients build the first model from a common seed, so it is not sent. A compressed round:

1. Every client trains for one local epoch from the global model that it holds and sends the result
   through its ClientSession. The client adds what a payload leaves out to the next one (error
   feedback).
2. The server adds the payloads to their weighted mean and applies the mean's step to its own
   ``model``.
3. The server passes ``model`` to its ServerSession, which encodes it once, and sends every client
   what it lacks. What that payload leaves out remains in the difference between ``model`` and the
   clients' models, so a later round sends it.

Needs the extra packages of ``pip install "resfed-codec[demo]"``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import resfed_codec as rfc

if TYPE_CHECKING:
    from rich.console import Console

State = dict[str, NDArray[np.float32]]

CLASSES = 10
CLASSES_PER_CLIENT = 4
HIDDEN = 1024
BATCH = 16
LEARNING_RATE = np.float32(0.1)
MOMENTUM = np.float32(0.9)
TARGET = 0.90  # the report gives the bytes sent until a run reached it


@dataclass(frozen=True)
class RoundResult:
    """One round, or the sum of several. Bytes are totals over all clients.

    ``accuracy`` and ``plain_accuracy`` are the test accuracies, from 0 to 1, of the clients' model
    after the round, with and without the codec. ``plain_bytes`` is what the run without the codec
    sent in each direction.
    """

    number: int
    accuracy: float
    plain_accuracy: float
    bytes_up: int
    bytes_down: int
    plain_bytes: int

    @property
    def ratio(self) -> float:
        """Uncompressed bytes over compressed bytes, both directions together."""
        return 2 * self.plain_bytes / (self.bytes_up + self.bytes_down)


@dataclass(frozen=True)
class DemoResult:
    """Result of :func:`run`. Runs with the same arguments compare equal; ``seconds`` is ignored."""

    rounds: tuple[RoundResult, ...]
    clients: int
    sparsity: float
    seed: int
    parameters: int
    test_images: int
    plot: Path | None
    seconds: float = field(compare=False)

    @property
    def total(self) -> RoundResult:
        """The accuracies after the last round, and the bytes of all rounds."""
        return replace(
            self.rounds[-1],
            bytes_up=sum(r.bytes_up for r in self.rounds),
            bytes_down=sum(r.bytes_down for r in self.rounds),
            plain_bytes=sum(r.plain_bytes for r in self.rounds),
        )

    def curve(self, *, compressed: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return cumulative megabytes (both directions) and test accuracy, both ``(rounds,)``."""
        rows = self.rounds
        sent = [r.bytes_up + r.bytes_down if compressed else 2 * r.plain_bytes for r in rows]
        accuracy = [r.accuracy if compressed else r.plain_accuracy for r in rows]
        return np.cumsum(sent) / 1e6, np.array(accuracy)

    def megabytes_until(self, accuracy: float, *, compressed: bool) -> float | None:
        """Return the megabytes sent until a run first reached an accuracy; ``None`` if never."""
        megabytes, reached = self.curve(compressed=compressed)
        hits = np.flatnonzero(reached >= accuracy)
        return float(megabytes[hits[0]]) if len(hits) else None


def run(
    *,
    rounds: int = 40,
    clients: int = 10,
    sparsity: float = 0.99,
    seed: int = 0,
    plot: Path | None = Path("resfed_demo.png"),
    quiet: bool = False,
) -> DemoResult:
    """Train with and without the codec, print the comparison and save the plot.

    Args:
        rounds: Rounds of federated averaging, at least 1.
        clients: Number of clients, from 3 to 100.
        sparsity: Fraction of the parameters that each payload leaves out.
        seed: Seed of the data split, the first model and the order of the examples.
        plot: File for the plot (the suffix selects the format); ``None`` draws nothing.
        quiet: Print nothing.

    Raises:
        ImportError: A package of the ``demo`` extra is missing.
        ValueError: ``rounds`` or ``clients`` is out of range.
        FileNotFoundError: The folder for the plot does not exist.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    if not 3 <= clients <= 100:
        raise ValueError(f"clients must be from 3 to 100, got {clients}")
    packages = ["rich", "sklearn"] + (["matplotlib"] if plot is not None else [])
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        hint = 'install them with: pip install "resfed-codec[demo]"'
        raise ImportError(f"the demo needs extra packages ({', '.join(missing)}); {hint}")
    if plot is not None and not plot.parent.is_dir():
        raise FileNotFoundError(f"no such folder for the plot: {plot.parent}")

    from rich.console import Console
    from rich.progress import track
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    start = time.perf_counter()
    rng = np.random.default_rng(seed)
    data = _load_digits(rng)
    shards = _split(data.labels, clients, rng)
    model = _first_model(data.images.shape[1], rng)

    console = Console(quiet=quiet)
    training = track(
        _federate(rounds, sparsity, seed, data, shards, model),
        "Training with and without the codec",
        total=rounds,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    # The matrices are small: more BLAS threads only wait for each other.
    with threadpool_limits(limits=1, user_api="blas"):
        results = tuple(training)
    demo = DemoResult(
        rounds=results,
        clients=clients,
        sparsity=sparsity,
        seed=seed,
        parameters=sum(a.size for a in model.values()),
        test_images=len(data.test_labels),
        plot=plot,
        seconds=time.perf_counter() - start,
    )
    _print_report(demo, console)
    if plot is not None:
        _save_plot(demo, plot)
        console.print(f"Plot saved to {plot}", highlight=False, markup=False, soft_wrap=True)
    return demo


def _federate(
    rounds: int,
    sparsity: float,
    seed: int,
    data: _Data,
    shards: list[NDArray[np.int64]],
    model: State,
) -> Iterator[RoundResult]:
    """Run both trainings and yield after every round. ``shards`` index ``data.images``."""
    uplink = rfc.CodecConfig(sparsity=sparsity, error_feedback=True)
    downlink = rfc.CodecConfig(sparsity=sparsity)
    server = rfc.ServerSession(model, uplink, downlink)
    sessions = [rfc.ClientSession(model, uplink, downlink) for _ in shards]
    held = [model for _ in shards]  # the model that each client trains from
    plain = model  # the global model of the uncompressed run
    examples = sum(len(shard) for shard in shards)
    plain_bytes = len(shards) * sum(a.nbytes for a in model.values())

    for number in range(1, rounds + 1):
        bytes_up = bytes_down = 0
        next_plain = plain
        mean = server.aggregator()
        for client, shard in enumerate(shards):
            # Both runs see the examples in the same order.
            order = np.random.default_rng([seed, number, client]).permutation(shard)
            images, labels = data.images[order], data.labels[order]

            payload = sessions[client].send(_train(held[client], images, labels))
            bytes_up += len(payload)
            server.receive_into(client, payload, mean, weight=len(shard))

            local = _train(plain, images, labels)
            next_plain = _add(next_plain, _add(local, plain, -1), len(shard) / examples)

        model = _add(model, _add(mean.result(), server.state, -1))
        server.update(model)
        for client, session in enumerate(sessions):
            message = server.send(client)
            bytes_down += len(message)
            held[client] = session.receive(message)
        plain = next_plain
        yield RoundResult(
            number=number,
            accuracy=_accuracy(held[0], data),
            plain_accuracy=_accuracy(plain, data),
            bytes_up=bytes_up,
            bytes_down=bytes_down,
            plain_bytes=plain_bytes,
        )


def _add(a: State, b: State, scale: float = 1) -> State:
    """Return ``a + scale * b``, array by array."""
    return {name: a[name] + np.float32(scale) * b[name] for name in a}


@dataclass(frozen=True)
class _Data:
    """Images are float32 ``(n, 64)`` from 0 to 1, labels int64 ``(n,)``."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.int64]


def _load_digits(rng: np.random.Generator) -> _Data:
    """Load scikit-learn's digits and hold out a fifth of them for the test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = rng.permutation(len(digits.target))
    images = (digits.data[order] / 16).astype(np.float32)
    labels = digits.target[order].astype(np.int64)
    test = len(labels) // 5
    return _Data(images[test:], labels[test:], images[:test], labels[:test])


def _split(
    labels: NDArray[np.int64], clients: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Give every client examples of four classes only. Returns one index array per client."""
    classes = rng.permutation(CLASSES)
    first = [client * CLASSES // clients for client in range(clients)]
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(clients)]
    for i, label in enumerate(classes):
        owners = [c for c in range(clients) if (i - first[c]) % CLASSES < CLASSES_PER_CLIENT]
        pieces = np.array_split(np.flatnonzero(labels == label), len(owners))
        for owner, piece in zip(owners, pieces, strict=True):
            parts[owner].append(piece)
    return [np.concatenate(part) for part in parts]


def _first_model(inputs: int, rng: np.random.Generator) -> State:
    """Return a two-layer network, float32, with He initialisation."""
    w1 = rng.standard_normal((inputs, HIDDEN)) * np.sqrt(2 / inputs)
    w2 = rng.standard_normal((HIDDEN, CLASSES)) * np.sqrt(2 / HIDDEN)
    return {
        "hidden.weight": w1.astype(np.float32),
        "hidden.bias": np.zeros(HIDDEN, np.float32),
        "output.weight": w2.astype(np.float32),
        "output.bias": np.zeros(CLASSES, np.float32),
    }


def _forward(
    model: State, images: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the hidden activations ``(n, HIDDEN)`` and the logits ``(n, CLASSES)``, float32."""
    hidden = np.maximum(images @ model["hidden.weight"] + model["hidden.bias"], 0)
    return hidden, hidden @ model["output.weight"] + model["output.bias"]


def _gradient(model: State, images: NDArray[np.float32], labels: NDArray[np.int64]) -> State:
    """Return the gradient of the mean softmax cross-entropy over one batch."""
    hidden, logits = _forward(model, images)
    error = np.exp(logits - logits.max(axis=1, keepdims=True))
    error /= error.sum(axis=1, keepdims=True)
    error[np.arange(len(labels)), labels] -= 1
    error /= np.float32(len(labels))
    back = (error @ model["output.weight"].T) * (hidden > 0)
    return {
        "hidden.weight": images.T @ back,
        "hidden.bias": back.sum(axis=0),
        "output.weight": hidden.T @ error,
        "output.bias": error.sum(axis=0),
    }


def _train(model: State, images: NDArray[np.float32], labels: NDArray[np.int64]) -> State:
    """Return a copy of the model after one epoch of SGD with momentum, in the order given."""
    model = {name: a.copy() for name, a in model.items()}
    velocity = {name: np.zeros_like(a) for name, a in model.items()}
    for i in range(0, len(labels), BATCH):
        gradient = _gradient(model, images[i : i + BATCH], labels[i : i + BATCH])
        for name, v in velocity.items():
            v *= MOMENTUM
            v += gradient[name]
            model[name] -= LEARNING_RATE * v
    return model


def _accuracy(model: State, data: _Data) -> float:
    """Return the share of test images that the model classifies correctly."""
    _, logits = _forward(model, data.test_images)
    return float(np.mean(logits.argmax(axis=1) == data.test_labels))


def _print_report(demo: DemoResult, console: Console) -> None:
    """Print one row per round, then the totals. Fits 80 columns."""
    from rich.table import Table

    table = Table(
        title=f"{demo.clients} clients, {demo.parameters:,} parameters, sparsity {demo.sparsity}",
        caption="kB: mean per client, 1 kB = 1000 bytes. Raw: float32 models, no codec.",
    )
    for heading in ("Round", "Accuracy\nraw", "Accuracy\ncodec", "kB each\nway, raw"):
        table.add_column(heading, justify="right")
    for heading in ("kB up,\ncodec", "kB down,\ncodec", "Times\nsmaller"):
        table.add_column(heading, justify="right")
    scale = 1000 * demo.clients
    for r in demo.rounds:
        accuracies = (f"{a:.1%}" for a in (r.plain_accuracy, r.accuracy))
        sizes = (f"{n / scale:.2f}" for n in (r.plain_bytes, r.bytes_up, r.bytes_down))
        table.add_row(str(r.number), *accuracies, *sizes, f"{r.ratio:.0f}x")
    console.print(table)

    total = demo.total
    both = total.bytes_up + total.bytes_down
    lines: list[tuple[str, float | None, float | None]] = [
        ("Clients to server", total.plain_bytes / 1e6, total.bytes_up / 1e6),
        ("Server to clients", total.plain_bytes / 1e6, total.bytes_down / 1e6),
        ("Both directions", 2 * total.plain_bytes / 1e6, both / 1e6),
        (
            f"Both, to reach {TARGET:.0%} accuracy",
            demo.megabytes_until(TARGET, compressed=False),
            demo.megabytes_until(TARGET, compressed=True),
        ),
    ]
    table = Table(
        title=f"Total of {demo.clients} clients, rounds: {len(demo.rounds)}",
        caption=f"{demo.test_images} test images; both trainings took {demo.seconds:.0f} s",
    )
    table.add_column("")
    for heading in ("Raw models", "Codec", "Times smaller"):
        table.add_column(heading, justify="right")
    for label, raw, sent in lines:
        cells = ("not reached" if mb is None else f"{mb:.2f} MB" for mb in (raw, sent))
        table.add_row(label, *cells, f"{raw / sent:.0f}x" if raw and sent else "-")
    table.add_section()
    table.add_row("Final test accuracy", f"{total.plain_accuracy:.1%}", f"{total.accuracy:.1%}")
    console.print(table)


def _save_plot(demo: DemoResult, path: Path) -> None:
    """Draw test accuracy over the megabytes sent so far, for both runs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, PercentFormatter

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")  # no pyplot, so no display
    axes = figure.subplots()
    for compressed, color, name in ((True, "#0072b2", "resfed-codec"), (False, "#d55e00", "raw")):
        megabytes, accuracy = demo.curve(compressed=compressed)
        label = f"{name}: {megabytes[-1]:.3g} MB, {accuracy[-1]:.1%}"
        axes.plot(megabytes, accuracy, "o-", color=color, markersize=3.5, label=label)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda mb, _: f"{mb:g}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("Sent so far, up and down, all clients together (MB, log scale)")
    axes.set_ylabel("Test accuracy")
    axes.set_title(
        f"{demo.total.ratio:.0f} times fewer bytes: {len(demo.rounds)} rounds, "
        f"{demo.clients} clients with {CLASSES_PER_CLIENT} of {CLASSES} classes each"
    )
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", title="Total sent, final accuracy", framealpha=1)
    figure.savefig(path)
