"""Probe sets decode to the gradient: exactly, or on average with the variance they state."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hzo_hil.devices.errors import BadInput
from hzo_hil.probes import probe_set
from hzo_hil.probes.random import CUT, UNIT

WIDTH, PROBES, DRAWS = 8, 4, 8_000
SIGMAS = 6.0


def decoder(probes, width: int, key: int = 1) -> np.ndarray:
    """D [width, probes] of sample 0."""
    count = probes.count(width)
    if not probes.per_sample:
        return np.stack([probes.decode(row[None], width, key, 0)[0] for row in np.eye(count)], axis=1)
    return probes.directions(width, key, 0, 1)[0].T / count


@given(width=st.integers(1, 40), dropped=st.booleans(), name=st.sampled_from(["coordinate", "hadamard"]))
def test_coordinate_and_hadamard_are_exact(width, dropped, name):
    probes = probe_set(name, forward_differences=dropped)
    directions = probes.directions(width, 0, 0, 1)[0]
    assert directions.shape == (probes.count(width), width)
    assert np.abs(directions).max() <= probes.reach(width)
    np.testing.assert_allclose(decoder(probes, width) @ directions, np.eye(width), atol=1e-12)


@pytest.mark.parametrize(("width", "count", "dropped"), [(1, 1, 2), (5, 8, 8), (8, 8, 16), (9, 16, 16), (16, 16, 32)])
def test_hadamard_sizes(width, count, dropped):
    assert probe_set("hadamard").count(width) == count
    assert probe_set("hadamard", forward_differences=True).count(width) == dropped


@pytest.mark.parametrize("width", [1, 3, 8, 11, 64])
def test_the_noise_a_decoder_lets_through(width):
    """||D||_F^2 at unit amplitude: M for coordinate, M / N for Hadamard, M / q for random signs and sphere."""

    def gain(name: str) -> float:
        return float((decoder(probe_set(name), width) ** 2).sum())

    assert gain("coordinate") == width
    assert gain("hadamard") == pytest.approx(width / probe_set("hadamard").count(width))
    assert gain("rademacher:5") == pytest.approx(width / 5)
    assert gain("sphere:5") == pytest.approx(width / 5)


def test_a_constant_error_of_the_reference_cancels_where_the_constant_probe_is_dropped():
    probes = probe_set("hadamard", forward_differences=True)
    np.testing.assert_allclose(probes.decode(np.ones((1, probes.count(8))), 8, 0, 0), 0, atol=1e-15)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "sphere"])
def test_random_sets_are_unbiased(kind, seed):
    """Every element's mean lies within 6 standard errors: 48 elements in all, false alarms below 1e-7."""
    gradient = np.random.default_rng(seed).normal(size=WIDTH)
    estimates = estimate(kind, gradient, key=seed)
    error = estimates.mean(axis=0) - gradient
    assert (np.abs(error) < SIGMAS * estimates.std(axis=0) / np.sqrt(DRAWS)).all()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("kind", "excess"), [("rademacher", -1), ("gaussian", 1), ("sphere", -1)])
def test_random_sets_vary_by_about_width_over_probes(kind, excess, seed):
    """E||g_hat - g||^2 = ||g||^2 (M - 1) / q, for Gaussian directions (M + 1) / q, less 0.2 % for their clipped tails.

    Six standard errors and those 0.2 %: false alarms below 1e-7.
    """
    gradient = np.random.default_rng(seed).normal(size=WIDTH)
    squared = ((estimate(kind, gradient, key=seed) - gradient) ** 2).sum(axis=1) / (gradient**2).sum()
    expected = (WIDTH + excess) / PROBES
    assert abs(squared.mean() - expected) < SIGMAS * squared.std() / np.sqrt(DRAWS) + 0.002 * expected


def estimate(kind: str, gradient: np.ndarray, key: int) -> np.ndarray:
    probes = probe_set(f"{kind}:{PROBES}")
    directions = probes.directions(WIDTH, key, 0, DRAWS)
    assert np.abs(directions).max() <= probes.reach(WIDTH) * (1 + 1e-12)
    return probes.decode(directions @ gradient, WIDTH, key, 0)


def test_clipped_gaussian_directions_have_unit_variance():
    """Closed form by numerical integration; no draw."""
    x = np.linspace(-12, 12, 400_001)
    density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    variance = float(np.trapezoid((np.clip(x, -CUT, CUT) * UNIT) ** 2 * density, x))
    assert variance == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "sphere"])
def test_a_samples_directions_do_not_depend_on_its_batch(kind):
    probes = probe_set(f"{kind}:3")
    whole = probes.directions(5, 77, 0, 10)
    assert np.array_equal(whole[4:7], probes.directions(5, 77, 4, 7))
    assert not np.array_equal(whole[0], whole[1])
    assert not np.array_equal(whole, probes.directions(5, 78, 0, 10))
    derivatives = np.arange(30.0).reshape(10, 3)
    assert np.array_equal(probes.decode(derivatives, 5, 77, 0)[4:7], probes.decode(derivatives[4:7], 5, 77, 4))


@pytest.mark.parametrize("name", ["walsh", "coordinate:3", "hadamard:2", "gaussian:-1", "gaussian:1.5", "sphere:", ""])
def test_unknown_sets_are_refused_with_what_is_known(name):
    with pytest.raises(
        BadInput, match=r"unknown probes .*: choose coordinate, hadamard, or rademacher:q, gaussian:q, sphere:q"
    ):
        probe_set(name)
