"""Calibration against devices whose noise, gain, curvature, time and drift are known.

Statistical tests use fixed seeds; where a figure is compared with its own 95 % interval, so many may fall outside that
a sound estimate fails once in 1,000.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom

from hzo_hil import Calibration, Opaque, Stage, calibrate_model
from hzo_hil.devices.api import BoundarySpec, StageSpec
from hzo_hil.devices.errors import BadInput, DeviceError, Saturated
from hzo_hil.devices.fake import FakeDevice, FakeStage, Script
from hzo_hil.opening import open_device
from hzo_hil.updates.delta import DeltaRule
from tests.core.nets import affine_opaque, inputs, loss_of

WIDTHS = [6, 6, 6, 6, 6]
FEATURES = {"taps": True, "keyed": True, "virtual_time": True}


def device(noise: float = 0.0, activation: str = "tanh", widths: list[int] = WIDTHS, **options) -> FakeDevice:
    script = Script(noise=noise, seed=4, drift_per_call=options.pop("drift", 0.0))
    return FakeDevice.mlp(widths, activation, dtype="float64", script=script, **FEATURES | options)


def calibrated(dev: FakeDevice, activation: str = "tanh", seed: int = 0, rows: int = 16, **options) -> Opaque:
    module = affine_opaque([s.in_width for s in dev.capabilities.stages] + [6], activation, device=dev, seed=seed,
                           **options)  # fmt: skip
    module.calibrate(inputs(rows, 6, grad=False) * 0.4, loss_of)
    return module


def test_noise_lies_in_its_interval():
    inside = total = 0
    for seed in range(10):
        found = calibrated(device(0.02), seed=seed).calibration
        inside += sum(s.noise.low <= 0.02 <= s.noise.high for s in found.stages)
        total += len(found.stages)
    assert inside >= binom.ppf(0.001, total, 0.95)


def test_noise_of_nothing_is_nothing():
    found = calibrated(device()).calibration
    assert all(s.noise.value == 0 for s in found.stages)
    assert found.top_error == 0 and max(found.floor) == 0


def test_gain_of_a_linear_stage_is_that_of_its_matrix():
    """||W||_F^2 / outputs, up to the two directions that were tried: their average over seeds meets it."""
    dev = device(activation="identity")
    gains = np.mean(
        [[s.gain.value for s in calibrated(dev, "identity", seed=n).calibration.stages] for n in range(40)], 0
    )
    exact = [float(np.sum(dev.read(k)["weight"] ** 2)) / 6 for k in range(4)]
    np.testing.assert_allclose(gains, exact, rtol=0.25)


def test_a_gain_that_noise_hides_is_as_large_as_the_error_that_noise_leaves():
    """So that a plan can be made, and says that it is bad, instead of finding none."""
    module = calibrated(device(noise=300.0), plan="auto", queries_per_step=4000)
    gains = [s.gain for s in module.calibration.stages]
    assert all(np.isfinite(g.value) and g.low <= g.value <= g.high and g.value > 0 for g in gains)
    assert min(g.low for g in gains) == 0
    assert module.outcome.prediction.error > 1


def test_linear_stages_have_no_curvature_and_alike_jacobians():
    found = calibrated(device(activation="identity"), "identity").calibration
    assert max(s.curvature.value for s in found.stages) < 1e-6
    assert min(s.likeness for s in found.stages) > 0.999
    assert found.warnings() == []


def test_curvature_of_a_cubic_is_known():
    """y = x + c x^3: a central difference along signs is (1 + 3 c x^2) + c eps^2, so relative to it c at x = 0."""
    spec = StageSpec("cubic", 5, 5, structure="diagonal")
    dev = FakeDevice.functions([FakeStage(spec, lambda x, _: x + 0.25 * x**3)] * 2, dtype="float64", **FEATURES)
    found = Opaque(dev).double()
    found.calibrate(1e-3 * torch.ones(4, 5, dtype=torch.float64), loss_of)
    assert found.calibration.stages[0].curvature.value == pytest.approx(0.25, rel=1e-3)


@pytest.mark.parametrize("bend", [0.25, -0.25])
def test_truncation_of_a_cubic_is_in_phase_with_its_slope(bend):
    spec = StageSpec("cubic", 5, 5, structure="diagonal")
    dev = FakeDevice.functions([FakeStage(spec, lambda x, _: x + bend * x**3)] * 2, dtype="float64", **FEATURES)
    found = Opaque(dev).double()
    found.calibrate(1e-3 * torch.ones(4, 5, dtype=torch.float64), loss_of)
    assert found.calibration.alignment.value == pytest.approx(np.sign(bend), rel=1e-3)


def test_how_a_jacobian_turns_is_known_for_a_parabola():
    """y = x + a x^2: noise of deviation s in x changes the slope, about 1, by 2 a s."""
    spec = StageSpec("parabola", 5, 5, structure="diagonal")
    dev = FakeDevice.functions([FakeStage(spec, lambda x, _: x + 0.2 * x**2)] * 2, dtype="float64", **FEATURES)
    found = Opaque(dev).double()
    found.calibrate(1e-3 * torch.ones(4, 5, dtype=torch.float64), loss_of)
    assert found.calibration.stages[0].turning.value == pytest.approx(0.4, rel=1e-2)


# --- many stages -----------------------------------------------------------------------------------------------

MANY = [6] * 65


class Uneven(FakeDevice):
    """Reads one boundary with a noise of its own."""

    odd, own = 40, 0.1

    def _read_out(self, values, boundary, gain, keys, repeats):
        kept, self.script.noise = self.script.noise, self.own if boundary == self.odd else self.script.noise
        try:
            return super()._read_out(values, boundary, gain, keys, repeats)
        finally:
            self.script.noise = kept


@pytest.mark.parametrize("noise", [0.002, 0.05])
def test_many_stages_are_calibrated_by_a_few_hundred_queries(noise):
    module = calibrated(device(noise, widths=MANY))
    assert module.ledger.accounts["calibration"].queries <= 800
    found = module.calibration
    few = calibrated(device(noise, widths=WIDTHS)).calibration
    assert found.stages[20].noise.value == pytest.approx(few.stages[2].noise.value, rel=0.25)
    assert found.stages[20].noise.low < noise < found.stages[20].noise.high


def test_a_stage_that_is_read_with_other_noise_than_its_kind_is_not_told_theirs():
    dev = device(0.01, widths=MANY)
    dev.__class__ = Uneven
    found = calibrated(dev).calibration
    assert found.stages[Uneven.odd - 1].noise.value == pytest.approx(Uneven.own, rel=0.3)
    assert found.stages[Uneven.odd].noise.value == pytest.approx(0.01, rel=0.1)


def test_noise_that_a_read_out_adds_is_not_carried_and_noise_of_stages_is():
    assert calibrated(device(0.02)).calibration.carried.value < 0.3
    chip = open_device(
        {"kind": "emulator", "options": {"widths": [8] * 7, "activation": "tanh", "read_noise_std": 0.02}}
    )
    module = Opaque([Stage(chip, k, leaf=DeltaRule("tanh" if k < 5 else "identity")) for k in range(6)])
    module.calibrate(0.5 * torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), loss_of)
    assert module.calibration.carried.value > 0.4


def test_drift_is_found_and_its_absence_too():
    still = calibrated(device(1e-3, query_s=1e-4)).calibration.drift
    moving = calibrated(device(1e-3, query_s=1e-4, drift=1e-3)).calibration
    assert still.low <= 0 <= still.high
    assert moving.drift.low > 0 and moving.drift_unit == "device second"
    assert calibrated(device()).calibration.drift_unit == "call"


def test_declared_seconds_are_taken_and_others_measured():
    found = calibrated(device(latency_s=2e-3, query_s=3e-6, settling_s=0.5)).calibration
    assert (found.call_s.value, found.evaluation_s.value, found.settling_s.value) == (2e-3, 3e-6, 0.5)
    slow = FakeDevice.mlp(WIDTHS, dtype="float64", script=Script(latency_s=0.01), taps=True)
    assert 0.008 < calibrated(slow).calibration.call_s.value < 0.1


def test_the_converter_of_a_read_out_is_seen_where_nobody_declares_it():
    spec = StageSpec("stairs", 4, 4)
    dev = FakeDevice.functions([FakeStage(spec, lambda x, _: np.rint(x / 0.125) * 0.125)], dtype="float64", **FEATURES)
    module = Opaque(dev).double()
    module.calibrate(inputs(16, 4, grad=False), loss_of)
    assert module.calibration.stages[0].out_step == pytest.approx(0.125)


def test_every_query_is_counted_and_none_depends_on_batches():
    found = []
    for limit in (0, 7):
        module = calibrated(device(0.02, max_batch=limit))
        spent = module.ledger.accounts["calibration"]
        assert spent.queries == module.ledger.total.queries == sum(c.rows for c in module.network.devices[0].calls)
        assert spent.queries == module.calibration.queries + 2 * 16
        assert spent.queries < 500
        found.append(module.calibration)
    # The device drifts by nothing, per call: of calls there are more where they are smaller.
    one, two = (replace(c, drift=found[0].drift) for c in found)
    assert one == two


def test_nothing_of_the_model_changes():
    host = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.BatchNorm1d(6), torch.nn.Dropout(0.5))
    model = torch.nn.Sequential(host, affine_opaque(WIDTHS, device=device(0.01)), torch.nn.Linear(6, 2)).double()
    before = {n: v.clone() for n, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    state = torch.get_rng_state()
    found = calibrate_model(model, inputs(20, 3, grad=False), lambda y: (y**2).mean())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items() if n in before)
    assert all(p.grad is None for p in model.parameters()) and model.training and host[1].training
    layer = model[1]
    assert found == {layer.name: layer.calibration} and layer.forwards == 0


def test_two_layers_of_a_model_are_both_calibrated():
    layers = [affine_opaque(WIDTHS, device=device(0.01, identity=n), name=n) for n in ("one", "two")]
    found = calibrate_model(torch.nn.Sequential(*layers), inputs(20, 6, grad=False), loss_of)
    assert set(found) == {"one", "two"} and found["one"].target[-1] > 0


def test_a_calibration_survives_json():
    found = calibrated(device(0.02)).calibration
    assert Calibration.from_json(found.as_json()) == found
    with pytest.raises(BadInput, match="this is no calibration"):
        Calibration.from_json('{"devices": []}')


def test_state_carries_it_to_the_same_devices_only():
    module = calibrated(device(0.02))
    other = affine_opaque(WIDTHS, device=device(0.02), seed=0)
    other.load_state_dict(module.state_dict())
    assert other.calibration == module.calibration
    with pytest.warns(UserWarning, match="is loaded on another"):
        stranger = affine_opaque(WIDTHS, device=device(0.02, identity="another"))
        stranger.load_state_dict(module.state_dict())
    assert stranger.calibration is None
    with pytest.raises(BadInput, match="does not fit opaque"):
        stranger.adopt(module.calibration, 8)


# --- bad devices and bad input ---------------------------------------------------------------------------------


def test_a_device_that_answers_constants_is_refused_in_words():
    spec = StageSpec("dead", 4, 4)
    dev = FakeDevice.functions([FakeStage(spec, lambda x, _: np.full_like(x, 0.5))], dtype="float64", **FEATURES)
    with pytest.raises(
        DeviceError, match="answer the same whatever is driven at boundary 0.*Is the light or the supply"
    ):
        Opaque(dev).double().calibrate(inputs(8, 4, grad=False), loss_of)


def test_a_device_that_saturates_is_refused_in_words():
    dev = device(boundaries=BoundarySpec(out_low=-0.01, out_high=0.01))
    with pytest.raises(Saturated, match="sit at the end of the read-out's range"):
        calibrated(dev)


def test_a_loss_that_does_not_depend_on_the_outputs_is_refused():
    module = affine_opaque(WIDTHS, device=device())
    with pytest.raises(BadInput, match="does not depend on the network's outputs"):
        module.calibrate(inputs(8, 6, grad=False), lambda y: (0 * y).sum())


def test_a_model_without_opaque_layers_is_refused():
    with pytest.raises(BadInput, match="no Opaque layer"):
        calibrate_model(torch.nn.Linear(2, 2), torch.zeros(3, 2), loss_of)


def test_large_gains_are_warned_of():
    dev = FakeDevice.functions(
        [FakeStage(StageSpec("amplifier", 4, 4), lambda x, _: 3.0 * x)], dtype="float64", **FEATURES
    )
    with pytest.warns(UserWarning, match=r"gain of its Jacobian is 9, outside 0.33..3"):
        Opaque(dev).double().calibrate(inputs(8, 4, grad=False), loss_of)
