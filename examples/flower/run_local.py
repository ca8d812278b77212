"""Run the example on this machine: Flower's SuperLink and SuperNodes, over loopback.

    python examples/flower/run_local.py
    python examples/flower/run_local.py --kill 2 3   # kill SuperNode 2 in round 3, and restart it
    python examples/flower/run_local.py --plain      # the app without the codec

Needs ``pip install 'resfed-codec[flower]' scikit-learn``. Prints the results as JSON. SuperNodes
connect to the SuperLink through a proxy that counts the bytes on its sockets.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

APP = Path(__file__).parent
DOCS = APP.parents[1] / "docs" / "integrations.md"
N_CLIENTS = 3
BIN = Path(sys.executable).parent


def run(
    app: Path = APP,
    *,
    kill: tuple[int, int] | None = None,
    n_rounds: int = 5,
    timeout_s: float = 30.0,
    limit_s: float = 400.0,
) -> dict[str, Any]:
    """The app's run on three SuperNodes.

    Args:
        app: The folder of a Flower app that prints a JSON object at the end.
        kill: The SuperNode to kill and the round, while it processes the training message. It
            restarts at once.
        n_rounds: Rounds of the run.
        timeout_s: How long the server waits for replies.
        limit_s: Time limit of the run.

    Returns:
        The app's output, and ``message_bytes``: by SuperNode, pairs of incoming and outgoing
        message sizes as Flower's ``message_size_mod`` logs them; ``socket_bytes``: all bytes
        between SuperNodes and SuperLink, up and down; ``seconds``.

    Raises:
        RuntimeError: The run failed; the message has the end of its logs.
        subprocess.TimeoutExpired: It took longer than ``limit_s``.
    """
    with engine() as link:
        start = time.monotonic()
        nodes = [link.start_node(i) for i in range(N_CLIENTS)]
        config = f"num-clients={N_CLIENTS} num-rounds={n_rounds} timeout={timeout_s}"
        command = "flwr", "run", str(app), "loop", "--stream", "--run-config", config
        flwr_run = link.start("run", *command)
        if kill is not None:
            partition, number = kill
            log = link.log(f"node{partition}")
            while len(re.findall("Receiving: train message", log.read_text())) < number:
                if flwr_run.poll() is not None or time.monotonic() > start + limit_s:
                    break
                time.sleep(0.05)
            stop(nodes[partition])
            link.start_node(partition, "again")
        flwr_run.wait(max(1.0, start + limit_s - time.monotonic()))
        seconds = time.monotonic() - start
        output = link.log("run").read_text()
        logs = {log.stem: log.read_text() for log in sorted(link.home.glob("node*.log"))}
        results = [line for line in output.splitlines() if line.startswith("{")]
        if not results:
            ends = "\n".join(text[-1500:] for text in [output, *logs.values()])
            raise RuntimeError(f"the run has failed:\n{ends}")
        return {
            **json.loads(results[-1]),
            "message_bytes": {name: message_sizes(text) for name, text in logs.items()},
            "socket_bytes": {"up": link.proxy.n_up, "down": link.proxy.n_down},
            "seconds": round(seconds, 1),
        }


def plain_copy(folder: Path) -> Path:
    """A copy of the app without the codec, made by reverting the diff in docs/integrations.md."""
    app = folder / "flower"
    shutil.copytree(APP, app, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["git", "apply", "-R", "-"], input=codec_diff(), text=True, cwd=app, check=True)
    return app


def codec_diff() -> str:
    """The diff in docs/integrations.md that adds the codec to the app."""
    diffs = re.findall(r"^```diff\n(.*?)^```", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    return next(diff for diff in diffs if "digits/server_app.py" in diff)


@dataclass
class Link:
    """A running SuperLink behind a proxy.

    Attributes:
        home: A folder for logs and Flower's own files.
        proxy: The address for SuperNodes.
    """

    home: Path
    stack: ExitStack
    proxy: CountingProxy

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a process that logs to a file and ends with the SuperLink at the latest."""
        return self.stack.enter_context(started(self.home, self.log(name), *command))

    def start_node(self, partition: int, suffix: str = "") -> subprocess.Popen[bytes]:
        """Start a SuperNode."""
        return self.start(
            f"node{partition}{suffix}",
            *("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{self.proxy.port}"),
            *("--host", "127.0.0.1", "--port", str(free_port())),
            *("--node-config", f"partition-id={partition}"),
        )

    def log(self, name: str) -> Path:
        return self.home / f"{name}.log"


@contextmanager
def engine() -> Iterator[Link]:
    """Run Flower's SuperLink on loopback; stops all processes at the end."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = free_port()
        (home / "config.toml").write_text(
            f'[superlink.loop]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        command = "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)
        stack.enter_context(started(home, home / "superlink.log", *command))
        wait_for_port(port)
        yield Link(home, stack, stack.enter_context(CountingProxy(port)))


def message_sizes(log: str) -> list[tuple[int, int]]:
    """Pairs of incoming and outgoing message sizes, in bytes."""
    sizes = re.findall(r"(Incoming|Outgoing) message size: (\d+) bytes", log)
    incoming = [int(size) for way, size in sizes if way == "Incoming"]
    outgoing = [int(size) for way, size in sizes if way == "Outgoing"]
    return list(zip(incoming, outgoing, strict=False))


@contextmanager
def started(home: Path, log: Path, name: str, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process of Flower; kills it and its children at the end."""
    env = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [BIN / name, *args],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and its children."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int, seconds: float = 60.0) -> None:
    """Wait until a process listens on the port."""
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


class CountingProxy:
    """Forwards TCP connections on loopback and counts their bytes.

    Attributes:
        port: The port on which it listens.
        n_up, n_down: Bytes from and to the processes that connect.
    """

    def __init__(self, target_port: int) -> None:
        self.n_up = self.n_down = 0
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> CountingProxy:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _start(self, target: Callable[..., None], *args: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=args, daemon=True)
        thread.start()
        self._threads.append(thread)
        return thread

    def _accept(self) -> None:
        with suppress(OSError):  # the listener has been shut down
            while True:
                self._start(self._serve, self._listener.accept()[0])

    def _serve(self, near: socket.socket) -> None:
        with near, socket.create_connection(("127.0.0.1", self._target_port)) as far:
            back = self._start(self._forward, far, near, False)
            self._forward(near, far, True)
            back.join()

    def _forward(self, source: socket.socket, target: socket.socket, up: bool) -> None:
        with suppress(OSError):  # one of the two ends was killed
            while data := source.recv(1 << 16):
                with self._lock:
                    self.n_up += len(data) * up
                    self.n_down += len(data) * (not up)
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kill", nargs=2, type=int, metavar=("NODE", "ROUND"))
    parser.add_argument("--plain", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        app = plain_copy(Path(folder)) if args.plain else APP
        print(json.dumps(run(app, kill=args.kill and tuple(args.kill)), indent=1))


if __name__ == "__main__":
    main()
