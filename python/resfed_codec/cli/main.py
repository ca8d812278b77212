"""The command line ``resfed-codec``: encode, decode and inspect files, benchmark, run the demo."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from inspect import cleandoc
from pathlib import Path
from typing import Literal, TypeAlias

import resfed_codec as rfc
from resfed_codec.cli import bench, commands
from resfed_codec.config import DEFAULT_DENSE_BITS, DEFAULT_SPARSITY, MIN_ELEMENTS

Command: TypeAlias = "Callable[[argparse.Namespace], str]"

FAILED, INTERRUPTED, BROKEN_PIPE = 1, 130, 141
"""Exit codes. 0 is success; argparse uses 2 for wrong usage."""

DESCRIPTION = """\
Compression codec for federated learning.

Sender and receiver hold the same reference model. "encode" writes the
difference between a new model and the reference as a small payload. "decode"
recovers the new model from the payload and the reference, as closely as the
options of "encode" ask. A model is a .safetensors file, or a sharded one: a
folder of such files, or its .safetensors.index.json. "-" is standard input or
output.
"""

EPILOG = """\
exit codes:
  0    success
  1    the operation failed: file unreadable or corrupt, payload encoded
       against another reference, value out of range, package missing, disk
       full, ...; one line on standard error gives the reason
  2    wrong usage: unknown option, argument missing or not a number, ...
  130  interrupted with Ctrl-C
  141  the reader of standard output closed the pipe

Output files are written atomically: after an error or Ctrl-C an existing file
is unchanged, and no input is ever written over. (The demo writes its plot
directly.) Reports and warnings go to standard error.

