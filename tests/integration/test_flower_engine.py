"""The example app on Flower's engine: SuperLink and SuperNodes over loopback."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install 'resfed-codec[flower]'")
pytest.importorskip("sklearn", reason="needs scikit-learn")

import one_process
import run_local

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def plain_app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_local.plain_copy(tmp_path_factory.mktemp("plain"))


def test_the_codec_needs_at_most_six_lines(plain_app: Path) -> None:
    lines = run_local.codec_diff().splitlines()
    added = [line for line in lines if line.startswith("+") and not line.startswith("+++")]
    assert 0 < len(added) <= 6
    for path in (plain_app / "digits").glob("*.py"):
        assert "resfed_codec" not in path.read_text()


@pytest.fixture(scope="module")
def killed_run() -> dict:
    return run_local.run(kill=(2, 3), timeout_s=25)


def test_a_killed_node_affects_only_its_round(killed_run: dict) -> None:
    """The result is bit for bit that of one process without that client in that round."""
    expected = one_process.run(lost={(2, 3)})
    assert killed_run["model"] == expected["model"] != one_process.run()["model"]
    np.testing.assert_allclose(killed_run["accuracies"], expected["accuracies"], rtol=1e-12)
    assert killed_run["accuracies"][-1] > 0.9


def test_messages_are_200_times_smaller(killed_run: dict, plain_app: Path) -> None:
    """As message_size_mod counts; in the plain app every round sends as much as the first."""
    plain = run_local.run(plain_app, n_rounds=1)
    ((train_down, train_up), (evaluate_down, evaluate_up)) = plain["message_bytes"]["node0"]
    assert min(train_down, train_up, evaluate_down) > 4 * 1_005_240
    rounds = killed_run["message_bytes"]["node0"]
    assert len(rounds) == 10
    codec = sum(down + up for down, up in rounds)
    assert 200 * codec < 5 * (train_down + train_up + evaluate_down + evaluate_up)
