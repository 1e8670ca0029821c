"""Torch twins: equal to the numpy data sheet, with right gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hzo_hil.simulators import mesh
from hzo_hil.simulators.elementwise import CURVES
from hzo_hil.simulators.stages import Elementwise, EmulatedLinear, MeshStage, SVDStage
from hzo_hil.simulators.twins import Twin, walk

MODELS = {
    "homodyne": MeshStage(5),
    "intensity": MeshStage(4, "intensity"),
    "svd": SVDStage(4, 3),
    "svd by phases": SVDStage(3, 4, trained="phases", scale=1.7),
    **{kind: Elementwise(3, kind, 1.3) for kind in CURVES},
    "emulator": EmulatedLinear(3, 4, "tanh"),
}


def problem(model, dtype=torch.float64):
    """Inputs and values away from special points, as leaves that want gradients."""
    rng = np.random.default_rng(0)
    made = {n: v + 0.2 * rng.standard_normal(v.shape) for n, v in model.initial(rng).items()}
    values = {n: torch.tensor(v, dtype=dtype, requires_grad=True) for n, v in made.items()}
    inputs = torch.tensor(rng.uniform(0.2, 1, (3, model.in_width)), dtype=dtype, requires_grad=True)
    return inputs, values


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_twin_equals_the_numpy_data_sheet(model, dtype, tolerance):
    inputs, values = problem(model, dtype)
    found = Twin(model)(inputs, **values)
    expected = model.ideal(np, {n: v.detach().numpy() for n, v in values.items()}, inputs.detach().numpy())
    assert found.dtype == dtype
    assert np.allclose(found.detach().numpy(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_gradients_are_those_of_finite_differences(model):
    inputs, values = problem(model)
    names = list(values)
    twin = Twin(model)
    assert torch.autograd.gradcheck(
        lambda x, *given: twin(x, **dict(zip(names, given, strict=True))), (inputs, *values.values())
    )


@pytest.mark.parametrize("ports", [2, 3, 8])
@pytest.mark.parametrize("numpy_path", [True, False])
def test_the_hand_made_backward_equals_autograd(ports, numpy_path, monkeypatch):
    """Both ways to run it: numpy on the CPU, and torch as it is used on other devices."""
    if not numpy_path:
        monkeypatch.setattr("hzo_hil.simulators.twins._native", lambda *tensors: (torch, tensors))
    inputs, values = problem(MeshStage(ports, "intensity"))
    model = MeshStage(ports, "intensity")
    weight = torch.randn(3, ports, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = [
        torch.autograd.grad((model.ideal(torch, values, inputs, **how) * weight).sum(), [inputs, *values.values()])
        for how in ({}, {"walk": walk})
    ]
    for plain, fast in zip(*found, strict=True):
        assert torch.allclose(plain, fast, rtol=1e-10, atol=1e-12)


def test_a_twin_owns_nothing_and_says_what_it_takes():
    twin = Twin(MeshStage(3))
    assert not list(twin.parameters())
    assert "mesh: 3 -> 3" in repr(twin)
    with pytest.raises(ValueError, match=r"takes parameters \['out_phase', 'phi', 'theta'\], not \['theta'\]"):
        twin(torch.zeros(1, 3), theta=torch.zeros(3))


def test_double_backward_is_refused():
    inputs, values = problem(MeshStage(3))
    total = Twin(MeshStage(3))(inputs, **values).square().sum()
    with pytest.raises(RuntimeError, match=r"first derivatives only.* use model\.ideal\(torch"):
        torch.autograd.grad(total, values["theta"], create_graph=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_twin_follows_its_inputs_to_cuda(model):
    inputs, values = problem(model)
    here = Twin(model)(inputs, **values)
    there = Twin(model)(inputs.cuda(), **{n: v.cuda() for n, v in values.items()})
    assert torch.allclose(there.cpu(), here, atol=1e-10)


def test_both_modules_share_one_propagation():
    layout = mesh.Layout(6)
    phases = np.random.default_rng(0).uniform(0, 6, layout.phases)
    found = mesh.unitary(np, layout.gather, *layout.split(phases))
    theta, phi, out_phase = (torch.tensor(p) for p in layout.split(phases))
    twin = mesh.unitary(torch, mesh.gather_for(torch, layout, theta), theta, phi, out_phase)
    assert np.allclose(twin.numpy(), found, atol=1e-14)
