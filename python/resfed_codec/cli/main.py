"""The command line ``resfed-codec``: encode, decode and inspect files, benchmark, run the demo."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from inspect import cleandoc
from pathlib import Path
from typing import Any, Literal, TypeAlias

import resfed_codec as rfc
from resfed_codec.cli import bench, demo
from resfed_codec.cli.files import load_model, write_atomically
from resfed_codec.config import DEFAULT_DENSE_BITS

Command: TypeAlias = "Callable[[argparse.Namespace], str]"

FAILED, INTERRUPTED, BROKEN_PIPE = 1, 130, 141
"""Exit codes. 0 is success; argparse uses 2 for wrong usage."""

_DEMO_DEFAULTS: dict[str, Any] = demo.run.__kwdefaults__ or {}
"""The defaults of the demo's arguments; ``demo.run`` defines them."""

DESCRIPTION = """\
Compression codec for federated learning.

Sender and receiver hold the same reference model. "encode" writes the
difference between a new model and the reference as a small payload. "decode"
recovers the new model from the payload and the reference, as closely as the
options of "encode" ask. Models are .safetensors files.
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
is unchanged. (The demo writes its plot directly.)

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
    parser.add_argument("--version", action="version", version=f"%(prog)s {rfc.__version__}")
    _add_threads(parser)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, help: str, command: Command) -> argparse.ArgumentParser:
        description, example, lines = cleandoc(command.__doc__ or "").partition("example:\n")
        p = commands.add_parser(
            name,
            help=help,
            description=description,
            epilog=example + lines,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        p.set_defaults(command=command)
        return p

    p = add("encode", "encode a model as a payload", _encode)
    p.add_argument("new", metavar="NEW", type=Path, help="model to encode (.safetensors)")
    _add_reference(p, "model that the receiver holds too (.safetensors)")
    _add_output(p, "payload to write")
    target = p.add_mutually_exclusive_group()
    target.add_argument(
        "--sparsity",
        metavar="S",
        type=float,
        help="fraction of the parameters that keep the reference's values, from 0 to 1"
        f" (default: {rfc.CodecConfig().sparsity})",
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
        nargs="+",
        action="extend",
        default=[],
        help="code tensors with these names without loss; * and ? are wildcards (quote them)",
    )
    p.add_argument(
        "--dense",
        metavar="PATTERN",
        nargs="*",
        action="extend",
        help="send every element of tensors with these names, quantized (default: running"
        " statistics and similar buffers, by name; --dense without patterns: none)",
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

    p = add("decode", "decode a payload into a model", _decode)
    p.add_argument("payload", metavar="FILE", type=Path, help="payload to decode")
    _add_reference(p, "model that the payload was encoded against (.safetensors)")
    _add_output(p, "model to write (.safetensors)")
    _add_threads(p)

    p = add("inspect", "show what is in a payload", _inspect)
    p.add_argument("payload", metavar="FILE", type=Path, help="payload to inspect")
    p.add_argument(
        "--json",
        action="store_true",
        help="print the fields of resfed_codec.PayloadInfo as a JSON object; sizes in bytes",
    )

    p = add("bench", "measure speed on this machine", _bench)
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
        help="the model to encode and its reference (.safetensors)",
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
        default=rfc.CodecConfig().sparsity,
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

    p = add("demo", "run a small federated training", _demo)
    p.set_defaults(**_DEMO_DEFAULTS)
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


# The commands. Each returns the text to print; its docstring is its help.


def _encode(args: argparse.Namespace) -> str:
    """Encode the model NEW as a payload that holds its difference from the model OLD.

    Both are .safetensors files with tensors of the same names, shapes and dtypes.
    Floats of 16, 32 and 64 bits are coded with loss (bfloat16 too, which needs
    torch or ml_dtypes), integers and bool without loss. Give at most one of
    --sparsity, --max-bytes and --max-error.

    example:
      resfed-codec encode new.safetensors --reference old.safetensors \\
          -o update.rfd --max-error 0.3 --exclude '*.bias'
    """
    config = rfc.CodecConfig(
        sparsity=args.sparsity,
        max_bytes=args.max_bytes,
        max_error=args.max_error,
        step=args.step,
        bits=args.bits,
        exclude=tuple(args.exclude),
        dense=None if args.dense is None else tuple(args.dense),
        dense_bits=args.dense_bits,
    )
    new = load_model(args.new)
    payload = rfc.encode(new.tensors, load_model(args.reference).tensors, config)
    write_atomically(args.output, payload)
    if args.quiet:
        return ""
    n_bytes = sum(tensor.nbytes for tensor in new.tensors.values())
    return (
        f"{len(payload):,} bytes, {n_bytes / len(payload):.1f} times smaller than the"
        f" {n_bytes:,} bytes of the tensors"
    )


def _decode(args: argparse.Namespace) -> str:
    """Decode a payload and write the model as a .safetensors file.

    OLD must be the reference that the payload was encoded against; decoding fails
    with any other. Metadata in the header of OLD, such as {"format": "pt"}, is
    copied to the output.

    example:
      resfed-codec decode update.rfd --reference old.safetensors -o new.safetensors
    """
    payload = args.payload.read_bytes()
    reference = load_model(args.reference)
    decoded = rfc.decode(payload, reference.tensors)
    write_atomically(args.output, reference.library.save(decoded, metadata=reference.metadata))
    return ""


def _inspect(args: argparse.Namespace) -> str:
    """Show the sections of a payload, their sizes and the header's fields. Needs no
    reference.

    Verifies the checksum and the header; does not decode the coded values.

    example:
      resfed-codec inspect update.rfd --json
    """
    info = rfc.inspect(args.payload.read_bytes())
    return json.dumps(asdict(info), indent=2, default=_plain) if args.json else str(info)


def _plain(numbers: Any) -> Any:
    """Convert fields of a PayloadInfo that JSON does not support: sequences and mappings."""
    return dict(numbers) if isinstance(numbers, Mapping) else list(numbers)


def _bench(args: argparse.Namespace) -> str:
    """Measure how long encoding and decoding take on this machine.

    The models are synthetic, with a residual that clusters like that of a trained
    model, or a pair of .safetensors files. Each turn runs every task once; the
    table shows the median, minimum and maximum over the turns. The same run times
    two baselines: a plain copy of the model's memory, and torch.sub of the two
    models where torch is installed and all tensors are float32.

    example:
      resfed-codec bench --elements 25000000 --threads 1
      resfed-codec bench --pair new.safetensors old.safetensors --sparsity 0.95
    """
    if args.pair:
        state, reference = (load_model(path).tensors for path in args.pair)
    else:
        state, reference = bench.synthetic_update(args.elements, like=args.like)
    report = bench.measure(state, reference, sparsity=args.sparsity, turns=args.turns)
    return json.dumps(report.as_dict(), indent=2) if args.json else str(report)


def _demo(args: argparse.Namespace) -> str:
    """Train a small classifier with federated averaging, once with the codec and once
    without, and compare accuracy and bytes sent.

    Needs extra packages: pip install "resfed-codec[demo]".

    example:
      resfed-codec demo --rounds 10 --sparsity 0.98 --plot accuracy.svg
    """
    try:
        demo.run(**{name: getattr(args, name) for name in _DEMO_DEFAULTS})
    except SystemExit:  # what rich makes of a broken pipe
        raise BrokenPipeError from None
    return ""
