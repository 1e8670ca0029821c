"""Converters and detectors against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import constants

from hzo_hil.simulators.converters import (
    convert,
    nearest_level,
    phase_setting,
    uniform_levels,
    uniform_port,
    voltage_levels,
)
from hzo_hil.simulators.detector import Detector
from hzo_hil.simulators.model import Port

TWO_PI = 2 * math.pi


def test_146_codes_of_the_published_heater_cover_two_pi():
    levels = np.array(voltage_levels(8, 4.36, 10.8))
    assert np.sum(levels < TWO_PI) == 146
    assert np.diff(levels[levels < TWO_PI]).max() == pytest.approx(0.086, abs=1e-3)
    assert levels[-2] < TWO_PI <= levels[-1]
    assert levels[1] == pytest.approx(math.pi * (10.8 / 255 / 4.36) ** 2)


def test_a_heater_that_cannot_reach_two_pi_is_refused():
    with pytest.raises(ValueError, match=r"v_max 4 V reaches 2\.64 rad .* raise v_max to 6\.17 V"):
        voltage_levels(8, 4.36, 4)
    with pytest.raises(ValueError, match="1 to 16 bits, not 17"):
        voltage_levels(17, 4.36, 10.8)


def test_phases_go_to_the_nearest_level_and_levels_stay():
    levels = voltage_levels(8, 4.36, 10.8)
    told = np.linspace(-10, 20, 1001)
    set_to = phase_setting(told, levels)
    grid = np.array(levels)
    wrapped = np.where((told < 0) | (told > grid[-1]), np.mod(told, TWO_PI), told)
    assert np.allclose(set_to, grid[np.abs(wrapped[:, None] - grid).argmin(1)])
    assert np.array_equal(phase_setting(grid, levels), grid)


def test_phases_without_a_converter_only_wrap():
    told = np.array([-1.0, 0.0, 3.0, TWO_PI, 7.0])
    assert np.allclose(np.exp(1j * phase_setting(told, None)), np.exp(1j * told))


def test_ties_between_levels_go_down():
    assert nearest_level(np.array([0.5, 0.51]), (0.0, 1.0)).tolist() == [0.0, 1.0]


@given(bits=st.integers(2, 12), signed=st.booleans(), seed=st.integers(0, 99))
def test_a_port_is_monotone_saturates_and_has_its_levels(bits, signed, seed):
    port = uniform_port(bits, -2.0 if signed else 0.0, 2.0)
    values = np.sort(np.random.default_rng(seed).uniform(-3, 3, 20_000))
    out = convert(values, port)
    levels = np.unique(out.round(9))
    assert np.all(np.diff(out) >= 0)
    assert len(levels) <= 2**bits - (1 if signed else 0)
    assert out.min() == pytest.approx(port.low, abs=1e-12)
    assert out.max() == pytest.approx(2.0)
    inside = (values > port.low) & (values < port.high)
    assert np.abs(out - values)[inside].max() <= port.step / 2 + 1e-12
    assert 0.0 in levels


def test_conversion_keeps_the_dtype_the_caller_s_array_and_nan():
    values = np.array([[0.123, np.nan, 9.0]], np.float32)
    before = values.copy()
    out = convert(values, uniform_port(4, -1.0, 1.0))
    assert out.dtype == np.float32
    assert np.array_equal(values, before, equal_nan=True)
    assert np.isnan(out[0, 1])
    assert out[0, 2] == 1
    assert convert(values, Port()) is values


def test_bad_converters_are_refused():
    with pytest.raises(ValueError, match="needs finite ends, not -inf to inf: set its bound"):
        uniform_port(8, -math.inf, math.inf)
    with pytest.raises(ValueError, match="2 to 24 bits"):
        uniform_port(1, -1.0, 1.0)
    with pytest.raises(ValueError, match="from 0 or from -high"):
        uniform_port(8, -1.0, 2.0)
    with pytest.raises(ValueError, match="low < high"):
        Port(1.0, 1.0)
    with pytest.raises(ValueError, match="1 to 16 bits"):
        uniform_levels(0, 0.0, 1.0)


# --- detectors ----------------------------------------------------------------------------------------------------

PHYSICAL = {"responsivity": 0.8, "dark_current": 1e-6, "load": 166.0, "temperature": 300.0, "bandwidth": 20e9}
KEYS = np.arange(4000, dtype=np.uint64)


def measured(detector: Detector, level: float) -> np.ndarray:
    return detector.add_noise(np.full((len(KEYS), 16), level), KEYS) - level


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_intensity_noise_is_shot_and_thermal(level):
    """Variance of 64,000 draws against 2 q (R P + I_d) B + 4 k T B / R; |z| < 5: false alarm 6e-7 a level."""
    power = 1e-4
    draws = measured(Detector("intensity", full_scale=power, noise_std=1e-3, **PHYSICAL), level)
    current = 0.8 * power * level + 1e-6
    amperes = 2 * constants.e * current * 20e9 + 4 * constants.k * 300 * 20e9 / 166
    expected = amperes / (0.8 * power) ** 2 + 1e-6
    assert abs(draws.var() / expected - 1) * (draws.size / 2) ** 0.5 < 5


@pytest.mark.parametrize("level", [-1.0, 0.0])
def test_homodyne_noise_comes_from_the_local_oscillator(level):
    """Variance of 64,000 draws, the same at every signal; |z| < 5: false alarm 6e-7 a level."""
    signal, oscillator = 1e-5, 4e-3
    draws = measured(Detector("homodyne", full_scale=signal, local_oscillator=oscillator, **PHYSICAL), level)
    amperes = 2 * constants.e * (0.8 * oscillator + 2e-6) * 20e9 + 4 * constants.k * 300 * 20e9 / 166
    expected = amperes / (2 * 0.8 * math.sqrt(signal * oscillator)) ** 2
    assert abs(draws.var() / expected - 1) * (draws.size / 2) ** 0.5 < 5


def test_a_stronger_local_oscillator_buries_thermal_noise():
    weak, strong = (Detector(full_scale=1e-6, local_oscillator=p, **PHYSICAL).dark_std for p in (1e-6, 1e-2))
    assert strong < weak


def test_a_silent_detector_draws_nothing():
    outputs = np.ones((3, 2))
    assert Detector().add_noise(outputs, KEYS[:3]) is outputs
    assert np.array_equal(outputs, np.ones((3, 2)))


def test_bad_detectors_are_refused():
    with pytest.raises(ValueError, match="unknown detection 'heterodyne': known are 'homodyne' and 'intensity'"):
        Detector("heterodyne")
    with pytest.raises(ValueError, match="load must be above 0"):
        Detector(load=0)
    with pytest.raises(ValueError, match="noise_std must not be negative"):
        Detector(noise_std=-1)
