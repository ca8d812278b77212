"""Real residuals of a federated training of the paper's CNN. Skipped without RESFED_DATA."""

from __future__ import annotations

import numpy as np
import pytest

import resfed_codec as rfc
from models import State, assert_same
from resfed_codec.codec.update import encode_and_recover

Snapshots = dict[str, State]


def matrices(model: State) -> State:
    return {name: value for name, value in model.items() if value.ndim >= 2}


@pytest.mark.parametrize(("sparsity", "most"), [(0.95, 12_280), (0.99, 2_340), (0.9975, 960)])
def test_size_of_a_client_update(sparsity: float, most: int, snapshots: Snapshots) -> None:
    reference, state = matrices(snapshots["g6"]), matrices(snapshots["l0_7"])
    payload, recovered = encode_and_recover(state, reference, sparsity=sparsity, step=0.6)
    assert len(payload) <= most
    assert_same(rfc.decode(payload, reference), recovered)


@pytest.mark.parametrize("new", ["l0_5", "l0_6", "l0_7", "l0_8", "g5", "g8"])
@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.99, 0.999])
def test_all_tensors(new: str, sparsity: float, snapshots: Snapshots) -> None:
    reference = snapshots[f"g{int(new[-1]) - 1}"]
    payload, recovered = encode_and_recover(snapshots[new], reference, sparsity=sparsity)
    decoded = rfc.decode(payload, reference)
    assert_same(decoded, recovered)
    for name, value in snapshots[new].items():
        if value.dtype.kind == "i":
            np.testing.assert_array_equal(decoded[name], value)


def test_running_statistics_do_not_use_the_budget(snapshots: Snapshots) -> None:
    """The weights keep the budget that they have without BatchNorm."""
    reference, state = snapshots["g6"], snapshots["l0_7"]
    alone = rfc.inspect(rfc.encode(matrices(state), matrices(reference)))
    for options in ({}, {"exclude": "*running*"}, {"dense": ()}):
        together = rfc.inspect(rfc.encode(state, reference, **options))
        assert together.k_matrix == alone.k_matrix
        assert together.matrix == alone.matrix
