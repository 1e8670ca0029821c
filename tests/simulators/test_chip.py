"""Chips by name."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hzo_hil.simulators.chip import build, known
from hzo_hil.simulators.stages import (
    ConvCore,
    Crossbar,
    Diffractive,
    Elementwise,
    EmulatedConv,
    EmulatedLinear,
    MeshStage,
    RingBank,
    SVDStage,
    TensorCore,
)

ROOT = Path(__file__).resolve().parents[2]


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
    weak, strong = (build("onn", "calibrated_chip", 5, ports=6, phase_bias=b)[2].mesh for b in (0.05, 0.15))
    assert np.allclose(3 * weak._bias, strong._bias, rtol=1e-12)
    assert np.array_equal(weak._couplers, strong._couplers)


def test_seeds_and_stages_are_different_draws():
    first, second = build("onn", "calibrated_chip", 5, ports=6, layers=2, activation="none")
    other = build("onn", "calibrated_chip", 6, ports=6)[0]
    assert not np.allclose(first.mesh._bias, second.mesh._bias)
    assert not np.allclose(first.mesh._bias, other.mesh._bias)


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


# --- other devices ------------------------------------------------------------------------------------------------


def test_banks_and_crossbars_alternate_with_activations():
    for kind, stage in (("ring_bank", RingBank), ("crossbar", Crossbar), ("tensor_core", TensorCore)):
        models = build(kind, widths=[6, 4, 3], activation="tanh")
        assert [type(m) for m in models] == [stage, Elementwise, stage]
        assert [(m.in_width, m.out_width) for m in models] == [(6, 4), (4, 4), (4, 3)]
        assert len(build(kind, widths=[6, 4, 3], last_activation=True)) == 4
        assert len({m.name for m in models}) == 3
        assert [m.index for m in models[::2]] == [0, 2]


def test_units_of_masks_see_what_the_unit_before_saw():
    models = build("diffractive", units=2, pixels=16, input_pixels=4, detectors=3, detector_pixels=4, activation="relu")
    assert [type(m) for m in models] == [Diffractive, Elementwise, Diffractive]
    assert [m.out_width for m in models] == [16, 16, 3]
    assert build("diffractive", detectors=0, camera=8)[0].out_width == 64
    assert build("diffractive", detectors=0, pixels=8)[0].out_width == 64


def test_convolutions_come_before_matrices():
    models = build("tensor_core", image=[1, 8, 8], convs=[[4, 3, 2, 1], [6, 3]], widths=[10, 5], activation="tanh")
    assert [type(m) for m in models[::2]] == [ConvCore, ConvCore, TensorCore, TensorCore]
    assert [(m.in_width, m.out_width) for m in models[::2]] == [(64, 64), (64, 24), (24, 10), (10, 5)]
    assert [type(m) for m in build("tensor_core", image=[1, 4, 4], convs=[[2, 3]])] == [ConvCore]


def test_emulated_convolutions_alternate_with_activations_and_end_in_matrices():
    models = build("conv_emulator", image=[1, 8, 8], convs=[[4, 3, 2, 1], [6, 3]], widths=[5], circular=True)
    assert [type(m) for m in models] == [EmulatedConv, Elementwise, EmulatedConv, Elementwise, EmulatedLinear]
    assert [(m.in_width, m.out_width) for m in models[::2]] == [(64, 64), (64, 24), (24, 5)]
    assert models[0].reach.circular and models[1].kind == "relu"
    assert build("conv_emulator", "aihwkit", image=[1, 4, 4], convs=[[2, 3]])[0].in_bits == 7
    with pytest.raises(ValueError, match="conv_emulator needs an image and convs"):
        build("conv_emulator", convs=[], widths=[4, 3])


def test_their_presets_have_the_published_values():
    rings = [build("ring_bank", preset)[0].ring for preset in ("hq", "mq", "lq")]
    assert [(r.r1, r.r2, r.a, r.radius, r.group_index) for r in rings] == [
        (0.99, 0.99, 0.987, 5e-6, 2.353),
        (0.93, 0.93, 0.925, 5e-6, 2.353),
        (0.85, 0.85, 0.845, 5e-6, 2.353),
    ]
    bank = build("ring_bank", "feedback_bank")[0]
    assert -20 * math.log10(bank.ring.a) / (2 * math.pi * bank.ring.radius * 100) == pytest.approx(
        2.5, rel=1e-2
    )  # dB/cm
    phases = np.linspace(0, 0.3, 30_001)
    steepest = np.abs(np.gradient(bank.ring.drop(np, phases) - bank.ring.through(np, phases), phases)).max()
    low, high = bank.ring.reach
    assert math.log2((high - low) / (steepest * bank.errors.programming_std)) == pytest.approx(9, abs=0.2)  # bits
    cells = build("crossbar", "pcm")[0].cells
    assert cells.write_std(np.array([0.0, 25e-6])) == pytest.approx([0.26348e-6, (0.26348 + 1.965 - 1.1731) * 1e-6])
    assert (cells.drift.nu, cells.drift.t0_s) == (0.055, 20.0)
    assert (build("crossbar", "rram")[0].cells.g_min, build("crossbar", "rram")[0].cells.g_max) == (1e-6, 40e-6)
    printed = build("diffractive", "terahertz")[0]
    assert (printed.wavelength, printed.pitch, printed.distance) == (0.75e-3, 0.4e-3, 0.03)
    assert build("diffractive", "lcos")[0].errors.phase_bits == 8


def test_options_reach_the_models():
    bank = build("ring_bank", widths=[3, 2], spacing=1e11, drift_std=1e9, drift_tau_s=2.0, signed_inputs=True)[0]
    assert (bank.spacing, bank.drift.std, bank.drift.tau_s, bank.signed) == (1e11, 1e9, 2.0, True)
    crossbar = build("crossbar", widths=[3, 2], write_noise=[0.1, 0.2], drift_nu=0.1, wire_resistance=2.0)[0]
    assert (crossbar.cells.write_noise, crossbar.cells.drift.nu, crossbar.cells.wire_resistance) == (
        (0.1, 0.2),
        0.1,
        2.0,
    )
    core = build("tensor_core", widths=[3, 2], core=4, shared=True, coupler_std=0.1, scheme="reck")[0]
    assert (core.core, core.shared, core.errors.coupler_std, core.scheme) == (4, True, 0.1, "reck")
    assert build("onn", ports=4, scheme="butterfly")[0].layout.scheme == "butterfly"
    bent = build("svd_onn", widths=[3, 3, 2], activation="saturable", activation_options={"optical_depth": 3.0})[1]
    assert bent.options == {"optical_depth": 3.0}


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("ring_bank", {"r1": 1.5}, r"r1 1.5 must be in \(0, 1\)"),
        ("ring_bank", {"widths": [3]}, "widths must be at least two integers"),
        ("ring_bank", {"layers": 0}, "layers must be an integer of at least 1"),
        ("ring_bank", {"spacing": 1e12}, "do not fit into a free spectral range"),
        ("diffractive", {"pixels": 30}, "input_pixels 8 do not fit on masks of 30 pixels"),
        ("diffractive", {"detectors": 40, "detector_pixels": 6}, "40 detectors of 6 x 6 pixels do not fit on 32 x 32"),
        ("diffractive", {"units": 0}, "units must be an integer of at least 1"),
        ("crossbar", {"g_min": 1.0}, "0 <= g_min < g_max in siemens"),
        ("crossbar", {"widths": [3, 0]}, "widths must be at least two integers"),
        ("tensor_core", {"core": 1}, "at least 2 x 2 ports"),
        ("tensor_core", {"loss_db": -1.0}, "loss_db must be finite and not negative"),
        ("tensor_core", {"image": [1, 4, 4], "convs": [[2, 5]]}, "a kernel of 5 does not fit on 4 x 4 pixels"),
        ("tensor_core", {"convs": [[2, 3]]}, r"convs need an image \[channels, height, width\]"),
        ("tensor_core", {"image": [1, 4, 4]}, "an image is for convolutions"),
        (
            "tensor_core",
            {"image": [1, 4, 4], "convs": [[2]]},
            r"a convolution is \[channels, kernel, stride, padding\]",
        ),
        ("tensor_core", {"scheme": "butterfly", "widths": [3, 3]}, "cannot be programmed with a matrix"),
    ],
)
def test_impossible_devices_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        build(kind, **options)


def test_no_kind_needs_torch():
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from hzo_hil.simulators.chip import build\n"
        "keys = np.arange(2, dtype=np.uint64)\n"
        "for kind in ('ring_bank', 'diffractive', 'crossbar', 'tensor_core'):\n"
        "    x = np.ones((2, build(kind)[0].in_width), np.float32)\n"
        "    for m in build(kind):\n"
        "        state = m.program(m.initial(np.random.default_rng(0)), 1)\n"
        "        x = m.run(m.at(state, 1.0), x, keys)\n"
        "    print(kind, x.shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(2, ") == 4


@pytest.mark.parametrize("kind", known())
def test_unknown_presets_list_those_known(kind):
    with pytest.raises(ValueError, match=rf"unknown preset 'best' for kind '{kind}': known are ideal"):
        build(kind, "best")


@pytest.mark.parametrize(("kind", "preset"), [(k, p) for k, presets in known().items() for p in presets])
def test_every_preset_runs_from_end_to_end(kind, preset):
    sizes = {"widths": [4, 5, 3]} if kind in ("svd_onn", "emulator") else {}
    models = build(kind, preset, 1, **({"ports": 4} if kind in ("onn", "chip") else sizes))
    values = np.random.default_rng(0).uniform(0, 1, (5, models[0].in_width)).astype(np.float32)
    for model in models:
        state = model.program(model.initial(np.random.default_rng(1)), 1)
        values = model.run(state, values, np.arange(5, dtype=np.uint64))
        assert values.dtype == np.float32
        assert values.shape == (5, model.out_width)
        assert np.isfinite(values).all()
        json.dumps(model.settings(), allow_nan=False)
    assert np.ptp(values, axis=0).max() > 0
