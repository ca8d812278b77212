"""Adapters of the comparison with other codecs, and tuning to equal error."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tqdm")

from benchmarks.peers import available, lossless_peers, lossy_peers
from benchmarks.peers.base import LosslessPeer, LossyPeer, Peer, Turn, Update
from benchmarks.peers.integers import RawPairs, TopK, top_k_levels
from benchmarks.peers.nncodec import VARIABLE, NNCodec, NNCodecIntegers
from benchmarks.peers.nncodec_worker import receive, send
from benchmarks.peers.ours import Ours
from benchmarks.peers.tune import Tuned, between, error_of, points, tune
from benchmarks.suite import rows as table
from benchmarks.suite import targets
from benchmarks.suite.integers import levels_of
from benchmarks.suite.scale import fit
from benchmarks.updates import Source, updates_in

import resfed_codec as rfc


@pytest.fixture(scope="module")
def update() -> Update:
    return Source(n_elems=60_000).load()


def name_of(peer: Peer) -> str:
    return peer.name


def present(peer: Peer) -> None:
    if reason := peer.missing():
        pytest.skip(reason)


@pytest.mark.parametrize("peer", lossless_peers(), ids=name_of)
@pytest.mark.parametrize("largest", [1, 127, 128, 70_000])
def test_lossless_peers_are_lossless(
    peer: LosslessPeer, largest: int, rng: np.random.Generator
) -> None:
    present(peer)
    levels = {}
    for name, shape in (("a", (40, 50)), ("b", (3, 4, 5))):
        kept = rng.random(shape) < 0.1
        kept.flat[[0, -1]] = True
        levels[name] = np.where(kept, rng.integers(-largest, largest + 1, shape), 0).astype("i4")
        levels[name].flat[[0, -1]] = largest, -largest
    levels["zero"] = np.zeros((6, 7), np.int32)
    turn = peer.turn(levels)
    assert list(turn.recovered) == list(levels)
    for name, value in levels.items():
        np.testing.assert_array_equal(turn.recovered[name], value)
    assert turn.n_bytes > 0
    assert turn.encode_s > 0
    assert turn.decode_s > 0
    peer.close()


@pytest.mark.parametrize("peer", [Ours(), *lossy_peers()], ids=name_of)
def test_lossy_peers_reach_an_error(peer: LossyPeer, update: Update) -> None:
    present(peer)
    before = {name: value.copy() for name, value in update.reference.items()}
    tuned = tune(peer, update, 0.6)
    tolerance = 0.5 if peer.stepped else 0.02
    assert tuned.error == pytest.approx(0.6, rel=tolerance)
    turn = peer.turn(update, tuned.knob)
    assert error_of(update, turn) == tuned.error
    assert peer.stepped or turn.n_bytes == tuned.n_bytes
    for name, value in update.reference.items():
        np.testing.assert_array_equal(value, before[name])
        assert turn.recovered[name].shape == value.shape
    peer.close()


def test_levels_are_those_of_our_payload(update: Update) -> None:
    levels = levels_of(update, 0.97)
    payload = rfc.encode(update.state, update.reference, sparsity=0.97)
    zero = {name: np.zeros_like(value) for name, value in update.state.items()}
    residual = {name: value - update.reference[name] for name, value in update.state.items()}
    decoded = rfc.decode(rfc.encode(residual, zero, sparsity=0.97), zero)
    assert sum(np.count_nonzero(v) for v in levels.values()) == rfc.inspect(payload).n_nonzero
    values: dict[int, set[float]] = {}
    for name, value in levels.items():
        np.testing.assert_array_equal(np.sign(value), np.sign(decoded[name]))
        for level in np.unique(value):
            values.setdefault(int(level), set()).update(decoded[name][value == level].tolist())
    assert all(len(found) == 1 for found in values.values())  # one value for each level
    assert values[0] == {0.0}


def test_ties_go_to_the_lower_index() -> None:
    residual = np.array([0.5, -1, 0.5, 0.5, 0, 2], np.float32)
    levels, threshold = top_k_levels(residual, 4)
    assert threshold == 0.5
    np.testing.assert_array_equal(np.flatnonzero(levels), [0, 1, 2, 5])
    levels, threshold = top_k_levels(np.zeros(5, np.float32), 3)
    assert not levels.any()


def test_in_place_decodes_into_the_target(update: Update) -> None:
    target = {name: np.zeros_like(value) for name, value in update.reference.items()}
    peer = Ours(target=target)
    for _ in range(2):
        turn = peer.turn(update, 4.0)
    assert turn.recovered is target
    other = Ours().turn(update, 4.0)
    assert all(np.array_equal(other.recovered[name], target[name]) for name in target)


class Steps(LossyPeer):
    """A stepped peer with given errors and bytes for each knob."""

    name, stepped = "steps", True

    def __init__(self, table: dict[int, tuple[float, int]]) -> None:
        self.table, self.knobs = table, (min(table), max(table))
        self.tried: list[int] = []

    def turn(self, update: Update, knob: float) -> Turn:
        self.tried.append(int(knob))
        error, n_bytes = self.table[int(knob)]
        left = math.sqrt(error)
        recovered = {
            name: value - left * (value - update.reference[name])
            for name, value in update.state.items()
        }
        return Turn(n_bytes, 0.0, 0.0, recovered)


def test_stepped_peers_are_measured_near_the_target_errors(update: Update) -> None:
    peer = Steps({knob: (0.99 * 2.0 ** (knob / 8), 1000 - 10 * knob) for knob in range(-60, 1)})
    found = points(peer, update, [0.5])
    assert {t.knob for t in found} >= {-10, -9, -8, -7}
    assert min(peer.tried) == -12
    assert len(peer.tried) < 20
    tuned = tune(peer, update, 0.5)
    assert tuned.n_bytes == pytest.approx(1079, abs=1)


def test_between_uses_the_best_steps() -> None:
    # The step of 300 bytes is worse than the next one; the error at 90 bytes is too large.
    tried = [
        Tuned(3, 0.8, 90), Tuned(2, 0.4, 200), Tuned(1, 0.45, 300), Tuned(0, 0.2, 800)
    ]  # fmt: skip
    assert between(tried, 0.4) == Tuned(2, 0.4, 200)
    middle = between(tried, math.sqrt(0.4 * 0.8))
    assert middle.n_bytes == pytest.approx(math.sqrt(90 * 200))
    assert between(tried, 0.9) == Tuned(3, 0.8, 90)  # nothing is coarser
    assert between(tried, 0.2) == Tuned(0, 0.2, 800)
    with pytest.raises(ValueError, match="out of reach"):
        between(tried, 0.1)


def test_an_error_out_of_reach(update: Update) -> None:
    peer = TopK(RawPairs())
    peer.knobs = (3.0, 4.0)
    with pytest.raises(ValueError, match="out of reach"):
        tune(peer, update, 0.01)


def test_missing_peers_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, f"{tmp_path / 'python'}")
    monkeypatch.setattr("benchmarks.peers.base.find_spec", lambda name: None)
    here, reasons = available(lossy_peers())
    assert {peer.name for peer in here} == {
        "ResFed paper's scheme, 2 values", "ResFed paper's scheme, 8 values"
    }  # fmt: skip
    assert "SZ3: the package pysz is not installed (pip install '.[bench]')" in reasons
    (line,) = [line for line in reasons if line.startswith("NNCodec, plain quantizer: no ")]
    assert f"{tmp_path / 'python'}: `make nncodec`, or" in line


def test_messages_of_the_nncodec_worker() -> None:
    stream = io.BytesIO()
    send(stream, {"x|w": np.arange(6, dtype=np.float32).reshape(2, 3), "qp": np.array(-3)})
    send(stream, {})
    stream.seek(0)
    message = receive(stream)
    np.testing.assert_array_equal(message["x|w"], [[0, 1, 2], [3, 4, 5]])
    assert message["qp"] == -3
    assert receive(stream).files == []
    assert receive(stream) is None


def test_nncodec_worker_that_dies(
    monkeypatch: pytest.MonkeyPatch, update: Update, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, sys.executable)  # has no NNCodec
    peer = NNCodecIntegers()
    assert peer.missing() == ""
    with pytest.raises(RuntimeError, match="NNCodec worker died"):
        NNCodec(dependent=True).turn(update, 0)
    assert "nncodec" in capfd.readouterr().err


def test_updates_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "net.npz"
    shapes = {"w": (3, 4), "bias": (4,)}
    prefixes = ("g2", "g3", "g4", "l0_3", "l0_4", "l0_5", "s5")
    arrays = {
        f"{prefix}|{name}": np.full(shape, i, np.float32)
        for i, prefix in enumerate(prefixes)
        for name, shape in shapes.items()
    }
    np.savez(path, **arrays)
    sources = updates_in(path)
    assert [source.name for source in sources] == [
        "net, g2 to l0_3", "net, g2 to g3", "net, g4 to l0_5", "net, g4 to s5"
    ]  # fmt: skip
    loaded = sources[0].load()
    assert list(loaded.state) == ["w"]
    assert (loaded.state["w"] == 3).all()
    assert (loaded.reference["w"] == 0).all()


def test_goals() -> None:
    def row(
        update: str, sparsity: float, peer: str, ratio: float, data: str = "real"
    ) -> targets.Row:
        return {"update": update, "sparsity": sparsity, "peer": peer, "ours / peer": ratio} | {
            "data": data
        }

    rows = [
        row("a", 0.95, "NNCodec", 0.9),
        row("b", 0.95, "NNCodec", 0.91),
        row("c", 0.95, "NNCodec", 2.0, "synthetic"),
        row("a", 0.99, "NNCodec", 0.96),
    ]
    first, second = targets.integer_goals(rows)
    assert (first["reached"], first[""]) == ("0.910", "met")
    assert (second["reached"], second[""]) == ("0.960", "**missed**")
    rows = [
        row("a", sparsity, f"NNCodec, {kind}", ratio)
        for sparsity in (0.95, 0.98, 0.99)
        for kind, ratio in (("dependent quantizer", 0.4), ("plain quantizer", 0.5))
    ]
    (goal,) = targets.error_goals(rows)
    assert (goal["reached"], goal[""]) == ("0.500", "met")  # against the better of the two
    assert targets.error_goals([r | {"data": "synthetic"} for r in rows]) == []
    (row_of_means, _) = targets.means(rows, "a")
    assert row_of_means["0.95"] == "0.400"


def test_fit_finds_fixed_cost_and_slope() -> None:
    rows = [
        {"peer": "p", "sparsity": 0.99, "parameters": n, "ms": 0.25 + 3e-6 * n}
        for n in (62_000, 1_000_000, 400_000_000)
    ]
    assert fit(rows, "p", "ms") == pytest.approx((0.25, 3e-6))


@pytest.mark.slow
def test_the_whole_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.__main__ import main

    monkeypatch.setenv(VARIABLE, f"{tmp_path / 'python'}")
    out = tmp_path / "results"
    line = "--quick --made-up 20000 --sizes 5000 20000 --turns 1"
    main([*line.split(), "--out", f"{out}"])
    page = (out / "peers.md").read_text()
    assert capsys.readouterr().out.partition(" minutes\n")[2].strip() in page
    for name in ("residuals", "integers", "error", "scale"):
        document = table.read(out / f"peers_{name}.json")
        assert f"(peers_{name}.json)" in page
        assert document["command"] in page
        if name != "residuals":  # has no figure
            assert any(line.startswith("NNCodec") for line in document["left_out"])
            assert "ours" in {row["peer"] for row in document["rows"]}
            assert f"(peers_{name}.png)" in page
            assert (out / f"peers_{name}.png").stat().st_size > 1000
    assert "ours: bytes = " in page
    main(["--redraw", "--out", f"{out}"])
    assert (out / "peers.md").read_text() == page


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.json"
    written = [{"a": "x", "b": 1.23456789, "c": 123456789}, {"a": "y", "b": None, "c": 0}]
    table.write(path, "title", written, "a note", ["a peer: absent"])
    document = table.read(path)
    assert document["rows"] == [{"a": "x", "b": 1.23457, "c": 123456789}, written[1]]
    assert (document["title"], document["note"]) == ("title", "a note")
    assert document["left_out"] == ["a peer: absent"]


def test_page_has_a_table_of_better_peers(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.suite import page

    def row(peer: str, sparsity: float, ratio: float) -> dict[str, object]:
        return {
            "update": "net, g4 to g5",
            "data": "real",
            "sparsity": sparsity,
            "peer": peer,
            "ours / peer": ratio,
            "encode ms": None,
        }

    ratios = [row("ours", s, 1) for s in (0.95, 0.99)]
    ratios += [row("NNCodec", s, 0.9) for s in (0.95, 0.99)]
    ratios += [row("zstd", 0.95, 0.8), row("zstd", 0.99, 1.25)]
    table.write(tmp_path / "peers_integers.json", "Identical integers", ratios, "", [])
    text = page.make(tmp_path)
    head = "| our bytes / peer's | model | peer | 0.95 | 0.99 |"
    worse = "| identical integers | net | zstd | 0.800 | **1.250** |"
    assert f"{head}\n|---|---|---|---|---|\n{worse}\n\n" in text
