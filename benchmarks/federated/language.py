"""Clients that train language models: AdamW on bytes of their sections of a text."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.federated.config import RunConfig
from benchmarks.federated.gpt import ADAPTERS, SIZES, Gpt, add_adapters, build_gpt
from benchmarks.federated.methods.base import State
from benchmarks.federated.text import Bytes, Text, load_text
from benchmarks.federated.train import PRECISIONS

BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
MAX_NORM = 1.0  # of a gradient
WARMUP = 0.05  # share of all steps
LEAST_RATE = 0.1  # the cosine's end, as a share of the peak rate

TEST_SEQUENCES = 256
TEST_BATCH = 32

BASE_STEPS = {"gpt": 800, "gpt_small": 800, "gpt_tiny": 50}
BASE_BATCH, BASE_RATE = 16, 1e-3
"""Training of the model below the adapters, on the text "python"."""

OPTIMIZERS = ("adamw", "adamw_kept")

Moments = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""AdamW's two means by the name of the parameter."""


class TextClients:
    """Each client has a section of the text, all of equal length, and trains ``steps`` steps.

    A step takes ``batch`` sequences from random positions. The learning rate rises linearly and
    falls as a cosine over the steps of all rounds. With the optimizer "adamw", AdamW's means start
    at 0 in every round; with "adamw_kept" each client keeps its own.

    The model is a whole GPT. If its name ends in ``_lora``, it consists of adapters for a GPT
    trained on the text "python" (:func:`base_model`), which all ends have and which is not sent.

    The results do not depend on the number of threads.
    """

    def __init__(self, config: RunConfig, text: Text, *, device: str, threads: int) -> None:
        if config.optimizer not in OPTIMIZERS or not config.steps:
            raise ValueError(f"text: the optimizer must be one of {OPTIMIZERS}, and steps above 0")
        if config.split != "parts":
            raise ValueError(f"split {config.split!r}: must be parts for a text")
        if config.precision not in PRECISIONS:
            raise ValueError(f"precision {config.precision!r}: must be one of {PRECISIONS}")
        self._config, self._device = config, torch.device(device)
        self._text = text.subset(config.images, config.test_images)
        self._parts = np.array_split(self._text.train, config.clients)
        self.weights = [len(part) for part in self._parts]
        name = config.model.removesuffix(ADAPTERS)
        self._about = {"text": self._text.digest}
        if name == config.model:
            model = build_gpt(name, config.seed)
        else:
            model = base_model(name, config.precision)
            self._about["base"] = _digest(model)
            add_adapters(model, config.seed)
        self._context = SIZES[name].context
        self._names = [name for name, p in model.named_parameters() if p.requires_grad]
        self._first = _numbers(model, self._names)
        self._idle: SimpleQueue[Gpt] = SimpleQueue()
        for _ in range(threads):
            self._idle.put(deepcopy(model).to(self._device))
        self._pool = ThreadPoolExecutor(threads)
        self._moments: list[Moments | None] = [None] * config.clients

    def about(self) -> dict[str, Any]:
        return self._about

    def state(self) -> State:
        return {name: value.copy() for name, value in self._first.items()}

    def memory(self) -> list[Moments | None]:
        return self._moments

    def remember(self, memory: list[Moments | None]) -> None:
        self._moments = memory

    @contextmanager
    def _model(self, state: State) -> Iterator[Gpt]:
        """Borrow a network exclusively, with the parameters of ``state``."""
        model = self._idle.get()
        try:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if parameter.requires_grad:
                        parameter.copy_(torch.from_numpy(state[name]))
            yield model
        finally:
            self._idle.put(model)

    def train(self, number: int, held: Sequence[State]) -> Iterator[State]:
        return self._pool.map(
            lambda client: self._local(number, client, held[client]), range(len(held))
        )

    def _local(self, number: int, client: int, state: State) -> State:
        config = self._config
        rng = np.random.default_rng([config.seed, number, client])
        done = (number - 1) * config.steps
        rates = [
            config.lr * rate_at(done + i, config.rounds * config.steps) for i in range(config.steps)
        ]
        batches = (
            draw(self._parts[client], config.batch, self._context, rng).to(self._device)
            for _ in rates
        )
        keeps = config.optimizer == "adamw_kept"
        with self._model(state) as model:
            moments = _adamw(
                model,
                batches,
                rates,
                bf16=config.precision == "bf16",
                moments=self._moments[client],
                steps_before=done if keeps else 0,
            )
            if keeps:
                self._moments[client] = moments
            return _numbers(model, self._names)

    def test(self, state: State) -> dict[str, float]:
        """The mean cross-entropy in nats per byte, over sequences evenly spread over the test."""
        last = len(self._text.test) - self._context - 1
        starts = np.unique(np.linspace(0, last, TEST_SEQUENCES).astype(np.int64))
        parts = np.array_split(starts, math.ceil(len(starts) / TEST_BATCH))
        total = sum(self._pool.map(lambda part: self._sum_of_losses(state, part), parts))
        return {"loss": total / (len(starts) * self._context)}

    def _sum_of_losses(self, state: State, starts: NDArray[np.int64]) -> float:
        bf16 = self._config.precision == "bf16"
        sequences = cut(self._text.test, starts, self._context).to(self._device)
        with self._model(state) as model, torch.inference_mode():
            return float(_loss(model, sequences, bf16=bf16)) * len(starts) * self._context


