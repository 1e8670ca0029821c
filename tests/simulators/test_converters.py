"""Converters against their formulas, on every route."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hzo_hil.simulators import converters, native
from hzo_hil.simulators.converters import (
    convert,
    nearest_level,
    phase_setting,
    reach,
    uniform_levels,
    uniform_port,
    voltage_levels,
)
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


def test_a_heater_known_to_be_short_says_how_many_phases_it_misses_and_what_that_costs():
    levels = voltage_levels(8, 4.36, 5.5, partial=True)
    top = math.pi * (5.5 / 4.36) ** 2
    assert levels[-1] == pytest.approx(top)
    asked = np.array([[0.5, top + 0.1, top + 0.3], [-0.2, 7.0, 1.0]])  # -0.2 lies 0.2 rad before a full turn
    found = reach(asked, levels)
    assert (found.count, found.outside) == (6, 3)
    assert found.worst == pytest.approx(0.3)
    assert found.rms == pytest.approx(math.sqrt((0.1**2 + 0.3**2 + 0.2**2) / 3))
    assert str(found) == (
        "3 of 6 phases lie outside the converter's 0 to 5 rad: they are off by 0.216 rad (rms) and by 0.3 rad at"
        " worst; raise v_max"
    )
    assert str(reach(asked, None)) == "all 6 phases lie within the converter's 0 to 6.28 rad"


def test_a_phase_beyond_a_short_heater_goes_to_the_nearer_end_of_the_circle():
    levels = voltage_levels(8, 4.36, 5.5, partial=True)
    assert phase_setting(np.array([levels[-1] + 0.1, TWO_PI - 0.1, -0.1]), levels).tolist() == [levels[-1], 0.0, 0.0]
    grid = np.linspace(0, TWO_PI, 2001)[:-1]
    set_to = phase_setting(grid, levels)
    assert (
        np.abs(np.exp(1j * grid) - np.exp(1j * set_to)).max()
        <= np.abs(np.exp(1j * reach(grid, levels).worst) - 1) + 1e-3
    )


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


def routes(values: np.ndarray, port: Port) -> list[np.ndarray]:
    """The same conversion by the kernel, by numpy (in place and not) and by torch."""
    found = [
        convert(values, port),
        convert(values.copy(), port, own=True),
        converters._convert_numpy(values, port, False),
    ]
    return [
        *found,
        converters._convert_numpy(values.copy(), port, True),
        convert(torch.from_numpy(values), port).numpy(),
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "port", [Port(-1, 1, 1 / 63), Port(0, 2, 2 / 255), Port(-0.5, 0.5), Port(step=0.25), uniform_port(24, -1.0, 1.0)]
)
def test_every_route_converts_to_the_same_bits(port, dtype):
    values = np.random.default_rng(1).uniform(-3, 3, (37, 53)).astype(dtype)
    values[0, :6] = [np.nan, np.inf, -np.inf, 0.0, -0.0, 0.125]
    first, *others = routes(values, port)
    assert first.dtype == dtype
    for other in others:
        assert np.array_equal(other, first, equal_nan=True)
    assert np.isnan(first[0, 0])


def test_conversion_takes_any_shape_and_any_order_of_memory():
    port = uniform_port(5, -1.0, 1.0)
    values = np.random.default_rng(1).uniform(-2, 2, (6, 4, 10))
    expected = convert(values, port)
    assert np.array_equal(convert(values[:, ::2, 1::3], port), expected[:, ::2, 1::3])
    assert np.array_equal(convert(values.T, port, own=True), expected.T)
    assert convert(np.empty((0, 3)), port).shape == (0, 3)


@pytest.mark.parametrize("threads", [1, 3])
def test_conversion_does_not_depend_on_threads(threads, monkeypatch):
    monkeypatch.setenv("HZO_HIL_THREADS", str(threads))
    monkeypatch.setattr(converters, "_LEAST", 1000)
    values = np.random.default_rng(1).uniform(-2, 2, 10_001).astype(np.float32)
    port = uniform_port(8, -1.0, 1.0)
    assert np.array_equal(convert(values, port), converters._convert_numpy(values, port, False))


def test_without_kernels_numpy_converts(monkeypatch):
    values = np.random.default_rng(1).uniform(-2, 2, (9, 9))
    expected = convert(values, Port(-1, 1, 0.01))
    monkeypatch.setattr(native, "_load", lambda: (None, "switched off"))
    assert np.array_equal(convert(values, Port(-1, 1, 0.01)), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_conversion_on_a_gpu_gives_the_same_codes():
    values = np.random.default_rng(1).uniform(-2, 2, (100, 100)).astype(np.float32)
    port = uniform_port(8, -1.0, 1.0)
    assert np.array_equal(convert(torch.from_numpy(values).cuda(), port).cpu().numpy(), convert(values, port))


def test_bad_converters_are_refused():
    with pytest.raises(ValueError, match="needs finite ends, not -inf to inf: set its bound"):
        uniform_port(8, -math.inf, math.inf)
    with pytest.raises(ValueError, match="2 to 24 bits"):
        uniform_port(1, -1.0, 1.0)
    with pytest.raises(ValueError, match=r"2 to 24 bits, not -3\. Leave it out"):
        uniform_port(-3, -1.0, 1.0)
    with pytest.raises(ValueError, match=r"2 to 24 bits, not 0\. Leave it out \(null\) where there is no converter"):
        uniform_port(0, -1.0, 1.0)
    with pytest.raises(ValueError, match=r"1 to 16 bits, not 0\. Leave it out \(null\)"):
        voltage_levels(0, 4.36, 10.8)
    with pytest.raises(ValueError, match="from 0 or from -high"):
        uniform_port(8, -1.0, 2.0)
    with pytest.raises(ValueError, match="low < high"):
        Port(1.0, 1.0)
    with pytest.raises(ValueError, match="1 to 16 bits"):
        uniform_levels(0, 0.0, 1.0)
