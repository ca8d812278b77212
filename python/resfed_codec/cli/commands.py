"""The commands of the command line. Each returns the text to print; its docstring is its help."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import resfed_codec as rfc
from resfed_codec.cli import bench, demo
from resfed_codec.cli.files import (
    STDIO,
    Model,
    check_output,
    load_model,
    read,
    shown,
    write,
    write_folder,
)

DEMO_DEFAULTS: dict[str, Any] = demo.run.__kwdefaults__ or {}
"""The defaults of the demo's arguments; ``demo.run`` defines them."""


def encode_command(args: argparse.Namespace) -> str:
    """Encode the model NEW as a payload that holds its difference from the model OLD.

    Both have tensors of the same names, shapes and dtypes.
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
    new, reference = _load(args.new, args.reference)
    check_output(args.output, [*new.files, *reference.files])
    with _named(args.new, args.reference):
        payload = rfc.encode(new.tensors, reference.tensors, config)
    write(args.output, payload)
    if not args.quiet:
        n_bytes = sum(tensor.nbytes for tensor in new.tensors.values())
        report(
            f"{len(payload):,} bytes, {n_bytes / len(payload):.1f} times smaller than the"
            f" {n_bytes:,} bytes of the tensors"
        )
    return ""


def decode_command(args: argparse.Namespace) -> str:
    """Decode a payload and write the model as OLD is written.

    OLD must be the reference that the payload was encoded against; decoding fails
    with any other. Metadata in the header of OLD, such as {"format": "pt"}, is
    copied to the output. If OLD is sharded, so is the output, into a new folder,
    unless its name ends in .safetensors or is "-".

    example:
      resfed-codec decode update.rfd --reference old.safetensors -o new.safetensors
    """
    _check_inputs([args.payload, args.reference])
    payload, reference = read(args.payload), load_model(args.reference)
    check_output(args.output, [args.payload, args.reference, *reference.files])
    with _named(args.payload, args.reference):
        decoded = rfc.decode(payload, reference.tensors)
    as_one = args.output == STDIO or args.output.suffix == ".safetensors"
    if reference.shards and not as_one:
        write_folder(args.output, reference.saved_shards(decoded))
    else:
        write(args.output, reference.saved(decoded))
    return ""


def inspect_command(args: argparse.Namespace) -> str:
    """Show the sections of a payload, their sizes and the header's fields. Needs no
    reference.

    Verifies the checksum and the header; does not decode the coded values.

    example:
      resfed-codec inspect update.rfd --json
    """
    with _named(args.payload):
        info = rfc.inspect(read(args.payload))
    return json.dumps(asdict(info), indent=2, default=_plain) if args.json else str(info)


def _plain(numbers: Any) -> Any:
    """Convert fields of a PayloadInfo that JSON does not support: sequences and mappings."""
    return dict(numbers) if isinstance(numbers, Mapping) else list(numbers)


def bench_command(args: argparse.Namespace) -> str:
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
        state, reference = (model.tensors for model in _load(*args.pair))
    else:
        state, reference = bench.synthetic_update(args.elements, like=args.like)
    with _named(*args.pair or []):
        report = bench.measure(state, reference, sparsity=args.sparsity, turns=args.turns)
    return json.dumps(asdict(report), indent=2) if args.json else str(report)


def demo_command(args: argparse.Namespace) -> str:
    """Train a small classifier with federated averaging, once with the codec and once
    without, and compare accuracy and bytes sent.

    Needs extra packages: pip install "resfed-codec[demo]".

    example:
      resfed-codec demo --rounds 10 --sparsity 0.98 --plot accuracy.svg
    """
    try:
        demo.run(**{name: getattr(args, name) for name in DEMO_DEFAULTS})
    except SystemExit:  # what rich makes of a broken pipe
        raise BrokenPipeError from None
    return ""


# Used by several commands


def _load(*paths: Path) -> list[Model]:
    _check_inputs(paths)
    return [load_model(path) for path in paths]


def _check_inputs(paths: Sequence[Path]) -> None:
    if list(paths).count(STDIO) > 1:
        raise ValueError("standard input (-) can be one input only")


@contextlib.contextmanager
def _named(*paths: Path) -> Iterator[None]:
    """A context in which what is wrong with the contents of files names these."""
    try:
        yield
    except (ValueError, TypeError) as error:
        names = ", ".join(map(shown, paths))
        raise ValueError(f"{names}: {error}" if names else str(error)) from error


def report(text: str) -> None:
    print(text, file=sys.stderr)
