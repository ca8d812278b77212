"""Several trainings, some in parallel, with one progress bar."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from functools import lru_cache
from multiprocessing import get_context, parent_process
from multiprocessing.managers import SyncManager
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.federated.config import RunConfig
from benchmarks.federated.data import Data, load
from benchmarks.federated.runner import is_finished, run
from benchmarks.federated.runs import Line
from benchmarks.federated.text import TEXTS, Text, load_text


@lru_cache(maxsize=1)
def _data(name: str, folder: Path | None) -> Data | Text:
    return load_text(name) if name in TEXTS else load(name, folder)


def _end_with_parent() -> None:
    """End this process as soon as its parent process has ended.

    Otherwise it would continue to train and write to the file of a restarted command.
    """

    def watch() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _work(
    config: RunConfig,
    folder: Path | None,
    out: Path,
    stamp: dict[str, str],
    queue: Queue[tuple[RunConfig, Line]],
    **options: Any,
) -> bool:
    """Run one training; the process may run several in sequence."""
    torch.set_num_threads(1)  # parallel clients instead: they do not wait for each other
    data = _data(config.data, folder)
    return run(config, data, out, stamp, on_round=lambda x: queue.put((config, x)), **options)


def run_all(
    configs: list[RunConfig],
    out: Path,
    folder: Path | None,
    stamp: dict[str, str],
    *,
    jobs: int,
    threads: int,
    device: str,
    deadline: float,
) -> int:
    """Run the trainings that are not finished in ``out``, in order, ``jobs`` in parallel.

    Returns:
        The number of finished ``configs``.
    """
    todo = [c for c in configs if not is_finished(out, c)]
    if not todo:
        return len(configs)
    for name in {config.data for config in todo}:
        _data(name, folder)  # raises errors early, and fills the cache
    context = get_context("spawn")
    manager = SyncManager(ctx=context)
    manager.start(_end_with_parent)
    with (
        manager,
        ProcessPoolExecutor(jobs, context, _end_with_parent) as pool,
        tqdm(total=sum(c.rounds for c in todo), unit="round", dynamic_ncols=True) as bar,
    ):
        queue = manager.Queue()
        options = {"device": device, "threads": threads, "deadline": deadline}
        futures = [pool.submit(_work, c, folder, out, stamp, queue, **options) for c in todo]
        totals: dict[str, list[float]] = {}
        while wait_for(futures, timeout=0).not_done or not queue.empty():
            try:
                config, line = queue.get(timeout=0.5)
            except Empty:
                continue
            _show(bar, config, line, totals.setdefault(config.id, [0.0, 0.0]))
        return len(configs) - len(todo) + sum(future.result() for future in futures)


def _show(bar: tqdm[Any], config: RunConfig, line: Line, total: list[float]) -> None:
    """Advance the bar and show accuracy and cumulative megabytes per client."""
    for i, direction in enumerate(("up", "down")):
        total[i] += line[direction] / config.clients / 1e6
    text = f"accuracy {line['accuracy']:.1%}" if "accuracy" in line else f"loss {line['loss']:.4f}"
    text += f", {total[0]:.3f} MB up, {total[1]:.3f} MB down per client"
    bar.set_postfix_str(text)
    bar.update()
    if line["round"] == config.rounds:
        bar.write(f"{config.name}, seed {config.seed}: {text}")
