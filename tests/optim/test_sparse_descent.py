"""Sparse coordinate descent: which way each coordinate goes, how many are asked, which never move."""

from __future__ import annotations

import pytest
import torch

from hzo_hil.devices.errors import BadInput
from hzo_hil.optim import SparseCoordinateDescent
from tests.optim.losses import quadratic


@pytest.mark.parametrize("opposite", [True, False])
def test_on_a_linear_loss_coordinates_go_downhill_by_the_step_or_stay(opposite: bool) -> None:
    loss = quadratic(curved=False)
    w = loss.vector()
    optimizer = SparseCoordinateDescent(loss.parameters, lr=0.25, coordinates=10, opposite=opposite)
    optimizer.step(loss)
    moved = loss.vector() - w
    downhill = -0.25 * loss.slope.sign()
    torch.testing.assert_close(torch.where(moved == 0, 0, downhill), moved)
    if opposite:
        uphill_first = int((loss.slope > 0).sum())
        assert (moved != 0).all()
        assert len(loss.asked) == 11 + uphill_first <= optimizer.queries_per_step == 21
    else:
        assert 0 < (moved != 0).sum() < 10
        assert len(loss.asked) == optimizer.queries_per_step == 11


def test_without_the_opposite_no_step_raises_the_loss() -> None:
    loss = quadratic()
    optimizer = SparseCoordinateDescent(loss.parameters, lr=0.5, coordinates=4, opposite=False)
    last = float(loss())
    for _ in range(30):
        optimizer.step(loss)
        assert float(loss()) <= last
        last = float(loss())


def test_passive_parameters_never_move_and_active_ones_all_do() -> None:
    loss = quadratic(((20,),))
    w = loss.vector()
    optimizer = SparseCoordinateDescent(loss.parameters, coordinates=3, active=0.25)
    for _ in range(40):
        optimizer.step(loss)
    assert (torch.stack(loss.asked) != w).any(dim=0).sum() == 5


def test_each_coordinate_is_asked_alone() -> None:
    loss = quadratic(((6,),))
    SparseCoordinateDescent(loss.parameters, coordinates=2, opposite=False).step(loss)
    for before, after in zip(loss.asked, loss.asked[1:], strict=False):
        assert 1 <= (before != after).sum() <= 2  # the one asked, and the last one where it was taken back


@pytest.mark.parametrize("settings", [{"coordinates": 0}, {"active": 0.0}, {"active": 1.1}, {"lr": 0.0}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(BadInput, match=f"SparseCoordinateDescent: {next(iter(settings))}"):
        SparseCoordinateDescent(quadratic().parameters, **settings)  # type: ignore[arg-type]
