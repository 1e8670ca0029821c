"""Keyed noise: what it depends on, and what it is distributed like."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from hzo_hil.simulators import noise

DRAWS = {"normals": noise.normals, "uniforms": noise.uniforms}
KEYS = np.arange(5000, 5700, dtype=np.uint64)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [1, 7, 64])
def test_a_row_depends_on_its_key_alone(draw, dtype, count):
    whole = draw(KEYS, 3, count, dtype)
    order = np.random.default_rng(0).permutation(len(KEYS))
    shuffled = np.concatenate([draw(KEYS[part], 3, count, dtype) for part in np.array_split(order, 41)])
    assert whole.dtype == dtype
    assert np.array_equal(shuffled, whole[order])


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_wider_draws_come_in_blocks_and_stay_the_same(draw):
    wide = 40_000  # more columns than a block holds
    assert np.array_equal(draw(KEYS[:3], 1, wide)[1:2], draw(KEYS[1:2], 1, wide))


def test_keys_and_streams_give_different_numbers():
    seen = np.concatenate([noise.uniforms(KEYS, s, 4, np.float64) for s in (1, 2, 3)])
    assert len(np.unique(seen)) == seen.size


def test_both_precisions_see_the_same_noise():
    assert np.allclose(noise.normals(KEYS, 1, 33, np.float32), noise.normals(KEYS, 1, 33, np.float64), atol=1e-5)


@pytest.mark.parametrize("stream", [1, 2])
def test_normals_are_standard_normal(stream):
    """Kolmogorov-Smirnov and four moments, 256,000 draws from consecutive keys; false alarm below 1e-5 a stream."""
    draws = noise.normals(np.arange(2000, dtype=np.uint64), stream, 128, np.float64)
    n = draws.size
    scores = [
        draws.mean() * n**0.5,
        (draws.var() - 1) * (n / 2) ** 0.5,
        (draws**3).mean() * (n / 15) ** 0.5,
        ((draws**4).mean() - 3) * (n / 96) ** 0.5,
    ]
    assert np.abs(scores).max() < 5
    assert stats.kstest(draws.ravel(), "norm").pvalue > 1e-6


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_uniforms_are_uniform(dtype):
    """Kolmogorov-Smirnov on 128,000 draws; false alarm 1e-6."""
    draws = noise.uniforms(np.arange(2000, dtype=np.uint64), 1, 64, dtype)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert stats.kstest(draws.ravel().astype(np.float64), "uniform").pvalue > 1e-6


def test_neighbouring_keys_streams_and_columns_are_uncorrelated():
    """Seven correlations, of values and of squares, over 200,000 pairs each; |z| < 5: false alarm 4e-6 in all."""
    keys = np.arange(2001, dtype=np.uint64)
    a, b = (noise.normals(keys, s, 100, np.float64) for s in (1, 2))
    pairs = [
        (a[:-1], a[1:]),
        (a, b),
        (a[:, :-1], a[:, 1:]),
        (a[:, :50], a[:, 50:]),  # the two normals of one hash
        (a[:-1] ** 2, a[1:] ** 2),
        (a**2, b**2),
        (a[:, :50] ** 2, a[:, 50:] ** 2),
    ]
    for left, right in pairs:
        correlation = np.corrcoef(left.ravel(), right.ravel())[0, 1]
        assert abs(correlation) * left.size**0.5 < 5


def test_derived_keys_differ_for_every_path():
    keys = np.arange(100, dtype=np.uint64)
    found = np.concatenate([noise.derive(keys, *path) for path in [(), (0,), (1,), (0, 1), (1, 0), (1, 1)]])
    assert len(np.unique(found)) == found.size


def test_chip_draws_repeat_and_differ_by_seed_stage_and_tag():
    def first(*of):
        return noise.chip_rng(*of).standard_normal()

    assert first(3, 1, noise.CHIP_LOSS) == first(3, 1, noise.CHIP_LOSS)
    others = [(4, 1, noise.CHIP_LOSS), (3, 2, noise.CHIP_LOSS), (3, 1, noise.CHIP_GAMMA)]
    assert len({first(3, 1, noise.CHIP_LOSS), *(first(*o) for o in others)}) == 4


def test_bad_requests_are_named():
    with pytest.raises(ValueError, match="float32 or float64, not in float16"):
        noise.normals(KEYS, 1, 4, np.float16)
    with pytest.raises(ValueError, match="count -1 must not be negative"):
        noise.uniforms(KEYS, 1, -1)
    with pytest.raises(ValueError, match="chip seed -2"):
        noise.chip_rng(-2, 0, 1)
