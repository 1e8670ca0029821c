"""Keyed noise: what it depends on, what it is distributed like, and that every route draws the same."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy import stats

from hzo_hil.simulators import converters, draws, ends, lowprecision, native, noise

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


# --- routes -------------------------------------------------------------------------------------------------------

BY_NUMPY = {"normals": draws.normals_numpy, "uniforms": draws.uniforms_numpy}
SPREAD = np.arange(700, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # keys that use all their bits
LEVELS = ["base", "v3", "v4"]
TOLERANCE = {"float32": 1e-6, "float64": 4e-15}  # two units in the last place of the largest numbers


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", [1, 2, 63, 258])
def test_kernels_numpy_and_torch_draw_the_same(name, dtype, count):
    """Uniform numbers bit by bit, normal ones to rounding."""
    chosen = DRAWS[name](SPREAD, 3, count, dtype)
    there = DRAWS[name](noise.keys_like(SPREAD, torch.zeros(1)), 3, count, getattr(torch, dtype)).numpy()
    for other in (BY_NUMPY[name](SPREAD, 3, count, dtype), there):
        assert other.dtype == dtype
        assert np.abs(chosen - other).max() <= (TOLERANCE[dtype] if name == "normals" else 0)


def test_derived_keys_are_the_same_in_torch():
    there = noise.derive(noise.keys_like(SPREAD, torch.zeros(1)), 5, 0, 1 << 20)
    assert np.array_equal(there.numpy().view(np.uint64), noise.derive(SPREAD, 5, 0, 1 << 20))


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_draws_do_not_depend_on_the_number_of_threads(name, dtype, threads, monkeypatch):
    expected = DRAWS[name](SPREAD, 3, 77, dtype)
    monkeypatch.setenv("HZO_HIL_THREADS", str(threads))
    monkeypatch.setattr(draws, "_LEAST", 100)
    assert np.array_equal(DRAWS[name](SPREAD, 3, 77, dtype), expected)


def below(level: str) -> bool:
    library = native.library()
    return library is not None and LEVELS.index(level) <= LEVELS.index(library.level)


@pytest.fixture(params=LEVELS)
def level(request, monkeypatch):
    """The kernels of one instruction set, in place of the widest."""
    if not below(request.param):
        pytest.skip(f"{request.param} kernels do not run here; route: {native.route()}")
    narrower = copy.copy(native.library())
    narrower.level = request.param

    def use() -> None:
        monkeypatch.setattr(native, "_load", lambda: (narrower, "chosen for this test"))
        forget()

    yield use
    monkeypatch.undo()
    forget()


def forget() -> None:
    for module in (draws, ends, converters, lowprecision):
        module._kernel.cache_clear()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_all_instruction_sets_draw_and_round_the_same(level, dtype):
    """Casts and converters bit by bit, noise to rounding."""
    values = np.random.default_rng(0).standard_normal((700, 65)).astype(dtype) * 3
    read_out = ends.ReadOut(converters.Port(-4, 4), 1.3, 0.01, 0.02)

    def everything() -> tuple[list[np.ndarray], list[np.ndarray]]:
        exact = [converters.convert(values, converters.Port(-2, 2, 1 / 32)), noise.uniforms(SPREAD, 1, 65, dtype)]
        for name in ("bf16", "fp8_e4m3", "fixed2.4"):
            exact += [lowprecision.cast(values, name), lowprecision.cast(values, name, "stochastic", SPREAD, True)]
        return exact, [noise.normals(SPREAD, 1, 65, dtype), read_out(values.copy(), SPREAD)]

    expected = everything()
    level()
    found = everything()
    for a, b in zip(expected[0], found[0], strict=True):
        assert np.array_equal(a, b)
    for a, b in zip(expected[1], found[1], strict=True):
        assert np.abs(a - b).max() <= 3 * TOLERANCE[dtype]
