"""The noise-free copy of a specimen: what the specimen itself computes where nothing is noisy, with right gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hzo_hil.simulators.crossbar import Crossbar
from hzo_hil.simulators.detector import Detector
from hzo_hil.simulators.imperfect import MeshErrors
from hzo_hil.simulators.model import Port
from hzo_hil.simulators.stages import Elementwise, EmulatedLinear, MeshStage, SVDStage
from hzo_hil.simulators.twins import Noiseless, Twin

RAW = MeshErrors(
    coupler_std=0.1, phase_bias=0.4, gamma_std=0.004, crosstalk=0.02, calibrated_at=np.pi, loss_db=0.2, loss_std_db=0.1
)
SLOW = Detector(bandwidth=1e9, temperature=0, noise_std=0, read_after_s=2e-10, full_scale=1e9)
SPECIMENS = {
    "mesh": MeshStage(5, errors=RAW, seed=3),
    "intensities": MeshStage(4, "intensity", errors=RAW, seed=1),
    "reck": MeshStage(4, errors=RAW, scheme="reck"),
    "svd by phases": SVDStage(3, 4, trained="phases", scale=1.7, errors=RAW, seed=2),
    "svd": SVDStage(4, 3),
    "settling detector": Elementwise(3, "electro_optic", 1.3, SLOW),
    "saturating detector": MeshStage(3, errors=RAW, detector=Detector(saturation_current=1e-3)),
    "rails": MeshStage(3, errors=RAW, detector=Detector(saturation_current=1e-3, saturation_law="hard")),
    "mismatched emulator": EmulatedLinear(3, 4, "tanh", weight_mismatch=0.2, slope_mismatch=0.1, out_bound=0.9),
    "ends of converters": MeshStage(4, errors=RAW, input=Port(-0.5, 0.5), output=Port(-0.3, 0.3)),
}


def problem(model):
    rng = np.random.default_rng(0)
    made = {n: v + 0.1 * rng.uniform(0, 1, v.shape) for n, v in model.initial(rng).items()}
    values = {n: torch.tensor(v, requires_grad=True) for n, v in made.items()}
    inputs = torch.tensor(rng.uniform(0.2, 1, (3, model.in_width)), requires_grad=True)
    return inputs, values


@pytest.mark.parametrize("model", SPECIMENS.values(), ids=SPECIMENS)
def test_a_copy_answers_as_the_specimen_does_without_noise(model):
    inputs, values = problem(model)
    plain = {n: v.detach().numpy() for n, v in values.items()}
    expected = model.run(model.program(plain, 7), inputs.detach().numpy(), np.arange(3, dtype=np.uint64))
    assert np.allclose(Noiseless(model)(inputs, **values).detach().numpy(), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["mesh", "intensities", "svd by phases", "saturating detector", "mismatched emulator"])
def test_gradients_of_a_copy_are_those_of_finite_differences(name):
    inputs, values = problem(SPECIMENS[name])
    names, copied = list(values), Noiseless(SPECIMENS[name])
    assert torch.autograd.gradcheck(
        lambda x, *given: copied(x, **dict(zip(names, given, strict=True))), (inputs, *values.values())
    )


def test_noise_converters_and_drift_are_left_out():
    noisy = MeshErrors(
        phase_bias=0.4, programming_std=0.3, shot_phase_std=0.2, phase_drift_std=0.5, phase_bits=4, v_pi=4.36
    )
    inputs, values = problem(MeshStage(4, errors=MeshErrors(phase_bias=0.4)))
    bare = Noiseless(MeshStage(4, errors=MeshErrors(phase_bias=0.4)))(inputs, **values)
    model = MeshStage(4, errors=noisy, detector=Detector(noise_std=0.3), output=Port(-2, 2, 0.25))
    assert torch.equal(Noiseless(model)(inputs, **values), bare)


def test_a_copy_differs_from_the_data_sheet_by_the_errors_and_the_light():
    model = SPECIMENS["mesh"]
    inputs, values = problem(model)
    assert not torch.allclose(Noiseless(model)(inputs, **values), Twin(model)(inputs, **values), atol=0.05)
    assert torch.allclose(Noiseless(model, power=0.5)(inputs, **values), 0.5 * Noiseless(model)(inputs, **values))


def test_a_model_without_a_differentiable_form_says_so():
    with pytest.raises(ValueError, match="no differentiable copy of a Crossbar"):
        model = Crossbar(3, 2)
        Noiseless(model)(torch.ones(1, 3), weight=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="Set trained to phases"):
        Noiseless(SVDStage(3, 3, errors=RAW))(torch.ones(1, 3), weight=torch.eye(3))
