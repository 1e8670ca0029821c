"""The low-precision emulator: formats, accumulation, and one meaning on every route."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hzo_hil.simulators import native, noise
from hzo_hil.simulators.converters import convert, uniform_port
from hzo_hil.simulators.emulated import EmulatedLinear
from hzo_hil.simulators.lowprecision import cast

KEYS = np.arange(500, dtype=np.uint64)
AIHWKIT = {"in_bits": 7, "in_bound": 1.0, "out_bits": 9, "out_bound": 12.0, "read_noise_std": 0.06}
ANALOG = {
    "plain": EmulatedLinear(70, 50),
    "noisy": EmulatedLinear(70, 50, "tanh", in_bits=7, in_bound=1.0, read_noise_std=0.06, write_noise=0.02),
    "activation": EmulatedLinear(70, 50, "limiter", bias=False, activation_options={"limit": 0.3}),
}
CODED = {
    "aihwkit": EmulatedLinear(70, 50, **AIHWKIT),
    "unsigned": EmulatedLinear(70, 50, bias=False, signed=False, weight_bound=1.0, **AIHWKIT),
}


def values_of(model: EmulatedLinear) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    values = model.initial(rng)
    return values | ({"bias": 0.1 * rng.standard_normal(model.out_features)} if model.bias else {})


def rows(model: EmulatedLinear, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(7).uniform(-1, 1, (len(KEYS), model.in_features)).astype(dtype)


def by_route(model: EmulatedLinear, dtype, monkeypatch) -> dict[str, np.ndarray]:
    state, inputs = model.program(values_of(model), 1), rows(model, dtype)
    before = inputs.copy()
    tensor = torch.from_numpy(inputs)
    found = {
        "chosen": model.run(state, inputs, KEYS),
        "torch": model.run(state, tensor, noise.keys_like(KEYS, tensor)).numpy(),
    }
    monkeypatch.setattr(native, "_load", lambda: (None, "switched off"))
    found["numpy"] = model.run(state, inputs, KEYS)
    assert np.array_equal(inputs, before)
    return found


@pytest.mark.parametrize("model", ANALOG.values(), ids=ANALOG)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 5e-6), (np.float64, 1e-13)])
def test_routes_agree_to_rounding(model, dtype, tolerance, monkeypatch):
    found = by_route(model, dtype, monkeypatch)
    for route, other in found.items():
        assert other.dtype == dtype
        assert np.abs(other - found["chosen"]).max() < tolerance, route


@pytest.mark.parametrize("model", CODED.values(), ids=CODED)
def test_behind_a_converter_routes_differ_rarely_and_by_one_code(model, monkeypatch):
    found = by_route(model, np.float32, monkeypatch)
    for route, other in found.items():
        codes = np.abs(np.rint((other - found["chosen"]) / model.output.step))
        assert codes.max() <= 1, route
        assert codes.mean() <= 2 / codes.size + 1e-4, route


def test_both_precisions_see_the_same_noise():
    model = ANALOG["noisy"]
    state = model.program(values_of(model), 1)
    wide, narrow = (model.run(state, rows(model, np.float32).astype(d), KEYS) for d in (np.float64, np.float32))
    steps = np.abs(wide - narrow)
    assert np.median(steps) < 1e-6
    assert steps.max() < 1e-4  # an input at a tie of its converter would be off by more


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("every", [1, 3, 70, 200])
def test_the_accumulator_is_rounded_every_so_many_products(every, rounding):
    """Against a loop over single products, in float64: products are exact, sums are rounded when they are due."""
    model = EmulatedLinear(
        70, 5, bias=False, accumulate_format="bf16", accumulate_every=every, rounding=rounding, weight_format="fixed1.6"
    )
    values = {"weight": np.round(values_of(model)["weight"] * 64) / 64}
    inputs = np.round(rows(model, np.float64)[:40] * 32) / 32
    weight, keys = values["weight"], KEYS[:40]
    due = [k for k in range(70) if (k + 1) % every == 0 or k == 69]
    sums = np.zeros((40, 5))
    for k in range(70):
        sums = sums + inputs[:, k : k + 1] * cast(weight, "fixed1.6", rounding, 1)[:, k]
        if k in due:
            left = len(due) - 1 - due.index(k)
            sums = cast(sums, "bf16", rounding, noise.derive(keys, left) if left else keys)
    assert np.array_equal(model.run(model.program(values, 1), inputs, keys), sums)


def test_a_coarse_accumulator_loses_small_products_and_stochastic_rounding_keeps_their_mean():
    """1 and then 64 times 0.01 in e4m3, where 0.01 is less than half a step of 0.125: nearest rounding stays at 1.

    Mean of 500 x 8 stochastic sums against 1.64, |z| < 5: false alarm 6e-7.
    """
    options = {"bias": False, "accumulate_format": "fp8_e4m3", "accumulate_every": 1}
    inputs, values = np.ones((500, 65)), {"weight": np.tile(np.r_[1.0, np.full(64, 0.01)], (8, 1))}
    lost, kept = (EmulatedLinear(65, 8, rounding=r, **options) for r in ("nearest", "stochastic"))
    assert np.all(lost.run(lost.program(values, 1), inputs, KEYS) == 1)
    sums = kept.run(kept.program(values, 1), inputs, KEYS)
    assert abs(sums.mean() - 1.64) / sums.std() * sums.size**0.5 < 5


def test_each_partial_sum_draws_numbers_of_its_own():
    """One product of 1/2 step a time: were draws shared, all of a row's partial sums would go the same way."""
    model = EmulatedLinear(16, 4, bias=False, accumulate_format="fixed5.0", accumulate_every=1, rounding="stochastic")
    out = model.run(model.program({"weight": np.full((4, 16), 0.5)}, 1), np.ones((500, 16)), KEYS)
    assert out.std() < 4  # independent draws give 2, shared ones 8
    assert 6 < out.mean() < 10


