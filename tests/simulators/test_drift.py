"""Laws of drift against their closed forms; any moment, in any order, from the seed alone."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from hzo_hil.simulators import drift, noise
from hzo_hil.simulators.drift import LaserWander, PowerLaw, Wander

COLUMNS = 4096
OU = [1.1629045, -1.0125651, 3.005414]
FLICKER = [0.6102301, 1.5640818, 1.1567637]
POWER = [0.9181242, 0.9000481, 0.8789242]


@pytest.fixture
def weights(monkeypatch):
    """`weights(wander, seconds)`: rows of the linear map from independent draws to values, for exact covariances.

    Every key of a draw gets a column of its own, and draws 1 there and 0 elsewhere.
    """
    columns: dict[int, int] = {}

    def one_hot(keys, stream, count, dtype=np.float32):
        drawn = np.zeros((len(keys), count), dtype)
        for row, key in enumerate(keys):
            drawn[row, columns.setdefault(int(key), len(columns))] = 1
        return drawn

    monkeypatch.setattr(noise, "normals", one_hot)
    drift._processes.cache_clear()
    yield lambda wander, times: np.array([wander.values(0, 0, 0, COLUMNS, t) for t in times])
    assert len(columns) <= COLUMNS
    drift._processes.cache_clear()


# --- Ornstein-Uhlenbeck ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tau", "step"), [(10.0, 0.1), (1.0, 0.3), (0.05, 0.1), (100.0, 0.01)])
def test_the_covariance_is_that_of_an_ornstein_uhlenbeck_process(weights, tau, step):
    """Exact, at lags from a step to 60 tau, within the long intervals and across them."""
    places = np.unique(np.concatenate([np.arange(12), np.geomspace(1, 60 * tau / step + 12, 60).astype(int)]))
    rows = weights(Wander("ou", 2.0, tau, step), places * step)
    lags = np.abs(places[:, None] - places) * step
    assert np.allclose(rows @ rows.T, 4 * np.exp(-lags / tau), rtol=0, atol=1e-12)


def test_relative_error_of_the_autocorrelation_stays_small_far_out(weights):
    times = np.arange(501) * 0.1
    rows = weights(Wander("ou", 1.0, 10.0, 0.1), times)
    assert np.allclose(rows @ rows[0], np.exp(-times / 10), rtol=1e-9, atol=0)


@pytest.mark.parametrize("law", ["ou", "flicker"])
@pytest.mark.parametrize("seed", range(3))
def test_values_are_normal_and_independent_between_elements(law, seed):
    """Kolmogorov-Smirnov test and correlation of neighbours of 20,000 values: false alarm 1e-6 each."""
    found = Wander(law, 0.3, 20.0).values(seed, 1, 2, 20_000, 7.0) / 0.3
    assert stats.kstest(found, "norm").pvalue > 1e-6
    assert abs(found[1:] @ found[:-1]) / 20_000**0.5 < 4.9
    assert abs(found[:10_000] @ found[10_000:]) / 10_000**0.5 < 4.9


def test_one_element_follows_the_law_over_time():
    """Lag-one coefficient of 8,000 steps of one element, |z| < 5: false alarm 6e-7."""
    wander = Wander("ou", 1.0, 2.0, 0.5)
    path = np.array([wander.values(4, 0, 9, 1, k * 0.5)[0] for k in range(8000)])
    rho = math.exp(-0.25)
    slope = path[1:] @ path[:-1] / (path[:-1] @ path[:-1])
    assert abs(slope - rho) * (8000 / (1 - rho**2)) ** 0.5 < 5


# --- flicker -----------------------------------------------------------------------------------------------------


def sampled_spectrum(times: np.ndarray, step: float, frequencies: np.ndarray) -> np.ndarray:
    """One-sided density of equal parts of processes of these correlation times, seen at every step (AR(1) each)."""
    rho = np.exp(-step / times)[:, None]
    return (2 * step * (1 - rho**2) / (1 + rho**2 - 2 * rho * np.cos(2 * np.pi * frequencies * step))).mean(axis=0)


@pytest.mark.parametrize("steps", [20, 33, 100, 1000, 12_345, 10**6])
def test_flicker_is_one_over_f_within_its_band(steps):
    wander = Wander("flicker", 1.0, steps * 0.1, 0.1)
    frequencies = np.geomspace(1 / wander.tau_s, 1 / 0.4, 1000)
    flat = frequencies * sampled_spectrum(wander.times_s, 0.1, frequencies)
    middle = (flat.min() + flat.max()) / 2
    assert np.abs(flat / middle - 1).max() < 0.04
    below = sampled_spectrum(wander.times_s, 0.1, np.array([0.01, 0.001]) / wander.tau_s)
    assert below[1] < 1.1 * below[0]


def test_flicker_has_the_covariance_of_its_parts(weights):
    wander = Wander("flicker", 3.0, 10.0, 0.1)
    places = np.array([0, 1, 2, 5, 17, 63, 64, 65, 200, 999])
    rows = weights(wander, places * 0.1)
    lags = np.abs(places[:, None] - places) * 0.1
    expected = 9 * np.exp(-lags[..., None] / wander.times_s).mean(axis=-1)
    assert np.allclose(rows @ rows.T, expected, rtol=0, atol=1e-12)
    assert np.allclose(np.diag(expected), 9)


def test_the_measured_spectrum_of_flicker_falls_with_one_over_f():
    """Slope of the averaged periodogram of 200 elements over two decades, 4 % for the law and 5 sigma: 6e-7."""
    wander, steps = Wander("flicker", 1.0, 100.0, 0.1), 2048
    paths = np.array([wander.values(0, 0, 0, 200, k * 0.1) for k in range(steps)]) * np.hanning(steps)[:, None]
    power = (np.abs(np.fft.rfft(paths, axis=0)) ** 2).mean(axis=1)
    use = slice(4, 400)
    x, y = np.log(np.arange(len(power))[use]), np.log(power[use])
    slope, *_ = np.polyfit(x, y, 1)
    # A Hann window ties neighbouring bins: half as many independent ones.
    spread = (2 / 200) ** 0.5 / np.sqrt(((x - x.mean()) ** 2).sum())
    assert abs(slope + 1) < 0.04 + 5 * spread


# --- access ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", ["ou", "flicker"])
def test_any_moment_in_any_order_gives_the_same_bits(law):
    wander = Wander(law, 1.0, 10.0)
    times = np.round(np.random.default_rng(0).uniform(0, 5000, 60), 1)
    forwards = {t: wander.values(3, 1, 4, 5, t) for t in np.sort(times)}
    for t in times:
        assert np.array_equal(wander.values(3, 1, 4, 5, t), forwards[t])
    drift._processes.cache_clear()
    for t in times[::-1]:
        assert np.array_equal(Wander(law, 1.0, 10.0).values(3, 1, 4, 5, t), forwards[t])


def test_every_part_of_the_name_is_another_process():
    wander = Wander("ou", 1.0)
    names = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**40, 0, 0)]
    found = np.array([wander.values(*name, 2000, 1.0) for name in names])
    together = np.corrcoef(found) - np.eye(len(names))
    assert np.abs(together).max() * 2000**0.5 < 5.5  # of 10 pairs: false alarm 4e-7
    exponents = [PowerLaw(1.0, 0.1).values(*name, 5, 1.0) for name in names]
    assert len({e.tobytes() for e in exponents}) == len(names)


def test_strength_scales_the_same_path():
    one, two = (Wander("ou", std).values(0, 0, 0, 9, 3.0) for std in (1.0, 0.2))
    assert np.allclose(two, 0.2 * one, rtol=1e-15)


def test_time_is_used_in_steps():
    wander = Wander("ou", 1.0, 10.0, 0.1)
    found = [wander.values(0, 0, 0, 1, k * 0.1)[0] for k in range(300)]
    assert len(set(found)) == 300
    assert found == [wander.values(0, 0, 0, 1, (k + 0.5) * 0.1)[0] for k in range(300)]
    assert found == [wander.values(0, 0, 0, 1, sum([0.1] * k))[0] for k in range(300)]  # with the sum's rounding


def test_values_belong_to_the_caller():
    wander = Wander("ou", 1.0)
    before = wander.values(0, 0, 0, 4, 0.0)
    wander.values(0, 0, 0, 4, 0.0)[:] = 9
    assert np.array_equal(wander.values(0, 0, 0, 4, 0.0), before)


def test_nothing_drifts_without_strength():
    assert np.array_equal(Wander("ou").values(0, 0, 0, 3, 5.0), np.zeros(3))
    assert np.array_equal(PowerLaw().values(0, 0, 0, 3, 5.0), np.ones(3))
    assert Wander("ou", 1.0).values(0, 0, 0, 0, 5.0).shape == (0,)


def test_stored_values():
    """The same chip drifts the same in every version; drawn in single precision, so to 1e-6."""
    assert np.allclose(Wander("ou", 1.0).values(1, 2, 3, 3, 12.3), OU, rtol=0, atol=1e-6)
    assert np.allclose(Wander("flicker", 1.0).values(1, 2, 3, 3, 12.3), FLICKER, rtol=0, atol=1e-6)
    assert np.allclose(PowerLaw(0.05, 0.01).values(1, 2, 3, 3, 100.0), POWER, rtol=0, atol=1e-6)


def test_both_routes_drift_alike(run_python, monkeypatch):
    code = (
        "from hzo_hil.simulators import native\n"
        "from hzo_hil.simulators.drift import Wander\n"
        "assert native.library() is None\n"
        "print(Wander('flicker', 1.0).values(1, 2, 3, 50, 12.3).tolist())\n"
    )
    monkeypatch.setenv("HZO_HIL_NATIVE", "0")
    done = run_python(code, without=["torch"])
    assert done.returncode == 0, done.stderr
    assert np.allclose(json.loads(done.stdout), Wander("flicker", 1.0).values(1, 2, 3, 50, 12.3), rtol=0, atol=2e-6)


# --- other laws --------------------------------------------------------------------------------------------------


def test_the_power_law_decays_as_it_says():
    law = PowerLaw(0.06, t0_s=20.0)
    for seconds in (0.0, 1.0, 20.0, 1e6):
        assert np.allclose(law.values(0, 0, 0, 2, seconds), (1 + seconds / 20) ** -0.06, rtol=1e-14)


def test_every_element_has_its_own_exponent_and_none_grows():
    """Mean and spread of 20,000 exponents, |z| < 5: false alarm 1.2e-6."""
    found = PowerLaw(0.06, 0.01, t0_s=1.0).values(5, 0, 0, 20_000, math.e - 1)
    exponents = -np.log(found)
    assert abs(exponents.mean() - 0.06) * 20_000**0.5 / 0.01 < 5
    assert abs(exponents.var() / 0.01**2 - 1) * 10_000**0.5 < 5
    later = -np.log(PowerLaw(0.06, 0.01, t0_s=1.0).values(5, 0, 0, 20_000, math.exp(3) - 1)) / 3
    assert np.allclose(later, exponents)
    wide = PowerLaw(0.01, 0.1).values(5, 0, 0, 1000, 1e3)
    assert wide.max() == 1.0
    assert 0.3 < (wide == 1.0).mean() < 0.6


def test_a_laser_wanders_within_its_amplitude():
    laser = LaserWander(0.1, 10.0)
    times = np.linspace(0, 500, 5001)
    gains = laser.gain(times)
    assert laser.gain(0.0) == 1
    assert np.array_equal(gains, [laser.gain(t) for t in times])
    assert 1.09 < gains.max() <= 1.1
    assert 0.9 <= gains.min() < 0.91


# --- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Wander("pink"), "unknown law of drift 'pink': known are 'ou' and 'flicker'"),
        (lambda: Wander("ou", -0.1), "std must be finite and not negative, not -0.1"),
        (lambda: Wander("ou", math.nan), "std must be finite and not negative, not nan"),
        (lambda: Wander("ou", 0.1, 0.0), "tau_s must be finite and above 0 s, not 0.0"),
        (lambda: Wander("ou", 0.1, 1.0, math.inf), "step_s must be finite and above 0 s, not inf"),
        (lambda: Wander("flicker", 0.1, 1.0), "tau_s 1 s has no band at steps of 0.1 s: take a tau_s of at least 2 s"),
        (lambda: Wander("ou", 0.1).values(0, 0, 0, 1, -1.0), "time must be finite and not negative, not -1.0 s"),
        (lambda: Wander("ou", 0.1).values(-1, 0, 0, 1, 1.0), r"chip seed -1 and the place \[0, 0, 0\]"),
        (lambda: PowerLaw(-0.1), "nu -0.1 and nu_std 0.0 must be finite and not negative"),
        (lambda: PowerLaw(t0_s=0), "t0_s must be finite and above 0 s, not 0"),
        (lambda: PowerLaw(0.1).values(0, 0, 0, 1, math.nan), "time must be finite and not negative, not nan s"),
        (lambda: LaserWander(1.0), r"amplitude 1.0 must be in \[0, 1\)"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
