"""The kit passes what is sound, and fails each broken device in the one row that is about its fault."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from hzo_hil.devices.api import BoundarySpec, ChannelLimit, ParameterSpec, StageSpec
from hzo_hil.devices.conformance import NAMES, check, likeness, values
from hzo_hil.devices.conformance.bench import ROUNDING
from hzo_hil.devices.conformance.stairs import grid_of, stair_of
from hzo_hil.devices.errors import BadInput, LinkLost
from hzo_hil.devices.fake import FakeDevice, Script
from hzo_hil.devices.simulated import SimulatedDevice
from hzo_hil.simulators import chip

# Tests are collected without a package: the broken devices beside this file are loaded by their path.
_spec = importlib.util.spec_from_file_location("broken_devices", Path(__file__).with_name("broken.py"))
broken = importlib.util.module_from_spec(_spec)
sys.modules["broken_devices"] = broken
_spec.loader.exec_module(broken)

MEASURE_ONLY = {"noise", "linear range", "speed"}
"""Rows that hold nothing to a declaration: they only fail where the device does not answer."""


SIZES = {
    "onn": {"layers": 2, "ports": 4},
    "chip": {"layers": 2, "ports": 4},
    "conv_emulator": {"image": [2, 4, 4], "convs": [[3, 3, 1, 1]], "widths": [3]},
    "diffractive": {"pixels": 8, "input_pixels": 2, "detectors": 3, "detector_pixels": 2},
}


def simulated(kind: str, preset: str, **options) -> SimulatedDevice:
    sizes = SIZES.get(kind, {"widths": [4, 5, 3]})
    return SimulatedDevice(chip.build(kind, preset=preset, seed=1, **sizes), **options)


PRESETS = [(kind, preset) for kind, presets in chip.known().items() for preset in presets]


@pytest.mark.parametrize(("kind", "preset"), PRESETS, ids=lambda v: v)
def test_every_simulated_preset_passes(kind, preset):
    """Noise follows keys, so this cannot fail by chance."""
    report = check(lambda: simulated(kind, preset), quick=True)
    assert report.failed() == []
    assert [r.name for r in report.rows] == list(NAMES)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pipelined", [False, True])
def test_a_noisy_fake_device_passes(seed, pipelined):
    """Each run fails by chance with probability at most 1e-3 (the kit's total); the noise is seeded."""
    report = check(
        lambda: FakeDevice.mlp(
            [4, 5, 3],
            taps=True,
            repeats=True,
            read_noise=0.02,
            pipelined=pipelined,
            script=Script(noise=0.02, seed=seed),
        ),
        seed=seed,
        quick=True,
    )
    assert report.failed() == []
    assert {r.name for r in report.rows if r.outcome == "skip"}.isdisjoint({"taps", "repeats", "declared noise"})


def test_ends_only_and_limited_batches_pass():
    report = check(
        lambda: FakeDevice.mlp([4, 5, 3], inner=False, max_batch=7, max_bytes=4 * 8 * 5, dtype="float64"), quick=True
    )
    assert report.failed() == []
    skipped = {r.name: r.detail for r in report.rows if r.outcome == "skip"}
    assert "inner boundary" in skipped["inner boundaries"]
    assert "largest batch" not in skipped


def test_converters_slew_limits_and_channel_limits_pass():
    bounds = BoundarySpec(low=-1, high=1, in_step=0.02, out_low=-2, out_high=2, out_step=0.01)
    parameter = {"low": -1.0, "high": 1.0, "slew": 0.3, "levels": tuple(np.linspace(-1, 1, 201))}
    report = check(lambda: FakeDevice.mlp([4, 5, 3], boundaries=bounds, parameter=parameter), quick=True)
    assert report.failed() == []


@pytest.mark.parametrize(
    ("name", "source"),
    [(n, s) for n, sources in broken.BROKEN.items() for s in sources],
    ids=[f"{n}-{i}" for n, sources in broken.BROKEN.items() for i in range(len(sources))],
)
def test_a_broken_device_fails_the_check_of_its_fault_and_no_other(name, source):
    """Where the device is noisy (repeats, declared noise, drift), 1e-3 is the chance of another row failing; seeded."""
    report = check(source, quick=True)
    assert report.failed() == [name]
    row = next(r for r in report.rows if r.name == name)
    assert row.detail and row.change
    assert any(name in text for text in report.to_change())


def test_every_check_that_can_fail_has_a_device_that_fails_it():
    assert set(NAMES) - MEASURE_ONLY == set(broken.BROKEN)
    assert all(broken.BROKEN.values())


@pytest.mark.parametrize(
    ("source", "names"),
    [
        (broken.RowsLeak, {"batching equals singles", "order independence"}),
        (broken.answering(lambda x, y: y[:, :-1]), {"shapes"}),
        (broken.answering(lambda x, y: y.T), {"shapes"}),
        (broken.answering(lambda x, y: y * np.nan), {"ranges"}),
        (broken.answering(lambda x, y: None), {"shapes", "dtypes"}),
    ],
)
def test_cruder_faults_are_seen_where_they_belong(source, names):
    report = check(source, quick=True)
    assert not report.passed
    assert names <= set(report.failed())


def test_the_core_never_skips_and_skips_name_what_is_missing():
    report = check(broken.sound, quick=True)
    assert all(r.outcome != "skip" for r in report.rows if r.group == "core")
    assert all(r.detail for r in report.rows if r.outcome == "skip")


def test_a_reboot_told_in_words_passes():
    assert check(broken.RebootsInWords, only=["reboot"]).passed


def test_a_driver_that_does_not_open_fails_everything_in_words():
    def wrong():
        raise OSError("no such port")

    report = check(wrong)
    assert not report.passed
    assert report.rows[0].name == "opens"
    assert "OSError: no such port" in report.rows[0].detail


def test_an_error_of_the_project_while_opening_is_the_callers():
    def wrong():
        raise LinkLost("nobody answers at zmq+tcp://bench:5555")

    with pytest.raises(LinkLost, match="nobody answers"):
        check(wrong)


def test_a_lost_device_is_not_asked_for_ever():
    report = check(broken.Lost, quick=True)
    texts = [r.detail for r in report.rows]
    assert sum("bench-9 did not answer" in t for t in texts) == 3
    assert "not judged: the device was lost in 3 checks in a row" in texts


def test_unknown_checks_are_named():
    with pytest.raises(BadInput, match="no check 'tapes'; it has: description, shapes"):
        check(broken.sound, only=["tapes"])


def test_what_the_device_held_is_put_back():
    device = broken.sound()
    before = [device.read(k) for k in range(2)]
    assert check(lambda: device, quick=True).passed
    for k in range(2):
        for name, value in device.read(k).items():
            np.testing.assert_allclose(value, before[k][name], rtol=1e-6)


def test_the_report_is_a_table_and_json():
    report = check(lambda: simulated("emulator", "aihwkit"), quick=True)
    told = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert told["passed"] is True
    assert told["false_alarm"] == 1e-3
    figures = told["figures"]
    assert figures["noise (std at fixed input)"]["stage 2"] == pytest.approx(0.06, rel=0.2)
    assert figures["output step, found (declared)"]["stage 2"] == "0.04706 (0.04706)"
    table = report.table()
    assert "PASSED" in table
    assert table.rstrip().splitlines()[-1].strip("- ")
    assert all(name in table for name in NAMES)


def test_a_report_of_failures_ends_with_what_to_change():
    table = check(broken.BadSnapshot, quick=True, only=["snapshot", "health"]).table()
    assert table.endswith(
        "what to change\n  - snapshot: return a dict of plain numbers, text, lists and dicts (array.tolist(), float(x))"
    )


def test_the_converter_steps_of_a_device_are_found():
    figures = check(lambda: broken.stair(0.05, 0), only=["input converter", "output converter"]).figures
    assert figures["input step, found (declared)"]["stage 1"].startswith("0.050")


def test_the_longest_call_is_told():
    figures = check(broken.LongestCall, quick=True, only=["shapes"]).figures
    assert figures["seconds of the longest call (longest_call_s)"].endswith("(0.001)")


def test_neither_torch_nor_pytest_is_needed(run_python):
    code = "from hzo_hil.devices.conformance import check\nfrom hzo_hil.devices.fake import FakeDevice\n" \
        "print(check(lambda: FakeDevice.mlp([3, 2]), quick=True).passed)"  # fmt: skip
    done = run_python(code, without=["torch", "pytest", "scipy", "zmq", "serial"])
    assert done.stdout == "True\n", done.stderr


# --- the statistics ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freedom", [14, 22, 30])
@pytest.mark.parametrize("tail", [1e-3, 1e-5, 1e-7])
def test_t_quantile_agrees_with_scipy(tail, freedom):
    assert likeness.t_quantile(tail, freedom) == pytest.approx(scipy.stats.t.isf(tail, freedom), rel=0.03)


@pytest.mark.parametrize("freedom", [10, 100, 1000])
def test_chi_square_quantile_agrees_with_scipy(freedom):
    assert likeness.chi_square_quantile(1e-5, freedom) == pytest.approx(scipy.stats.chi2.isf(1e-5, freedom), rel=0.02)


@pytest.mark.parametrize("law", ["normal", "common to a call", "counts"])
def test_equal_samples_are_rarely_told_apart(law):
    """2,000 comparisons at 2.5e-5 each: false-alarm rate of this test about 5 % x 1e-2 (two or more alarms: 1.2e-3)."""
    rng = np.random.default_rng(7)

    def sample():
        if law == "counts":
            return rng.poisson(20, (12, 4, 3)).astype(float)
        shape = (12, 4, 3) if law == "normal" else (12, 1, 1)
        return np.broadcast_to(rng.normal(size=shape), (12, 4, 3)) + 0.0

    alarms = sum(not likeness.compare(sample(), sample(), rounding=0.0).alike for _ in range(2000))
    assert alarms <= 1


def test_a_shift_of_four_deviations_is_told():
    """Power: the limit is 3.3 deviations of the mean's noise for 12 shots; a miss: below 1e-3. Seeded."""
    rng = np.random.default_rng(8)
    a, b = rng.normal(size=(2, 12, 4, 3))
    b[:, 0, 0] += 5.0
    assert not likeness.compare(a, b, rounding=0.0).alike


def test_single_shots_agree_to_rounding_but_for_values_at_the_edge_of_a_code():
    a = np.zeros((1, 10, 10))
    b = a.copy()
    b[0, 0, 0] = 0.1
    assert not likeness.compare(a, b, rounding=1e-6).alike
    assert likeness.compare(a, b, rounding=1e-6, codes=True).alike
    b[0, :3, 0] = 0.1
    assert not likeness.compare(a, b, rounding=1e-6, codes=True).alike


def test_nan_is_never_alike():
    a = np.zeros((1, 2, 2))
    assert not likeness.compare(a, a * np.nan, rounding=1.0).alike


# --- converters --------------------------------------------------------------------------------------------------


def test_a_grid_is_found_and_smooth_values_have_none():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 3))
    assert grid_of(np.rint(x / 0.05) * 0.05, 1e-6) == pytest.approx(0.05)
    assert grid_of(x, 1e-6) is None
    assert grid_of(np.zeros((500, 3)), 1e-6) is None


