"""Functions of tests/ptx that need no simulator."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "ptx"
sys.path.insert(0, str(FOLDER))
import edits  # noqa: E402
from program import lowered  # noqa: E402


def test_lowered_ptx_has_no_masks_and_no_wide_integers():
    ptx = "\n".join(
        [
            ".version 9.0",
            ".shared .align 8 .b8 sums[256];",
            "shfl.sync.bfly.b32 \t%r5|%p1, %r4, 16, 31, -1;",
            "vote.sync.ballot.b32 \t%r6, %p2, -1;",
            "bar.warp.sync \t-1;",
            "mul.lo.s64 \t%rd2, %rd1, -4658895280553007687;",
            "and.b32 \t%r7, %r6, 2147483647;",
            "mov.u32 \t%r8, sums;",
        ]
    )
    assert lowered(ptx, "select").split("\n") == [
        ".version 7.0",
        ".shared .align 8 .b8 select_sums[256];",
        "shfl.bfly.b32 \t%r5, %r4, 16, 31;",
        "vote.ballot.b32 \t%r6, %p2;",
        "",
        "mul.lo.s64 \t%rd2, %rd1, 0dBF58476D1CE4E5B9;",
        "and.b32 \t%r7, %r6, 2147483647;",
        "mov.u32 \t%r8, select_sums;",
    ]


def test_edits_search_in_order(tmp_path):
    path = tmp_path / "a.cc"
    path.write_text("case A: old\nint f() {\n  case A: old\n}\nint g() {\n}\n")
    source = edits.Source(tmp_path, "a.cc")
    source.replace("int f(", "old", text="new")
    source.insert_after("int f(", "{", text=" // here")
    source.replace_function("int g(", "int g();\n")
    assert path.read_text() == "case A: old\nint f() { // here\n  case A: new\n}\nint g();\n"


def test_edits_fail_where_a_text_is_missing(tmp_path):
    path = tmp_path / "a.cc"
    path.write_text("second first")
    with pytest.raises(SystemExit, match=r"a\.cc: no 'second'; these edits are for 667834cfe5"):
        edits.Source(tmp_path, "a.cc").replace("first", "second", text="x")
    assert path.read_text() == "second first"


def test_without_a_simulator_it_skips_with_a_message():
    command = [sys.executable, FOLDER, "no such folder"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("PTX in a simulator skipped: there is no ")
    assert "checkout of the simulator" in done.stdout