example:
  resfed-codec encode new.safetensors --reference old.safetensors -o update.rfd
  resfed-codec inspect update.rfd
  resfed-codec decode update.rfd --reference old.safetensors -o new.safetensors
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: The arguments without the program's name; default ``sys.argv[1:]``.
    """
    try:
        code = _run(argv)
        sys.stdout.flush()  # here a failure can still be reported
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:  # standard output cannot be written to
        _discard_stdout()
        return BROKEN_PIPE if isinstance(error, BrokenPipeError) else _fail(error)
    return code


def _run(argv: Sequence[str] | None) -> int:
    try:
        args = _parser().parse_args(argv, argparse.Namespace(threads=None))
    except SystemExit as stop:  # after --help, --version (0) or a usage error (2)
        return stop.code if isinstance(stop.code, int) else 0
    try:
        if args.threads is not None:
            _set_threads(args.threads)
        with _shown_warnings():
            text: str = args.command(args)
    except BrokenPipeError:
        raise
    except (OSError, ValueError, ImportError, MemoryError) as error:
        return _fail(error)
    if text:
        print(text)
    return 0


def _fail(error: Exception) -> int:
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, MemoryError):
        text = "out of memory"
    else:
        text = str(error)
    print(f"resfed-codec: error: {' '.join(text.splitlines())}", file=sys.stderr)
    return FAILED


@contextlib.contextmanager
def _shown_warnings() -> Iterator[None]:
    """A context in which warnings are lines on standard error, without a place in the code."""

    def show(message: Warning | str, category: type[Warning], *_: object) -> None:
        if issubclass(category, UserWarning):
            commands.report(f"resfed-codec: warning: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _discard_stdout() -> None:
    """Redirect standard output to null, so that the interpreter's flush at exit cannot fail."""
    with contextlib.suppress(OSError):  # fileno() raises it if stdout is not a real file
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="resfed-codec",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-V", "--version", action="version", version=f"%(prog)s {rfc.__version__}")
    _add_threads(parser)
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, help: str, command: Command) -> argparse.ArgumentParser:
        description, example, lines = cleandoc(command.__doc__ or "").partition("example:\n")
        p = subparsers.add_parser(
            name,
            help=help,
            description=description,
            epilog=example + lines,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        p.set_defaults(command=command)
        return p

    p = add("encode", "encode a model as a payload", commands.encode_command)
    p.add_argument("new", metavar="NEW", type=Path, help="model to encode")
    _add_reference(p, "model that the receiver holds too")
    _add_output(p, "payload to write (.rfd)")
    target = p.add_mutually_exclusive_group()
    target.add_argument(
        "--sparsity",
        metavar="S",
        type=float,
        help="fraction of the parameters that keep the reference's values, from 0 to 1"
        f" (default: {DEFAULT_SPARSITY}, but at least {MIN_ELEMENTS:,} parameters are sent)",
    )
    target.add_argument("--max-bytes", metavar="N", type=int, help="limit the payload to N bytes")
    target.add_argument(
        "--max-error",
        metavar="E",
        type=float,
        help="send the fewest parameters that keep the relative L2 error, norm(NEW - decoded) /"
        " norm(NEW - OLD), at or below E; above 0, at most 1",
    )
    step = p.add_mutually_exclusive_group()
    step.add_argument(
        "--step",
        metavar="auto|RATIO",
        type=_step,
        default="auto",
        help="ratio of the smallest magnitude sent to the quantizer step, from 1/1024 to 1024;"
        " larger is finer (default: auto)",
    )
    step.add_argument(
        "--bits",
        metavar="B",
        type=int,
        help="instead of --step: bits of a quantized value before entropy coding, including the"
        " sign, 1 to 16",
    )
    p.add_argument(
        "--exclude",
        metavar="PATTERN",
        action="append",
        default=[],
        help="code tensors of this name without loss; * and ? are wildcards (quote them); may be"
        " given several times",
    )
    dense = p.add_mutually_exclusive_group()
    dense.add_argument(
        "--dense",
        metavar="PATTERN",
        action="append",
        help="send every element of tensors of this name, quantized; may be given several times"
        " (default: running statistics and similar buffers, by name)",
    )
    dense.add_argument(
        "--no-dense",
        dest="dense",
        action="store_const",
        const=[],
        help="treat running statistics as parameters",
    )
    p.add_argument(
        "--dense-bits",
        metavar="B",
        type=int,
        default=DEFAULT_DENSE_BITS,
        help="bits per element of dense tensors, 2 to 12 (default: %(default)s)",
    )
    p.add_argument("--quiet", action="store_true", help="do not report the size")
    _add_threads(p)

    p = add("decode", "decode a payload into a model", commands.decode_command)
    p.add_argument("payload", metavar="FILE", type=Path, help="payload to decode (.rfd)")
    _add_reference(p, "model that the payload was encoded against")
    _add_output(p, "model to write: .safetensors; with sharded OLD, any other name is a new folder")
    _add_threads(p)

    p = add("inspect", "show what is in a payload", commands.inspect_command)
    p.add_argument("payload", metavar="FILE", type=Path, help="payload to inspect (.rfd)")
    p.add_argument(
        "--json",
        action="store_true",
        help="print the fields of resfed_codec.PayloadInfo as a JSON object; sizes in bytes",
    )

    p = add("bench", "measure speed on this machine", commands.bench_command)
    model = p.add_mutually_exclusive_group()
    model.add_argument(
        "--elements",
        metavar="N",
        type=int,
        default=25_000_000,
        help="parameters of the synthetic model, float32 (default: %(default)s)",
    )
    model.add_argument(
        "--pair",
        metavar=("NEW", "OLD"),
        nargs=2,
        type=Path,
        help="the model to encode and its reference",
    )
    p.add_argument(
        "--like",
        choices=list(bench.COLUMNS),
        default="transformer",
        help="network whose residual the synthetic one resembles; a Transformer's clusters less"
        " and takes longer (default: %(default)s)",
    )
    p.add_argument(
        "--sparsity",
        metavar="S",
        type=float,
        default=DEFAULT_SPARSITY,
        help="fraction of the parameters that keep the reference's values, from 0 to 1"
        " (default: %(default)s)",
    )
    p.add_argument(
        "--turns", metavar="N", type=int, default=9, help="measured turns (default: %(default)s)"
    )
    p.add_argument(
        "--json",
        action="store_true",
        help="print the fields of resfed_codec.cli.bench.Report as a JSON object; times in ms",
    )
    _add_threads(p)

    p = add("demo", "run a small federated training", commands.demo_command)
    p.set_defaults(**commands.DEMO_DEFAULTS)
    p.add_argument("--rounds", metavar="N", type=int, help="rounds (default: %(default)s)")
    p.add_argument(
        "--clients", metavar="N", type=int, help="clients, 3 to 100 (default: %(default)s)"
    )
    p.add_argument(
        "--sparsity",
        metavar="S",
        type=float,
        help="fraction of the parameters that a payload leaves out, from 0 to 1 (default:"
        " %(default)s)",
    )
    p.add_argument("--seed", metavar="N", type=int, help="seed of the run (default: %(default)s)")
    plot = p.add_mutually_exclusive_group()
    plot.add_argument(
        "--plot",
        metavar="FILE",
        type=Path,
        help="file for the plot of accuracy over megabytes sent; .png, .svg or .pdf"
        " (default: %(default)s)",
    )
    plot.add_argument(
        "--no-plot", dest="plot", action="store_const", const=None, help="write no plot"
    )
    p.add_argument("--quiet", action="store_true", help="print nothing")
    _add_threads(p)
    return parser


def _add_reference(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument("-r", "--reference", metavar="OLD", type=Path, required=True, help=help)


def _add_output(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help=help)


def _add_threads(parser: argparse.ArgumentParser) -> None:
    """Add the global option, which is accepted before and after the command."""
    parser.add_argument(
        "--threads",
        metavar="N",
        type=int,
        default=argparse.SUPPRESS,
        help="threads for the codec; results do not depend on it (default: OMP_NUM_THREADS, else"
        " the available processors)",
    )


def _step(text: str) -> float | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a number") from None


def _set_threads(n: int) -> None:
    try:
        rfc.set_num_threads(n)
    except ValueError as error:
        raise ValueError(f"--threads: {error}") from None
