"""Chips by name."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hzo_hil.simulators.chip import build
from hzo_hil.simulators.stages import Elementwise, EmulatedLinear, MeshStage, SVDStage


def test_an_onn_alternates_meshes_and_activations():
    kinds = [type(m) for m in build("onn", layers=3, ports=8)]
    assert kinds == [MeshStage, Elementwise, MeshStage, Elementwise, MeshStage]
    assert type(build("onn", layers=3, ports=8, last_activation=True)[-1]) is Elementwise
    assert [type(m) for m in build("onn", layers=2, ports=4, activation="none")] == [MeshStage, MeshStage]
    names = [m.name for m in build("onn", layers=3, ports=8)]
    assert len(set(names)) == 5


def test_an_svd_onn_follows_its_widths():
    models = build("svd_onn", widths=[6, 4, 3], activation="relu")
    assert [(m.in_width, m.out_width) for m in models] == [(6, 4), (4, 4), (4, 3)]
    assert [type(m) for m in models] == [SVDStage, Elementwise, SVDStage]


def test_an_emulator_has_one_stage_a_layer():
    models = build("emulator", layers=3, width=16)
    assert all(type(m) is EmulatedLinear for m in models)
    assert [m.activation for m in models] == ["tanh", "tanh", "none"]
    assert [m.out_width for m in build("emulator", widths=[8, 6, 2])] == [6, 2]


def test_a_chip_is_an_onn_seen_from_outside():
    assert build("chip", "calibrated_chip", 3, ports=4) == build("onn", "calibrated_chip", 3, ports=4)


def test_the_calibrated_chip_has_its_published_values():
    model = build("onn", "calibrated_chip", ports=4)[0]
    e, d = model.errors, model.detector
    assert (e.coupler_std, e.phase_bias, e.crosstalk, e.bias_law) == (0.02, 0.15, 0.005, "normal")
    assert (e.phase_bits, e.v_pi, e.v_max, e.calibrated_at) == (8, 4.36, 10.8, math.pi)
    assert (d.responsivity, d.dark_current, d.load, d.temperature, d.bandwidth) == (1.0, 1e-10, 166.0, 300.0, 20e9)
    assert d.full_scale == 1e-3
    assert model.output.step == 0
    assert 1e-4 < model.read_noise < 1e-2


def test_the_other_presets_have_their_published_values():
    chip = build("onn", "l2ight_chip", ports=4)[0].errors
    assert (chip.phase_bias, chip.bias_law, chip.gamma_std, chip.coupler_std) == (1.0, "uniform", 0.002, 0.0)
    emulator = build("emulator", "aihwkit")[0]
    assert (emulator.in_bits, emulator.out_bits, emulator.read_noise_std, emulator.out_bound) == (7, 9, 0.06, 12.0)
    assert build("onn", ports=4)[0].read_noise == 0


def test_options_override_the_preset():
    model = build("onn", "calibrated_chip", ports=4, phase_bias=0.05, out_bits=8, out_bound=1.0)[0]
    assert model.errors.phase_bias == 0.05
    assert model.errors.coupler_std == 0.02
    assert model.output.step == pytest.approx(1 / 127)
    intensity = build("onn", ports=4, detection="intensity", out_bits=8, out_bound=1.0)[0]
    assert (intensity.output.low, intensity.output.step) == (0.0, pytest.approx(1 / 255))


def test_another_strength_is_the_same_chip():
    """Common random numbers: a bias of 0.05 rad is a third of the bias of 0.15 rad; couplers do not move."""
    weak, strong = (build("onn", "calibrated_chip", 5, ports=6, phase_bias=b)[2]._mesh for b in (0.05, 0.15))
    assert np.allclose(3 * weak._bias, strong._bias, rtol=1e-12)
    assert np.array_equal(weak._couplers, strong._couplers)


def test_seeds_and_stages_are_different_draws():
    first, second = build("onn", "calibrated_chip", 5, ports=6, layers=2, activation="none")
    other = build("onn", "calibrated_chip", 6, ports=6)[0]
    assert not np.allclose(first._mesh._bias, second._mesh._bias)
    assert not np.allclose(first._mesh._bias, other._mesh._bias)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("lens",), {}, "unknown kind of chip 'lens': known are onn, chip, svd_onn, emulator"),
        (("onn", "perfect"), {}, "unknown preset 'perfect' for kind 'onn': known are ideal, calibrated_chip"),
        (("emulator", "l2ight_chip"), {}, "unknown preset 'l2ight_chip' for kind 'emulator': known are ideal, aihwkit"),
        (("onn",), {"phase_bais": 0.1}, "unknown options for kind 'onn': phase_bais; known are layers, ports"),
        (("onn",), {"ports": 2.5}, "ports must be an integer of at least 1, not 2.5"),
        (("onn",), {"detection": "eyes"}, "unknown detection 'eyes'"),
        (("svd_onn",), {}, "widths must be at least two integers"),
        (("onn", "ideal", -1), {}, "seed must be an integer of at least 0, not -1"),
    ],
)
def test_what_is_unknown_is_named_with_what_is_known(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        build(*arguments, **options)
