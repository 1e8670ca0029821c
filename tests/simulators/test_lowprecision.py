"""Number formats, bit for bit against torch's casts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hzo_hil.simulators.lowprecision import FORMATS, cast, check_format

TORCH = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def by_torch(values: np.ndarray, name: str) -> np.ndarray:
    return torch.from_numpy(values).to(TORCH[name]).to(torch.float32).numpy()


def identical(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal bits, signs of zero included; any NaN equals any NaN."""
    nan = np.isnan(a) & np.isnan(b)
    return bool(np.all((a.view(np.uint32) == b.view(np.uint32)) | nan))


def torch_saturates(name: str) -> bool:
    """fp8 e4m3fn became saturating in torch 2.12; every other rule is the same in all versions."""
    return bool(by_torch(np.array([1e9], np.float32), name)[0] == FORMATS[name].largest)


def codes(name: str) -> np.ndarray:
    """Every value of the format, as float32."""
    wide = TORCH[name].itemsize == 2
    raw = np.arange(2**16, dtype=np.uint16) if wide else np.arange(2**8, dtype=np.uint8)
    return torch.from_numpy(raw.copy()).view(TORCH[name]).to(torch.float32).numpy()


@pytest.mark.parametrize("name", TORCH)
def test_every_code_is_its_own_cast(name):
    values = codes(name)
    assert identical(cast(values, name), values)


@pytest.mark.parametrize("name", TORCH)
def test_midpoints_and_their_neighbours_round_as_torch_does(name):
    finite = np.unique(codes(name)[np.isfinite(codes(name))])
    middle = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    up, down = (np.nextafter(middle, np.float32(end)) for end in (np.inf, -np.inf))
    values = np.concatenate([middle, up, down])
    assert identical(cast(values, name), by_torch(values, name))


@pytest.mark.parametrize("name", TORCH)
def test_any_float32_pattern_rounds_as_torch_does(name):
    """A million random bit patterns: subnormals, infinities and NaN among them."""
    bits = np.random.default_rng(0).integers(0, 2**32, 1_000_000, dtype=np.uint64).astype(np.uint32)
    values = bits.view(np.float32)
    near = values[np.isfinite(values)] % np.float32(4 * min(FORMATS[name].largest, 1e30))
    for some in (values, near):
        assert identical(cast(some, name, saturate=torch_saturates(name)), by_torch(some, name))


@pytest.mark.parametrize(("name", "beyond"), [("fp16", math.inf), ("fp8_e5m2", math.inf), ("fp8_e4m3", math.nan)])
def test_overflow_follows_torch_or_saturates(name, beyond):
    largest = FORMATS[name].largest
    values = np.array([largest * 2, -largest * 2, math.inf, math.nan], np.float32)
    assert np.array_equal(cast(values, name), np.array([beyond, -beyond, beyond, math.nan], np.float32), equal_nan=True)
    expected = np.array([largest, -largest, largest, math.nan], np.float32)
    assert np.array_equal(cast(values, name, saturate=True), expected, equal_nan=True)


@pytest.mark.parametrize("name", [*TORCH, "fixed2.5"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_nan_stays_nan(name, rounding):
    assert np.isnan(cast(np.full(4, np.nan, np.float32), name, rounding, 1, saturate=True)).all()


@given(value=st.floats(-0.9, 0.9), name=st.sampled_from([*TORCH, "fixed1.6"]))
def test_stochastic_rounding_is_unbiased(value, name):
    """Exact binomial test of 20,000 draws: how often the upper neighbour is taken; false alarm 1e-9 an example."""
    if name in FORMATS:
        exponent = max(math.frexp(value)[1] - 1, FORMATS[name].low_exponent)
        step = 2.0 ** (exponent - FORMATS[name].mantissa)
    else:
        step = 2.0**-6
    below = math.floor(value / step)
    draws = cast(np.full((20_000, 1), value), name, "stochastic", np.arange(20_000, dtype=np.uint64)) / step - below
    assert set(np.unique(draws)) <= {0.0, 1.0}
    assert stats.binomtest(int(draws.sum()), 20_000, value / step - below).pvalue > 1e-9


def test_stochastic_rounding_follows_its_keys():
    values = np.full((6, 50), 0.3)
    keys = np.arange(6, dtype=np.uint64)
    whole = cast(values, "fp8_e5m2", "stochastic", keys)
    assert np.array_equal(cast(values[2:4], "fp8_e5m2", "stochastic", keys[2:4]), whole[2:4])
    assert not np.array_equal(whole[0], whole[1])


def test_fixed_point_is_uniform_and_saturates():
    values = np.array([0.0, 0.124, 0.126, -0.376, 5.0, -math.inf])
    assert cast(values, "fixed1.2").tolist() == [0.0, 0.0, 0.25, -0.5, 1.75, -1.75]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_is_kept(dtype):
    assert cast(np.ones(3, dtype), "fp16").dtype == dtype


def test_bad_requests_are_named():
    with pytest.raises(ValueError, match="unknown number format 'fp4': known are float, fp16, bf16"):
        check_format("fp4")
    with pytest.raises(ValueError, match="no bits left"):
        check_format("fixed0.0")
    with pytest.raises(ValueError, match="unknown rounding 'up'"):
        cast(np.ones(2), "fp16", "up")
    with pytest.raises(ValueError, match="needs keys"):
        cast(np.ones(2), "fp16", "stochastic")
    with pytest.raises(ValueError, match="3 keys for values of shape"):
        cast(np.ones((2, 2)), "fp16", "stochastic", np.arange(3))
