"""Node by node: biases of any size are found in closed form, and a mesh with free errors is the mesh that has them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hzo_hil.simulators.fitted import EXPECTED, FittedMesh
from hzo_hil.simulators.imperfect import MeshErrors
from hzo_hil.simulators.mesh_stage import MeshStage
from hzo_hil.simulators.nodewise import settings, solve
from hzo_hil.simulators.svd_stage import SVDStage

TWO_PI = 2 * math.pi


def ask(stage: MeshStage, commanded: np.ndarray) -> np.ndarray:
    """Answers to light in one port after the other."""
    keys = np.arange(stage.ports, dtype=np.uint64)
    state = stage.program(stage.named_phases(commanded), 0)
    return stage.run(state, np.eye(stage.ports), keys)


def found(stage: MeshStage, seed: int = 0) -> dict[str, np.ndarray]:
    base = np.random.default_rng(seed).uniform(0, TWO_PI, stage.layout.phases)
    wanted = settings(stage.layout, base)
    return solve(stage.layout, wanted, np.stack([ask(stage, c) for c in wanted]))


def off(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(np.angle(np.exp(1j * (a - b)))).max())


@pytest.mark.parametrize("scheme", ["clements", "reck"])
@pytest.mark.parametrize("ports", [2, 3, 6, 9])
@pytest.mark.parametrize("bias", [0.3, math.pi])
def test_every_bias_and_coupler_is_found_to_rounding(scheme, ports, bias):
    errors = MeshErrors(coupler_std=0.05, phase_bias=bias, bias_law="uniform")
    stage = MeshStage(ports, errors=errors, seed=4, scheme=scheme)
    known = found(stage)
    first, second = stage.mesh._couplers
    assert off(known["bias"], stage.mesh._bias) < 1e-9
    np.testing.assert_allclose(known["first"], first, atol=1e-9)
    np.testing.assert_allclose(known["second"], second, atol=1e-9)


def test_a_loss_common_to_all_nodes_of_a_column_does_not_matter_to_the_phases():
    stage = MeshStage(6, errors=MeshErrors(phase_bias=1.0, loss_db=0.2), seed=2)
    assert off(found(stage)["bias"], stage.mesh._bias) < 0.1


def test_the_number_of_settings_is_two_a_shifter_and_two():
    layout = MeshStage(5).layout
    asked = settings(layout, np.full(layout.phases, 1.0))
    assert asked.shape == (2 * (2 * layout.nodes + 1), layout.phases)
    assert asked.min() >= 0 and asked.max() < TWO_PI
    moved = np.abs(np.exp(1j * asked[2::2]) - np.exp(1j * asked[0])) > 1e-12
    assert (moved.sum(axis=1) == 1).all()


@pytest.mark.parametrize("detection", ["homodyne", "intensity"])
def test_with_the_true_errors_the_fitted_twin_is_the_imperfect_mesh(detection):
    errors = MeshErrors(coupler_std=0.05, phase_bias=1.0, gamma_std=0.002, crosstalk=0.01)
    stage = MeshStage(6, detection=detection, errors=errors, seed=7)
    twin = FittedMesh(stage)
    first, second = stage.mesh._couplers
    true = {
        "bias": stage.mesh._bias, "slope": stage.mesh._gain - 1, "first": first, "second": second,
        "crosstalk": np.array([0.01]),
    }  # fmt: skip
    for name, value in true.items():
        getattr(twin, name).copy_(torch.as_tensor(value))
    rng = np.random.default_rng(1)
    commanded, x = rng.uniform(0, TWO_PI, (3, stage.layout.phases)), rng.standard_normal((5, 6))
    keys = np.arange(5, dtype=np.uint64)
    expected = [stage.run(stage.program(stage.named_phases(c), 0), x, keys) for c in commanded]
    np.testing.assert_allclose(twin.outputs(torch.as_tensor(commanded.T), torch.as_tensor(x)), expected, atol=1e-12)
    values = {n: torch.as_tensor(v) for n, v in stage.named_phases(commanded[0]).items()}
    np.testing.assert_allclose(twin(torch.as_tensor(x), **values), expected[0], atol=1e-12)


@pytest.mark.parametrize("name", list(EXPECTED))
def test_gradients_of_every_unknown_and_of_the_phases_are_those_of_differences(name):
    stage = MeshStage(4)
    twin = FittedMesh(stage)
    rng = np.random.default_rng(3)
    for unknown, scale in EXPECTED.items():
        drawn = getattr(twin, unknown)
        drawn.copy_(torch.as_tensor(scale * rng.standard_normal(drawn.shape)))
    commanded = torch.as_tensor(rng.uniform(0, TWO_PI, (stage.layout.phases, 2))).requires_grad_()
    x, weight = (torch.as_tensor(rng.standard_normal((3, 4))) for _ in range(2))
    parameter = getattr(twin, name).requires_grad_()

    def loss() -> torch.Tensor:
        return (twin.outputs(commanded, x) * weight).sum()

    for tensor in (parameter, commanded):
        (gradient,) = torch.autograd.grad(loss(), tensor)
        direction = torch.as_tensor(rng.standard_normal(tensor.shape))
        with torch.no_grad():
            values = []
            for step in (1e-6, -1e-6):
                tensor.add_(step * direction)
                values.append(float(loss()))
                tensor.sub_(step * direction)
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(float((gradient * direction).sum()), rel=1e-6, abs=1e-8)


def test_a_stage_that_is_not_one_mesh_is_refused():
    with pytest.raises(ValueError, match="a stage of one mesh only, not for a SVDStage"):
        FittedMesh(SVDStage(4, 4))
