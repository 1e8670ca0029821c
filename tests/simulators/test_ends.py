"""Bias, noise, gain and converter in one pass: the kernel, numpy and torch mean the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hzo_hil.simulators import ends, native, noise
from hzo_hil.simulators.arrays import Held
from hzo_hil.simulators.ends import ReadOut
from hzo_hil.simulators.model import Port

KEYS = np.arange(100, 700, dtype=np.uint64)
READ_OUTS = {
    "gain": ReadOut(gain=-1.5),
    "constant noise": ReadOut(dark=0.01),
    "shot noise": ReadOut(dark=0.01, per_level=0.04),
    "all": ReadOut(Port(-2, 2), 1.7, 0.01, 0.04),
}
ADC = ReadOut(Port(-2, 2, 2 / 255), 1.2, 0.01, 0.04)


def rows(width: int, dtype=np.float64) -> np.ndarray:
    return np.random.default_rng(width).uniform(-1, 2, (len(KEYS), width)).astype(dtype)


def bias(width: int) -> Held:
    return Held(np.linspace(-0.2, 0.3, width))


def by_route(made: ReadOut, values: np.ndarray, added: Held | None) -> dict[str, np.ndarray]:
    tensor = torch.from_numpy(values.copy())
    return {
        "chosen": made(values.copy(), KEYS, added),
        "numpy": made._by_numpy(values.copy(), KEYS, added, noise.STREAM_DETECTOR),
        "torch": made(tensor, noise.keys_like(KEYS, tensor), added).numpy(),
    }


@pytest.mark.parametrize("made", READ_OUTS.values(), ids=READ_OUTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-6), (np.float64, 1e-14)])
@pytest.mark.parametrize("width", [1, 10, 64, 129, 300])
def test_routes_agree_to_rounding(made, width, dtype, tolerance):
    for added in (None, bias(width)):
        found = by_route(made, rows(width, dtype), added)
        for other in ("numpy", "torch"):
            assert found["chosen"].dtype == dtype
            assert np.abs(found["chosen"] - found[other]).max() <= tolerance * 10


def test_behind_a_converter_one_value_in_ten_thousand_may_differ_by_one_code():
    found = by_route(ADC, rows(300, np.float32), bias(300))
    for other in ("numpy", "torch"):
        codes = np.abs(np.rint((found["chosen"] - found[other]) / ADC.port.step))
        assert codes.max() <= 1
        assert codes.mean() <= 1e-4


def test_the_formula():
    """Against the stated formula, with the numbers of `noise.normals`."""
    values, added = rows(33), bias(33)
    level = values + added.array
    expected = level + np.sqrt(0.01 + 0.04 * np.maximum(level, 0)) * noise.normals(KEYS, 9, 33, np.float64)
    found = READ_OUTS["all"](values, KEYS, added, stream=9)
    assert np.allclose(found, np.clip(1.7 * expected, -2, 2), atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threads", [1, 4])
def test_rows_do_not_depend_on_batch_or_threads(dtype, threads, monkeypatch):
    values = rows(47, dtype)
    whole = ADC(values.copy(), KEYS)
    monkeypatch.setenv("HZO_HIL_THREADS", str(threads))
    monkeypatch.setattr(ends, "_LEAST", 1000)
    assert np.array_equal(ADC(values.copy(), KEYS), whole)
    order = np.random.default_rng(0).permutation(len(KEYS))
    parts = [ADC(values[part], KEYS[part]) for part in np.array_split(order, 13)]
    assert np.array_equal(np.concatenate(parts), whole[order])


def test_arrays_of_any_layout_are_read_and_only_fitting_ones_used_up():
    values = rows(20)
    expected = ADC(values.copy(), KEYS)
    assert np.array_equal(ADC(np.asfortranarray(values), KEYS), expected)
    locked = values.copy()
    locked.flags.writeable = False
    assert np.array_equal(ADC(locked, KEYS), expected)
    assert np.array_equal(locked, values)
    tensor = torch.from_numpy(values.copy())
    ADC(tensor, noise.keys_like(KEYS, tensor))
    assert np.array_equal(tensor.numpy(), values)
    assert ADC(np.empty((0, 20)), KEYS[:0]).shape == (0, 20)


def test_nan_stays_nan_and_an_idle_read_out_touches_nothing():
    values = rows(5)
    assert ReadOut()(values, None) is values
    values[3, 2] = np.nan
    found = ADC(values.copy(), KEYS)
    assert np.isnan(found[3, 2])
    assert np.isnan(found).sum() == 1


def test_bad_read_outs_are_refused():
    with pytest.raises(ValueError, match=r"variances -1 and 0\.0 must not be negative, gain 1\.0 finite"):
        ReadOut(dark=-1)


@pytest.mark.skipif(native.library() is None, reason=f"route: {native.route()}")
def test_the_kernels_are_really_used(monkeypatch):
    monkeypatch.setattr(ReadOut, "_by_numpy", None)
    assert ADC(rows(5), KEYS).shape == (600, 5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_reads_the_same():
    values = rows(300, np.float32)
    tensor = torch.from_numpy(values).cuda()
    found = ADC(tensor, noise.keys_like(KEYS, tensor), bias(300)).cpu().numpy()
    codes = np.abs(np.rint((found - ADC(values.copy(), KEYS, bias(300))) / ADC.port.step))
    assert codes.max() <= 1
    assert codes.mean() <= 1e-4
