"""Number formats, bit for bit against the casts of torch and ml_dtypes, on every route."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hzo_hil.simulators import lowprecision, native, noise
from hzo_hil.simulators.lowprecision import FORMATS, cast, check_format

TORCH = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def by_torch(values: np.ndarray, name: str) -> np.ndarray:
    return torch.from_numpy(values).to(TORCH[name]).to(torch.float32).numpy()


def by_ml_dtypes(values: np.ndarray, name: str) -> np.ndarray:
    found = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed (extra: test)")
    names = {"fp16": np.float16, "bf16": "bfloat16", "fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}
    kind = names[name] if name == "fp16" else getattr(found, names[name])
    with np.errstate(all="ignore"):
        return values.astype(kind).astype(values.dtype)


def by_route(values: np.ndarray, name: str, saturate: bool) -> dict[str, np.ndarray]:
    """The same cast by the kernel (or what stands for it), in place, by numpy and by torch operations."""
    return {
        "chosen": cast(values, name, saturate=saturate),
        "in place": cast(values.copy(), name, saturate=saturate, own=True),
        "numpy": lowprecision._nearest_numpy(values, lowprecision._resolved(name, saturate)),
        "torch": cast(torch.from_numpy(values), name, saturate=saturate).numpy(),
    }


def identical(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal bits, signs of zero included; any NaN equals any NaN."""
    nan = np.isnan(a) & np.isnan(b)
    bits = np.uint32 if a.dtype == np.float32 else np.uint64
    return a.dtype == b.dtype and bool(np.all((a.view(bits) == b.view(bits)) | nan))


def patterns(dtype: type, count: int = 300_000) -> np.ndarray:
    """Random bit patterns, numbers of ordinary size, and every value of fp16 and of bf16."""
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 2**64, count, dtype=np.uint64)
    raw = raw.view(np.float64) if dtype == np.float64 else (raw >> np.uint64(32)).astype(np.uint32).view(np.float32)
    sizes = 10 ** rng.uniform(-9, 6, count) * rng.choice([-1, 1], count)
    with np.errstate(all="ignore"):
        return np.concatenate([part.astype(dtype) for part in (raw, sizes, codes("fp16"), codes("bf16"))])


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
    """Subnormals, infinities and NaN among them."""
    values = patterns(np.float32)
    assert identical(cast(values, name, saturate=torch_saturates(name)), by_torch(values, name))


@pytest.mark.parametrize("name", TORCH)
def test_any_float32_pattern_rounds_as_ml_dtypes_does(name):
    values = patterns(np.float32)
    assert identical(cast(values, name), by_ml_dtypes(values, name))


@pytest.mark.parametrize("name", TORCH)
def test_float64_is_rounded_once_and_by_torch_by_way_of_float32(name):
    values = patterns(np.float64)
    with np.errstate(all="ignore"):
        narrow = values.astype(np.float32)
    there = torch.from_numpy(values).to(TORCH[name]).to(torch.float32).numpy()
    assert identical(cast(narrow, name, saturate=torch_saturates(name)), there)
    known = np.unique(codes(name)[np.isfinite(codes(name))]).astype(np.float64)
    inside = values[np.abs(values) <= known[-1]]
    found = cast(inside, name)
    assert np.all(np.isin(found, known))
    after = np.clip(np.searchsorted(known, inside), 1, len(known) - 1)
    nearest = np.minimum(np.abs(inside - known[after]), np.abs(inside - known[after - 1]))
    assert np.array_equal(np.abs(inside - found), nearest)