def test_a_stair_is_found_by_where_all_columns_jump():
    ramp = np.linspace(0, 1, 256)
    slopes = np.array([1.0, -0.7, 0.3])
    stairs = np.rint(ramp / 0.04)[:, None] * 0.04 * slopes
    assert stair_of(ramp, stairs, 1e-9) == pytest.approx(0.04, rel=0.1)
    assert stair_of(ramp, ramp[:, None] * slopes, 1e-9) == 0.0
    assert stair_of(ramp, np.rint(ramp[:, None] * slopes / 0.04) * 0.04, 1e-9) is None


# --- values ------------------------------------------------------------------------------------------------------


def test_values_keep_every_declaration():
    levels = tuple(np.linspace(0, 10, 101))
    stage = StageSpec(
        "mesh", 4, 4,
        (
            ParameterSpec("volts", (16,), 0, 10, levels=levels),
            ParameterSpec("phase", (4,), period=2 * math.pi, edge="wrap"),
        ),
        limits=(ChannelLimit("power", ("volts",), 100.0, 2.0, 1.0, "W"),),
    )  # fmt: skip
    for seed in range(20):
        drawn = values.parameters(stage, np.random.default_rng(seed))
        assert set(np.round(drawn["volts"], 9)) <= set(np.round(levels, 9))
        assert stage.limits[0].total(drawn) <= 100.0
        assert (0 <= drawn["phase"]).all() and (drawn["phase"] <= 2 * math.pi).all()


def test_slew_limits_are_kept_on_the_way():
    stage = StageSpec("mesh", 1, 1, (ParameterSpec("v", (2,), -5, 5, slew=1.0),))
    held, wanted = {"v": np.array([0.0, 4.0])}, {"v": np.array([3.5, 4.0])}
    path = [held["v"], *(s["v"] for s in values.steps(stage, held, wanted))]
    assert all(np.abs(b - a).max() <= 1.0 + 1e-9 for a, b in zip(path, path[1:], strict=False))
    np.testing.assert_array_equal(path[-1], wanted["v"])


def test_rounding_is_that_of_the_dtype():
    assert ROUNDING["float32"] > 50 * np.finfo(np.float32).eps
    assert ROUNDING["float64"] < 1e-9
