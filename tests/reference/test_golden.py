"""Stored payloads always decode, and this version's encoder makes the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import make
import resfed_codec as rfc
from models import assert_same

CASES = make.cases()


def test_every_case_is_stored() -> None:
    assert {path.stem for path in make.FOLDER.glob("*.rfd")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_stored_payloads_decode(name: str) -> None:
    _, reference, _ = CASES[name]
    decoded = rfc.decode((make.FOLDER / f"{name}.rfd").read_bytes(), reference)
    with np.load(make.FOLDER / f"{name}.npz") as stored:
        expected = [stored[f"arr_{i}"] for i in range(len(stored.files))]
    assert_same([np.asarray(a) for a in make.arrays_of(decoded)], expected)


@pytest.mark.parametrize("name", CASES)
def test_encoder_makes_the_same_bytes(name: str) -> None:
    state, reference, options = CASES[name]
    stored = (make.FOLDER / f"{name}.rfd").read_bytes()
    made = rfc.encode(state, reference, **options)
    differ = next((i for i, (a, b) in enumerate(zip(made, stored)) if a != b), None)  # noqa: B905
    assert made == stored, f"first difference at byte {differ} of {len(stored)}"


def example_of_the_format_document(name: str) -> bytes:
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    dump = text.split(f"<!-- {name} -->")[1].split("```")[1]
    return bytes.fromhex("".join(line.split("|")[0] for line in dump.strip().splitlines()))


def test_the_worked_examples_of_the_format_document() -> None:
    """docs/format.md explains the bytes of two small payloads; this test checks them."""
    stored = example_of_the_format_document("example")
    reference = {"w": np.zeros((2, 4), np.float32)}
    state = {"w": np.array([[0, 0.5, 0, 0], [-1, 0, 0, 0.5]], np.float32)}
    assert rfc.encode(state, reference, sparsity=0.5) == stored
    recovered = rfc.decode(stored, reference)["w"]
    np.testing.assert_array_equal(np.flatnonzero(recovered), [1, 4, 7])

    stored = example_of_the_format_document("lossless example")
    reference = {"h": np.array([1, 0.25, -2, 0.5], np.float16)}
    assert reference["h"].view(np.uint16).tolist() == [0x3C00, 0x3400, 0xC000, 0x3800]
    state = {"h": np.array([0x3C00, 0x33FF, 0xC003, 0x3800], np.uint16).view(np.float16)}
    assert rfc.encode(state, reference, exclude="h") == stored
    assert_same(rfc.decode(stored, reference), state)
