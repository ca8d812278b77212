"""The Flower example on Flower's engine, with and without the codec: bytes and accuracy.

Flower's message_size_mod counts message bytes. Socket bytes are those of the TCP connections
between three SuperNodes and the SuperLink, over loopback. Takes about ten minutes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import write_results

EXAMPLE = Path(__file__).parents[1] / "examples" / "flower"
sys.path.insert(0, str(EXAMPLE))

import one_process  # noqa: E402
import run_local  # noqa: E402

KILL = (2, 3)
IDLE_SECONDS = 30.0
KINDS = ("train, down", "train, up", "evaluate, down", "evaluate, up")


def keyframe_copy(folder: Path, options: str = "") -> Path:
    """A copy of the app whose clients do not make the first model themselves."""
    app: Path = run_local.plain_copy(folder)
    for name in ("client_app.py", "server_app.py"):
        text = (EXAMPLE / "digits" / name).read_text()
        for old, new in (
            ("CodecMod(task.first_model)", "codec_mod"),
            ("import CodecMod", "import codec_mod"),
            (", shared_initial=True", options),
        ):
            text = text.replace(old, new)
        (app / "digits" / name).write_text(text)
    return app


def idle_bytes_per_second() -> float:
    """Traffic of three idle SuperNodes and a SuperLink."""
    with run_local.engine() as link:
        for i in range(run_local.N_CLIENTS):
            link.start_node(i)
        time.sleep(10)
        before = link.proxy.n_up + link.proxy.n_down
        time.sleep(IDLE_SECONDS)
        return float(link.proxy.n_up + link.proxy.n_down - before) / IDLE_SECONDS


def message_rows(name: str, report: dict[str, Any]) -> list[dict[str, Any]]:
    """A client's message sizes by kind: the first round, and the mean of the others."""
    flat = [size for pair in report["message_bytes"]["node0"] for size in pair]
    by_kind = {kind: flat[i :: len(KINDS)] for i, kind in enumerate(KINDS)}
    return [
        {
            "run": name,
            "message": kind,
            "first round": sizes[0],
            "later rounds, mean": round(sum(sizes[1:]) / len(sizes[1:])),
        }
        for kind, sizes in by_kind.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--timeout", type=float, default=30, help="seconds to wait for replies")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plain_app = run_local.plain_copy(Path(folder) / "plain")
        keyframe_app = keyframe_copy(Path(folder) / "keyframe")
        rounded_app = keyframe_copy(Path(folder) / "rounded", ", initial_bits=7")
        limits = {"timeout_s": args.timeout, "limit_s": 60 * args.timeout}
        reports = {
            "plain": run_local.run(plain_app, **limits),
            "codec": run_local.run(**limits),
            "codec, first model sent": run_local.run(keyframe_app, **limits),
            "codec, first model sent with initial_bits=7": run_local.run(rounded_app, **limits),
            "codec, a SuperNode killed": run_local.run(kill=KILL, **limits),
        }
    alone = {
        "codec": one_process.run(),
        "codec, first model sent": one_process.run(),
        "codec, first model sent with initial_bits=7": one_process.run(initial_bits=7),
        "codec, a SuperNode killed": one_process.run(lost={KILL}),
    }
    idle = idle_bytes_per_second()
    rows, details = [], []
    for name, report in reports.items():
        messages, sockets = totals(report)
        plain_messages, plain_sockets = totals(reports["plain"])
        equal = "-"
        if name in alone:
            equal = "yes" if report["model"] == alone[name]["model"] else "no"
        rows.append(
            {
                "run": name,
                "final accuracy": report["accuracies"][-1],
                "as in one process, bit for bit": equal,
                "message bytes": messages,
                "messages, plain over this": plain_messages / messages,
                "socket bytes": sockets,
                "sockets, plain over this": plain_sockets / sockets,
                "seconds": report["seconds"],
            }
        )
        details += message_rows(name, report)
    note = (
        "Five rounds of training and evaluation on three SuperNodes; a network of 1,005,240"
        " parameters, sparsity 0.99. Bytes are those of all clients and rounds, both directions."
        f" Idle SuperNodes and SuperLink exchange {idle:.0f} bytes a second, which socket bytes"
        " contain."
    )
    print(write_results("integrations_flower", "Flower, real engine", rows, note))
    title = "Flower, real engine: message bytes of one client"
    print(write_results("integrations_flower_messages", title, details))


def totals(report: dict[str, Any]) -> tuple[int, int]:
    """Message bytes and socket bytes of a run."""
    messages = sum(sum(map(sum, pairs)) for pairs in report["message_bytes"].values())
    return messages, sum(report["socket_bytes"].values())


if __name__ == "__main__":
    main()