@pytest.mark.parametrize("name", [*TORCH, "fixed3.4", "fixed20.9"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("saturate", [False, True])
def test_every_route_gives_the_same_bits(name, dtype, saturate):
    values = patterns(dtype, 100_000)
    if name not in FORMATS:
        assert identical(cast(torch.from_numpy(values), name).numpy(), cast(values, name))
        return
    found = by_route(values, name, saturate)
    for route, other in found.items():
        assert identical(other, found["chosen"]), route


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
    part = value / step - below
    if part < 1e-14:  # too rare to be seen, and for scipy
        assert not draws.any()
    else:
        assert stats.binomtest(int(draws.sum()), 20_000, part).pvalue > 1e-9


@pytest.mark.parametrize("name", [*TORCH, "fixed2.3"])
def test_stochastic_rounding_has_no_bias_in_the_mean(name):
    """Mean of 400,000 rounding errors against 0 with their own spread, |z| < 5: false alarm 6e-7 a format."""
    values = np.random.default_rng(0).uniform(-3, 3, (4000, 100))
    errors = cast(values, name, "stochastic", np.arange(4000, dtype=np.uint64)) - values
    assert abs(errors.mean()) / errors.std() * errors.size**0.5 < 5
    assert errors.std() > 0


@pytest.mark.parametrize("name", [*TORCH, "fixed2.5"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_route_rounds_stochastically_to_the_same_bits(name, dtype):
    keys = np.arange(600, dtype=np.uint64)
    values = np.random.default_rng(1).standard_normal((600, 77)).astype(dtype) * 3
    values[0, :6] = [np.nan, np.inf, -np.inf, 1e-42, -0.0, 448.0]
    values[1] *= 1e-7
    kind = lowprecision._resolved(name, True)
    first = cast(values, name, "stochastic", keys, True)
    assert identical(lowprecision._stochastic_numpy(values, kind, keys, noise.STREAM_ROUNDING, False), first)
    assert identical(cast(values.copy(), name, "stochastic", keys, True, own=True), first)
    tensor = torch.from_numpy(values)
    assert identical(cast(tensor, name, "stochastic", torch.arange(600), True).numpy(), first)
    assert identical(cast(tensor, name, "stochastic", 7, True).numpy(), cast(values, name, "stochastic", 7, True))


def test_stochastic_rounding_takes_the_stated_draws():
    """Up where the part cut off and the uniform number of that key and column reach 1."""
    values = np.random.default_rng(1).uniform(0, 4, (50, 30))
    keys = np.arange(50, dtype=np.uint64)
    draw = noise.uniforms(keys, noise.STREAM_ROUNDING, 30, np.float64)
    expected = np.floor(values * 8 + draw) / 8
    assert np.array_equal(cast(values, "fixed3.3", "stochastic", keys), np.minimum(expected, 8 - 1 / 8))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threads", [1, 4])
def test_stochastic_rounding_follows_its_keys(dtype, threads, monkeypatch):
    values = np.random.default_rng(0).uniform(-1, 1, (60, 50)).astype(dtype)
    keys = np.arange(60, dtype=np.uint64)
    whole = cast(values, "fp8_e5m2", "stochastic", keys)
    monkeypatch.setenv("HZO_HIL_THREADS", str(threads))
    monkeypatch.setattr(lowprecision, "_LEAST", 100)
    assert np.array_equal(cast(values, "fp8_e5m2", "stochastic", keys), whole)
    assert np.array_equal(cast(values[2:4], "fp8_e5m2", "stochastic", keys[2:4]), whole[2:4])
    same = np.full((60, 50), 0.3, dtype)
    assert not np.array_equal(*cast(same, "fp8_e5m2", "stochastic", keys)[:2])
    for rounding in ("nearest", "stochastic"):
        strided = cast(values[::2, 1::3], "fp16", rounding, keys[::2])
        assert np.array_equal(strided, cast(values[::2, 1::3].copy(), "fp16", rounding, keys[::2]))


@pytest.mark.skipif(native.library() is None, reason=f"route: {native.route()}")
def test_the_kernels_are_really_used(monkeypatch):
    monkeypatch.setattr(lowprecision, "_rounded", None)
    monkeypatch.setattr(lowprecision, "_small_block", None)
    assert cast(np.float32([1.3]), "fp8_e5m2") == np.float32([1.25])
    assert cast(np.ones((2, 2)), "fp8_e5m2", "stochastic", 1).shape == (2, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", [*TORCH, "fixed2.5"])
def test_a_gpu_gives_the_same_bits(name):
    values = patterns(np.float32, 10_000)[:40_000].reshape(400, 100)
    tensor, keys = torch.from_numpy(values).cuda(), np.arange(400, dtype=np.uint64)
    for saturate in (False, True):
        assert identical(cast(tensor, name, saturate=saturate).cpu().numpy(), cast(values, name, saturate=saturate))
    there = cast(tensor, name, "stochastic", noise.keys_like(keys, tensor), True)
    assert identical(there.cpu().numpy(), cast(values, name, "stochastic", keys, True))


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
    with pytest.raises(ValueError, match="casts take float32 or float64, not int64"):
        cast(np.arange(3), "fp16")
    with pytest.raises(ValueError, match="3 keys for values of shape"):
        cast(np.ones((2, 2)), "fp16", "stochastic", np.arange(3))