def rate_at(step: int, steps: int) -> float:
    """The learning rate's factor: linear up, then a cosine down."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    cosine = 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup))
    return LEAST_RATE + (1 - LEAST_RATE) * cosine


def cut(text: Bytes, starts: NDArray[np.int64], context: int) -> torch.Tensor:
    """Sequences of ``context`` + 1 bytes, int64 ``(len(starts), context + 1)``."""
    places = starts[:, None] + np.arange(context + 1)
    return torch.from_numpy(text[places].astype(np.int64))


def draw(text: Bytes, batch: int, context: int, rng: np.random.Generator) -> torch.Tensor:
    """The same from random positions."""
    return cut(text, rng.integers(0, len(text) - context, batch), context)


def _loss(model: Gpt, sequences: torch.Tensor, *, bf16: bool) -> torch.Tensor:
    # Without a cache: threads would share it.
    with torch.autocast(sequences.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
        logits = model(sequences[:, :-1])
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), sequences[:, 1:].flatten())


def _adamw(
    model: Gpt,
    batches: Iterator[torch.Tensor],
    rates: Sequence[float],
    *,
    bf16: bool,
    moments: Moments | None = None,
    steps_before: int = 0,
) -> Moments:
    """A step for each rate, with weight decay only for matrices. Returns the final means."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = [
        {"params": [p for p in trained.values() if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in trained.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], betas=BETAS)
    for name, (first, second) in (moments or {}).items():
        optimizer.state[trained[name]] = {
            "step": torch.tensor(float(steps_before)),
            "exp_avg": first.clone(),
            "exp_avg_sq": second.clone(),
        }
    for rate, batch in zip(rates, batches, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        _loss(model, batch, bf16=bf16).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained.values(), MAX_NORM)
        optimizer.step()
    states = {name: optimizer.state[p] for name, p in trained.items()}
    return {name: (state["exp_avg"], state["exp_avg_sq"]) for name, state in states.items()}


def base_model(name: str, precision: str) -> Gpt:
    """The GPT below the adapters; trained once and stored in the user's cache."""
    text = load_text("python")
    steps = BASE_STEPS[name]
    model = build_gpt(name, seed=0)
    hyperparameters = (SIZES[name], steps, BASE_BATCH, BASE_RATE, BETAS, precision)
    settings = (*hyperparameters, text.digest, torch.__version__)
    key = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
    root = os.environ.get("XDG_CACHE_HOME") or tempfile.gettempdir()
    cache = Path(root) / "resfed_benchmarks" / f"{name}_{key}.npz"
    if not cache.exists():
        rng = np.random.default_rng(0)
        context = SIZES[name].context
        rates = [BASE_RATE * rate_at(i, steps) for i in range(steps)]
        batches = (draw(text.train, BASE_BATCH, context, rng) for _ in rates)
        _adamw(model, batches, rates, bf16=precision == "bf16")
        cache.parent.mkdir(parents=True, exist_ok=True)
        unfinished = cache.with_suffix(f".{os.getpid()}.npz")
        np.savez(unfinished, **_numbers(model, list(model.state_dict())))  # type: ignore[arg-type]
        unfinished.replace(cache)
    with np.load(cache) as file:
        model.load_state_dict({key: torch.from_numpy(file[key]) for key in file.files})
    return model


def _numbers(model: Gpt, names: list[str]) -> State:
    parameters = model.state_dict()
    return {name: parameters[name].detach().cpu().numpy().copy() for name in names}


def _digest(model: Gpt) -> str:
    whole = _numbers(model, list(model.state_dict()))
    return hashlib.sha256(b"".join(value.tobytes() for value in whole.values())).hexdigest()[:16]
