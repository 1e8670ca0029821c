"""Poisson counts by inversion: exact, monotone, the same in numpy and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hzo_hil.simulators.counting import poisson

MEANS = [0.0, 1e-3, 0.4, 3.0, 15.9, 16.1, 60.0, 1e3, 1e5, 1e7]


@pytest.mark.parametrize("mean", MEANS)
def test_counts_are_those_of_the_inverse_distribution(mean):
    # The reference loses its tails where means are large: at 1e7 it is off by one for 1 - u = 1e-9.
    ends = [0.5, *([1e-9, 1 - 1e-9] if mean <= 1e3 else [])]
    uniform = np.concatenate([np.random.default_rng(0).random(3000), ends])
    assert np.array_equal(poisson(uniform, np.full(uniform.shape, mean)), stats.poisson.ppf(uniform, mean))


@given(u=st.floats(0, 1, exclude_max=True), mean=st.floats(0, 1e6), factor=st.floats(1, 1.5))
def test_counts_grow_with_the_mean_and_with_the_draw(u, mean, factor):
    low, high = poisson(np.array([u, u]), np.array([mean, mean * factor]))
    assert low <= high
    assert poisson(np.array([u / factor]), np.array([mean]))[0] <= low


def test_rounding_of_the_mean_moves_a_count_by_one_at_most():
    uniform = np.random.default_rng(0).random(100_000)
    mean = 10 ** np.random.default_rng(1).uniform(-2, 6, 100_000)
    a, b = poisson(uniform, mean), poisson(uniform, mean.astype(np.float32).astype(np.float64))
    assert np.abs(a - b).max() <= 1
    assert (a != b).mean() < 1e-2


def test_torch_counts_as_numpy_does():
    uniform = np.random.default_rng(0).random((100, 400))
    mean = np.tile(10 ** np.linspace(-3, 7, 400), (100, 1))
    found = poisson(torch.from_numpy(uniform), torch.from_numpy(mean)).numpy()
    differ = found != poisson(uniform, mean)
    assert differ.mean() <= 1e-4
    assert np.abs(found - poisson(uniform, mean)).max() <= 1


@pytest.mark.parametrize("mean", MEANS)
def test_the_rarest_draws_give_sensible_counts(mean):
    """The first numbers a 53-bit uniform can be, and the last, lie 8.2 standard deviations out; 0 counts as 1e-17."""
    zero, least, most = poisson(np.array([0.0, 2.0**-53, 1 - 2.0**-53]), np.full(3, mean))
    assert least - 0.4 * mean**0.5 - 1 <= zero <= least
    assert max(mean - 8.3 * mean**0.5, 0) <= least <= mean <= most
    assert most <= mean + 8.3 * mean**0.5 + 14 * (mean > 0)


def test_a_tail_known_to_thirty_digits():
    """Terms of the law of mean 1e7 added up in 30-digit arithmetic: P(N >= 10018973) > 1e-9 >= P(N >= 10018974)."""
    assert poisson(np.array([1 - 1e-9]), np.array([1e7]))[0] == 10018973


def test_no_light_gives_no_count_and_nan_stays_nan():
    assert poisson(np.array([0.999]), np.array([-1e-9]))[0] == 0
    assert np.isnan(poisson(np.array([0.3]), np.array([np.nan]))[0])