def test_the_input_format_is_applied_behind_the_converter():
    model = EmulatedLinear(6, 5, bias=False, in_bits=6, in_bound=1.0, in_format="fp8_e5m2")
    values, inputs = values_of(model), rows(model, np.float64)
    driven = cast(convert(inputs, uniform_port(6, -1.0, 1.0)), "fp8_e5m2")
    assert np.allclose(model.run(model.program(values, 1), inputs, KEYS), driven @ values["weight"].T, atol=1e-13)


def test_formats_saturate_or_overflow_as_told():
    values, inputs = {"weight": np.full((1, 2), 400.0)}, np.ones((1, 2))
    for format, beyond in (("fp8_e4m3", math.nan), ("fp8_e5m2", 768.0), ("fp16", 800.0)):
        told = {"bias": False, "accumulate_format": format}
        stop = EmulatedLinear(2, 1, **told)
        over = EmulatedLinear(2, 1, saturate=False, **told)
        assert stop.run(stop.program(values, 1), inputs, KEYS[:1])[0, 0] == (448.0 if math.isnan(beyond) else beyond)
        assert over.run(over.program(values, 1), inputs, KEYS[:1])[0, 0] == pytest.approx(beyond, nan_ok=True)
    huge = EmulatedLinear(2, 1, bias=False, accumulate_format="fp16", saturate=False)
    assert huge.run(huge.program(values, 1), inputs * 100, KEYS[:1])[0, 0] == math.inf


def test_nan_in_a_row_stays_in_its_row():
    model = CODED["aihwkit"]
    state, inputs = model.program(values_of(model), 1), rows(model)
    clean = model.run(state, inputs.copy(), KEYS)
    inputs[5, 3] = np.nan
    found = model.run(state, inputs, KEYS)
    assert np.isnan(found[5]).all()
    assert np.array_equal(np.delete(found, 5, 0), np.delete(clean, 5, 0))


def test_clocks_are_apart():
    """A new write changes the weights only, a new shot the read-out and the rounding only."""
    model = EmulatedLinear(20, 20, read_noise_std=0.1, write_noise=0.1)
    values, inputs = values_of(model), rows(model, np.float64)
    writes = [model.program(values, key) for key in (1, 1, 2)]
    assert np.array_equal(writes[0].weight.array, writes[1].weight.array)
    assert not np.allclose(writes[0].weight.array, writes[2].weight.array)
    quiet = EmulatedLinear(20, 20, write_noise=0.1)
    noise_of = [model.run(w, inputs, KEYS) - quiet.run(w, inputs, KEYS) for w in (writes[0], writes[2])]
    assert np.allclose(noise_of[0], noise_of[1], atol=1e-12)


def test_a_state_keeps_its_own_values():
    model = EmulatedLinear(3, 2)
    values, inputs = values_of(model), rows(model, np.float64)
    state = model.program(values, 1)
    values["bias"] += 5
    values["weight"] += 5
    assert np.abs(model.run(state, inputs, KEYS)).max() < 4


@pytest.mark.parametrize("format", ["bf16", "fp8_e4m3", "fixed3.4"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_formats_mean_the_same_to_torch(format, rounding):
    """With sums that both add up exactly, every bit must agree."""
    model = EmulatedLinear(
        16, 8, bias=False, in_format=format, weight_format="fixed1.4", accumulate_format=format, accumulate_every=4,
        rounding=rounding,
    )  # fmt: skip
    state, inputs = model.program(values_of(model), 1), rows(model)
    if format != "fixed3.4":
        inputs = np.round(inputs * 16) / 16
    tensor = torch.from_numpy(inputs)
    there = model.run(state, tensor, noise.keys_like(KEYS, tensor)).numpy()
    assert np.array_equal(there, model.run(state, inputs, KEYS))


def test_bad_emulators_are_refused():
    with pytest.raises(ValueError, match=r"accumulate_every 4 must not be negative, and needs an accumulate_format"):
        EmulatedLinear(2, 2, accumulate_every=4)
    with pytest.raises(ValueError, match="accumulate_every -1 must not be negative"):
        EmulatedLinear(2, 2, accumulate_format="bf16", accumulate_every=-1)
    with pytest.raises(ValueError, match="unknown number format 'int8'"):
        EmulatedLinear(2, 2, in_format="int8")
    with pytest.raises(ValueError, match="'tanh' has no option 'limit'"):
        EmulatedLinear(2, 2, "tanh", activation_options={"limit": 1.0})
    with pytest.raises(ValueError, match="a converter has 2 to 24 bits"):
        EmulatedLinear(2, 2, in_bits=1, in_bound=1.0)
    with pytest.raises(ValueError, match="noise and mismatch must not be negative"):
        EmulatedLinear(2, 2, write_noise=-0.1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_codes():
    model = CODED["aihwkit"]
    state, inputs = model.program(values_of(model), 1), rows(model)
    tensor = torch.from_numpy(inputs).cuda()
    there = model.run(state, tensor, noise.keys_like(KEYS, tensor)).cpu().numpy()
    codes = np.abs(np.rint((there - model.run(state, inputs, KEYS)) / model.output.step))
    assert codes.max() <= 1
    assert codes.mean() <= 2 / codes.size + 1e-4
