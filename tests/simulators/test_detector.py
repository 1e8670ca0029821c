"""Detectors: watts and amperes, noise against closed forms, counting, saturation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import constants, stats

from hzo_hil.simulators import detector as module
from hzo_hil.simulators import noise
from hzo_hil.simulators.converters import convert, uniform_port
from hzo_hil.simulators.detector import Detector, shot_noise, thermal_noise
from hzo_hil.simulators.model import Port

PHYSICAL = {"responsivity": 0.8, "dark_current": 1e-6, "load": 166.0, "temperature": 300.0, "bandwidth": 20e9}
KEYS = np.arange(4000, dtype=np.uint64)


def measured(detector: Detector, level: float, dtype=np.float64) -> np.ndarray:
    return detector.add_noise(np.full((len(KEYS), 16), level, dtype), KEYS) - level


def z_of_variance(draws: np.ndarray, expected: float) -> float:
    return abs(draws.var() / expected - 1) * (draws.size / 2) ** 0.5


# --- units --------------------------------------------------------------------------------------------------------


def test_textbook_noise_currents():
    """1 mA in 1 GHz is 0.566 uA of shot noise; 50 ohm at 300 K in 1 GHz are 0.576 uA of thermal noise."""
    assert math.sqrt(shot_noise(1e-3, 1e9)) == pytest.approx(0.5661e-6, rel=1e-3)
    assert math.sqrt(thermal_noise(50, 300, 1e9)) == pytest.approx(0.5757e-6, rel=1e-3)
    # Both are equal where the load drops 2 k T / q, 51.7 mV at 300 K.
    assert shot_noise(2 * constants.k * 300 / constants.e / 50, 1e9) == pytest.approx(thermal_noise(50, 300, 1e9))


def test_outputs_are_powers_and_currents():
    intensity = Detector("intensity", full_scale=2e-3, responsivity=0.8)
    assert intensity.power(0.3) == pytest.approx(0.6e-3)
    assert intensity.current(0.3) == pytest.approx(0.48e-3)
    homodyne = Detector("homodyne", full_scale=1e-3, local_oscillator=4e-3, responsivity=0.5)
    assert homodyne.power(-0.3) == pytest.approx(0.09e-3)
    assert homodyne.current(-0.3) == pytest.approx(-0.3 * 2 * 0.5 * 2e-3)
    for found in (intensity, homodyne):
        assert found.output(found.current(np.array([0.1, 0.7]))) == pytest.approx([0.1, 0.7])


def test_photo_electrons_of_a_sample():
    """1 mA for 1 ns is 6.24e6 electrons, and 2 q B is one over the time of an integrating receiver."""
    counter = Detector("intensity", integration_s=1e-9, full_scale=1e-3, dark_current=1e-6)
    assert counter.noise_bandwidth == pytest.approx(0.5e9)
    assert counter.electrons(1.0) == pytest.approx(6.2415e6 * 1.001, rel=1e-4)
    assert Detector("homodyne", integration_s=1e-9).electrons(0.0) == pytest.approx(6.2415e6, rel=1e-4)
    with pytest.raises(ValueError, match="a sample has no length: give an integration_s or a bandwidth"):
        Detector("intensity").electrons(1.0)


def test_negative_power_is_refused():
    for ask in (Detector("intensity").power, Detector("intensity").current, Detector("intensity").electrons):
        with pytest.raises(ValueError, match=r"an intensity must not be negative, not -0\.1 of full scale"):
            ask(np.array([0.5, -0.1]))
    with pytest.raises(ValueError, match=r"full_scale must be above 0 and finite, not -0\.001"):
        Detector(full_scale=-1e-3)


# --- Gaussian noise -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_intensity_noise_is_shot_and_thermal(level, dtype):
    """Variance of 64,000 draws against 2 q (R P + I_d) B + 4 k T B / R; |z| < 5: false alarm 6e-7 a level."""
    power = 1e-4
    made = Detector("intensity", full_scale=power, noise_std=1e-3, **PHYSICAL)
    current = 0.8 * power * level + 1e-6
    amperes = 2 * constants.e * current * 20e9 + 4 * constants.k * 300 * 20e9 / 166
    expected = amperes / (0.8 * power) ** 2 + 1e-6
    assert z_of_variance(measured(made, level, dtype), expected) < 5
    assert made.current_std(level) == pytest.approx(0.8 * power * math.sqrt(expected))
    assert made.dark_std == pytest.approx(made.output(made.current_std(0.0)))


def test_noise_has_the_moments_of_a_normal_law():
    """Mean, skewness and kurtosis of 64,000 draws; |z| < 5: false alarm 2e-6 in all."""
    draws = measured(Detector("intensity", full_scale=1e-4, **PHYSICAL), 0.5)
    unit = draws / draws.std()
    assert abs(unit.mean()) * draws.size**0.5 < 5
    assert abs((unit**3).mean()) * (draws.size / 15) ** 0.5 < 5
    assert abs((unit**4).mean() - 3) * (draws.size / 96) ** 0.5 < 5


@pytest.mark.parametrize("level", [-1.0, 0.0])
def test_homodyne_noise_comes_from_the_local_oscillator(level):
    """Variance of 64,000 draws, the same at every signal; |z| < 5: false alarm 6e-7 a level."""
    signal, oscillator = 1e-5, 4e-3
    draws = measured(Detector("homodyne", full_scale=signal, local_oscillator=oscillator, **PHYSICAL), level)
    amperes = 2 * constants.e * (0.8 * oscillator + 2e-6) * 20e9 + 4 * constants.k * 300 * 20e9 / 166
    assert z_of_variance(draws, amperes / (2 * 0.8 * math.sqrt(signal * oscillator)) ** 2) < 5


def test_a_stronger_local_oscillator_buries_thermal_noise():
    weak, strong = (Detector(full_scale=1e-6, local_oscillator=p, **PHYSICAL).dark_std for p in (1e-6, 1e-2))
    assert strong < weak


def test_a_silent_detector_draws_nothing():
    outputs = np.ones((3, 2))
    assert Detector().add_noise(outputs, KEYS[:3]) is outputs
    assert np.array_equal(outputs, np.ones((3, 2)))


def test_an_integrating_receiver_has_the_noise_of_half_its_rate():
    options = {"full_scale": 1e-4, "dark_current": 1e-6}
    slow, equal = Detector("intensity", integration_s=1e-10, **options), Detector("intensity", bandwidth=5e9, **options)
    assert slow.current_std(0.4) == pytest.approx(equal.current_std(0.4))


# --- counting -----------------------------------------------------------------------------------------------------

FEW = {"integration_s": 1e-9, "temperature": 0.0, "responsivity": 1.0}


def test_few_photons_are_counted_one_by_one():
    """Chi-squared of 64,000 samples against the Poisson law of 1.5 light and 0.5 dark electrons; false alarm 1e-6."""
    electron = constants.e / 1e-9
    made = Detector("intensity", statistics="poisson", full_scale=3 * electron, dark_current=0.5 * electron, **FEW)
    counts = (made.add_noise(np.full((4000, 16), 0.5), KEYS) * 3 + 0.5).ravel()
    assert np.allclose(counts, np.rint(counts), atol=1e-9)
    seen = np.bincount(np.rint(counts).astype(int), minlength=9)
    seen = np.append(seen[:8], seen[8:].sum())
    law = stats.poisson.pmf(np.arange(8), 2.0)
    expected = counts.size * np.append(law, 1 - law.sum())
    assert stats.chisquare(seen, expected).pvalue > 1e-6


@pytest.mark.parametrize("kind", ["intensity", "homodyne"])
def test_counting_becomes_gaussian_noise_where_electrons_are_many(kind):
    """Kolmogorov-Smirnov of 64,000 normalised samples and their variance, |z| < 5; false alarm 2e-6 a kind.

    With 1e6 electrons a sample skewness is 1e-3 and steps are 1e-3 standard deviations, too little to be seen.
    """
    options = {"full_scale": 1e-5, "local_oscillator": 1e-3, "integration_s": 1e-7, "dark_current": 1e-8}
    many = Detector(kind, statistics="poisson", **options)
    normal = Detector(kind, **options)
    level = 0.5
    assert many.electrons(level) > 1e6
    draws = many.output(many.current_std(level)) ** -1 * measured(many, level)
    assert z_of_variance(draws, 1.0) < 5
    assert stats.kstest(draws.ravel(), "norm").pvalue > 1e-6
    assert many.dark_std == normal.dark_std


def test_counting_of_two_diodes_has_the_signal_s_own_shot_noise():
    """Variance of 64,000 differences of two counts, |z| < 5: false alarm 6e-7."""
    electron = constants.e / 1e-9
    made = Detector("homodyne", statistics="poisson", full_scale=50 * electron, local_oscillator=50 * electron, **FEW)
    draws = measured(made, 0.8)
    assert z_of_variance(draws, 50 * (1 + 0.8**2) / 100**2) < 5
    assert abs(draws.mean()) / draws.std() * draws.size**0.5 < 5


def test_counts_hardly_depend_on_precision_route_or_batch():
    made = Detector("intensity", statistics="poisson", full_scale=1e-6, **FEW)
    levels = np.random.default_rng(0).uniform(0, 1, (4000, 16))
    step = made.output(constants.e / 1e-9)
    wide = made.add_noise(levels.copy(), KEYS)
    narrow = made.add_noise(levels.astype(np.float32), KEYS).astype(np.float64)
    tensor = made.add_noise(torch.from_numpy(levels), noise.keys_like(KEYS, torch.zeros(1))).numpy()
    for other in (narrow, tensor):
        counts = np.abs(np.rint((other - wide) / step))
        assert counts.max() <= 1
        assert (counts > 0).mean() <= 2e-4  # 6,200 electrons or fewer in float32: one count is 4,000 roundings
    assert np.array_equal(made.add_noise(levels[7:9].copy(), KEYS[7:9]), wide[7:9])


# --- settling and saturation --------------------------------------------------------------------------------------


def test_a_slow_detector_has_not_settled():
    made = Detector("homodyne", bandwidth=1e9, read_after_s=1e-10, temperature=0.0, full_scale=1.0)
    out = made.add_noise(np.full((4000, 16), 0.5), KEYS)
    reached = 1 - math.exp(-2 * math.pi * 0.1)
    assert out.mean() == pytest.approx(0.5 * reached, rel=1e-5)


def test_soft_saturation_halves_the_current_at_its_saturation_current():
    made = Detector("intensity", full_scale=1e-3, saturation_current=1e-3)
    out = made.read(np.array([[0.0, 1e-3, 1.0, 1e6]]), KEYS[:1])
    assert out[0] == pytest.approx([0.0, 1e-3 / 1.001, 0.5, 1 - 1e-6])
    signed = Detector("homodyne", full_scale=1e-3, saturation_current=2e-3).read(np.array([[-1.0, 1.0]]), KEYS[:1])
    assert signed[0] == pytest.approx([-0.5, 0.5])


def test_noise_passes_soft_saturation_and_not_the_rails():
    options = {"full_scale": 1e-3, "saturation_current": 0.5e-3, "noise_std": 0.1}
    soft, hard = (Detector("intensity", saturation_law=law, **options) for law in ("soft", "hard"))
    levels = np.full((4000, 16), 0.5)
    assert soft.read(levels.copy(), KEYS).max() > 0.5
    out = hard.read(levels.copy(), KEYS)
    assert out.max() == 0.5
    assert (out == 0.5).mean() == pytest.approx(0.5, abs=0.02)


def test_the_rails_act_before_the_gain_and_the_converter():
    made = Detector("homodyne", full_scale=1e-3, saturation_current=1e-3, saturation_law="hard")
    out = made.read(np.array([[0.4, 2.0, -2.0]]), KEYS[:1], uniform_port(5, -15.0, 15.0), gain=10.0)
    assert out.tolist() == [[4.0, 5.0, -5.0]]
    with pytest.raises(ValueError, match=r"it saturates at 0\.5, outside its converter's 1 to 2"):
        made.read(np.ones((1, 1)), KEYS[:1], Port(1, 2))


def test_reading_is_noise_then_gain_then_converter():
    made, port = Detector("intensity", noise_std=0.1), uniform_port(6, 0.0, 3.0)
    levels = np.random.default_rng(0).uniform(0, 1, (50, 7))
    expected = convert(2.5 * made.add_noise(levels.copy(), KEYS[:50]), port)
    assert np.allclose(made.read(levels.copy(), KEYS[:50], port, 2.5), expected, atol=1e-12)


@pytest.mark.parametrize(
    "made",
    [
        Detector("intensity", full_scale=1e-4, **PHYSICAL),
        Detector("homodyne", noise_std=0.1, saturation_current=1e-3),
        Detector("homodyne", noise_std=0.1, saturation_current=1e-3, saturation_law="hard"),
        Detector("intensity", statistics="poisson", full_scale=1e-7, **PHYSICAL),
    ],
)
def test_numpy_and_torch_read_the_same(made):
    levels = np.random.default_rng(0).uniform(0, 1, (200, 16))
    found = made.read(levels.copy(), KEYS[:200], gain=1.5)
    tensor = torch.from_numpy(levels)
    before = tensor.clone()
    assert np.allclose(made.read(tensor, noise.keys_like(KEYS[:200], tensor), gain=1.5).numpy(), found, atol=1e-12)
    assert torch.equal(tensor, before)


def test_bad_detectors_are_refused():
    with pytest.raises(ValueError, match="unknown detection 'heterodyne': known are 'homodyne' and 'intensity'"):
        Detector("heterodyne")
    with pytest.raises(ValueError, match="load must be above 0"):
        Detector(load=0)
    with pytest.raises(ValueError, match="noise_std must not be negative"):
        Detector(noise_std=-1)
    with pytest.raises(ValueError, match="saturation_current must not be negative or infinite, not nan"):
        Detector(saturation_current=math.nan)
    with pytest.raises(ValueError, match="unknown statistics 'bose': known are 'gaussian' and 'poisson'"):
        Detector(statistics="bose")
    with pytest.raises(ValueError, match="unknown saturation_law 'tanh': known are 'soft' and 'hard'"):
        Detector(saturation_law="tanh")
    with pytest.raises(ValueError, match=r"counting statistics need an integration_s \(or a bandwidth\): it is 0"):
        Detector(statistics="poisson")
    with pytest.raises(ValueError, match="read_after_s needs a bandwidth"):
        Detector(read_after_s=1e-9)


def test_read_outs_are_made_once_for_each_setting():
    made = Detector("homodyne", noise_std=0.1)
    assert module._read_out(made, Port(), 1.0) is module._read_out(Detector("homodyne", noise_std=0.1), Port(), 1.0)
