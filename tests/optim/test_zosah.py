"""ZO-SAH against closed forms on quadratics: curvatures fitted exactly, Newton steps in its planes, damping, clip."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hzo_hil.devices.errors import BadInput
from hzo_hil.optim import ZOSAH
from hzo_hil.optim.planes import curvature, damped, orthonormal
from hzo_hil.streams import torch_generator
from tests.optim.losses import Quadratic, quadratic


def rows(size: int, planes: int, seed: int = 0, period: int = 0) -> Tensor:
    """The directions that ZOSAH draws."""
    return orthonormal(size, 2 * planes, torch_generator(seed, "planes", period))


def planar(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hessians of planes [plane, 2, 2], points [step, plane, 2] and the forward differences there."""
    rng = torch.Generator().manual_seed(seed)
    half = torch.randn(4, 2, 2, generator=rng, dtype=torch.float64)
    hessians = half + half.mT  # of either sign
    points = torch.randn(count, 4, 2, generator=rng, dtype=torch.float64)
    gradients = torch.einsum("pij,tpj->tpi", hessians, points) + torch.randn(4, 2, generator=rng, dtype=torch.float64)
    return hessians, points, gradients + 0.05 * hessians.diagonal(dim1=1, dim2=2)


def test_directions_are_orthonormal_within_and_between_planes() -> None:
    found = rows(30, 6)
    torch.testing.assert_close(found @ found.T, torch.eye(12, dtype=torch.float64))


@pytest.mark.parametrize("steps", [3, 6])
def test_three_steps_determine_the_curvature_of_a_quadratic(steps: int) -> None:
    hessians, points, slopes = planar(steps, seed=steps)
    torch.testing.assert_close(curvature(points, slopes, prior=7.0), hessians)


def test_two_steps_determine_it_along_the_way_gone_and_the_prior_fills_the_rest() -> None:
    hessians, points, slopes = planar(2, seed=0)
    found = curvature(points, slopes, prior=7.0)
    along = points[1] - points[0]
    across = torch.stack([-along[:, 1], along[:, 0]], -1)
    torch.testing.assert_close((found @ along.unsqueeze(-1)), (hessians @ along.unsqueeze(-1)))
    form = torch.einsum("pi,pij,pj->p", across, found, across) / across.square().sum(-1)
    torch.testing.assert_close(form, torch.full((4,), 7.0, dtype=torch.float64))
    assert torch.equal(curvature(points[:1], slopes[:1], prior=7.0), 7 * torch.eye(2).double().expand(4, 2, 2))


def test_damping_acts_on_absolute_eigenvalues() -> None:
    values, slopes = torch.tensor([[2.0, -3.0]]).double(), torch.tensor([[1.0, 1.0]]).double()
    torch.testing.assert_close(damped(torch.diag_embed(values), slopes, 0.5), torch.tensor([[0.4, 1 / 3.5]]).double())


def in_planes(planes: int, extra: int, seed: int) -> tuple[Quadratic, list[Tensor], Tensor]:
    """A quadratic whose curvature couples no two of the planes that ZOSAH draws; their Hessians; the directions."""
    size = 2 * planes + extra
    basis = rows(size, planes)
    rng = torch.Generator().manual_seed(seed)
    roots = [torch.randn(2, 2, generator=rng, dtype=torch.float64) for _ in range(planes)]
    hessians = [root @ root.T + torch.eye(2) for root in roots]
    whole = basis.T @ torch.block_diag(*hessians) @ basis
    return quadratic(((size,),), seed=seed, curvature=lambda _: whole), hessians, basis


@pytest.mark.parametrize(("planes", "extra"), [(1, 0), (3, 0), (2, 5)])
def test_the_third_step_is_newtons_on_a_quadratic_in_the_planes(planes: int, extra: int) -> None:
    eps = 1e-2
    loss, hessians, basis = in_planes(planes, extra, seed=planes)
    optimizer = ZOSAH(loss.parameters, planes=planes, keep=9, eps=eps, damping=1e-13, clip=0.4)
    optimizer.step(loss)
    optimizer.step(loss)
    optimizer.clip = 1e9
    w, gradient = loss.vector(), loss.gradient()
    optimizer.step(loss)
    whole = torch.block_diag(*hessians)
    slopes = basis @ gradient + eps / 2 * whole.diagonal()  # forward differences of a quadratic
    torch.testing.assert_close(loss.vector(), w - basis.T @ torch.linalg.solve(whole, slopes), rtol=1e-7, atol=1e-7)
    left = basis @ loss.gradient()  # nothing but the bias of the differences
    torch.testing.assert_close(left, -eps / 2 * whole.diagonal(), rtol=1e-6, atol=1e-6)


def test_a_step_is_clipped_plane_by_plane_and_goes_downhill() -> None:
    loss, _, basis = in_planes(3, 0, seed=1)
    before, gradient = loss.vector(), loss.gradient()
    ZOSAH(loss.parameters, planes=3, clip=0.25).step(loss)  # nothing is known of curvature yet: damping alone
    moved = (basis @ (loss.vector() - before)).view(3, 2)
    torch.testing.assert_close(moved.norm(dim=-1), torch.full((3,), 0.25).double(), rtol=1e-3, atol=1e-3)
    assert moved.flatten() @ (basis @ gradient) < 0


def test_new_planes_are_drawn_when_the_old_were_kept_long_enough() -> None:
    loss = quadratic(((12,),))
    optimizer = ZOSAH(loss.parameters, planes=2, keep=3)
    for step in range(6):
        before = loss.vector()
        optimizer.step(loss)
        moved = loss.vector() - before
        basis = rows(12, 2, period=step // 3)
        torch.testing.assert_close(basis.T @ (basis @ moved), moved)
        assert len(optimizer.state["points"]) == step % 3 + 1


def test_it_asks_one_and_two_a_plane() -> None:
    loss = quadratic()
    optimizer = ZOSAH(loss.parameters, planes=4)
    optimizer.step(loss)
    assert len(loss.asked) == optimizer.queries_per_step == 9


def test_settings_out_of_range_are_refused() -> None:
    parameters = quadratic().parameters
    with pytest.raises(BadInput, match="6 planes need 12 parameters and there are 10: use fewer planes"):
        ZOSAH(parameters, planes=6)
    for name in ("eps", "damping", "clip", "planes", "keep"):
        with pytest.raises(BadInput, match=f"ZOSAH: {name} is 0: it must be"):
            ZOSAH(parameters, **{name: 0})
