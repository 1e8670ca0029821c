"""Masters stay in their range, and what is written is what a device can hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hzo_hil import Opaque, Stage
from hzo_hil.devices.api import ParameterSpec
from hzo_hil.devices.errors import BadInput
from hzo_hil.devices.fake import FakeDevice
from hzo_hil.parameters import difference, fold, nearest, settled, slewed, to_device, widest_gap
from tests.core.nets import inputs

TWO_PI = 2 * math.pi
values = st.lists(st.floats(-30, 30), min_size=1, max_size=8)


def spec(size: int, **options) -> ParameterSpec:
    return ParameterSpec("phase", (size,), **options)


@given(values)
def test_wrapped_values_are_the_same_phase(given_):
    master = torch.tensor(given_, dtype=torch.float64)
    before = master.clone()
    moved = fold(spec(len(given_), period=TWO_PI, edge="wrap"), master)
    assert ((master >= 0) & (master <= TWO_PI)).all()
    turns = (master - before) / TWO_PI
    assert (turns - turns.round()).abs().max() < 1e-12
    assert moved == int((master != before).sum())


@given(values)
def test_reflected_values_stay_inside_and_go_back_the_way_they_came(given_):
    master = torch.tensor(given_, dtype=torch.float64)
    before = master.numpy().copy()
    fold(spec(len(given_), low=-1.0, high=2.0, edge="reflect"), master)
    inside = (before >= -1) & (before <= 2)
    assert ((master >= -1) & (master <= 2)).all()
    assert np.array_equal(master.numpy()[inside], before[inside])
    # A triangle wave of period 6 through the range.
    expected = 2 - np.abs((before + 1) % 6 - 3)
    np.testing.assert_allclose(master.numpy(), expected, atol=1e-12)


@given(values)
def test_clipped_values_stop_at_the_ends_and_are_counted(given_):
    master = torch.tensor(given_, dtype=torch.float64)
    expected = np.clip(given_, -1, 2)
    moved = fold(spec(len(given_), low=-1.0, high=2.0), master)
    assert np.array_equal(master.numpy(), expected)
    assert moved == int((expected != np.array(given_)).sum())
    assert fold(spec(len(given_)), master) == 0


@given(values, st.lists(st.integers(-40, 40), min_size=2, max_size=9, unique=True))
def test_the_nearest_level_is_written(given_, levels):
    table = tuple(sorted(levels))
    written = to_device(
        spec(len(given_), levels=table), torch.tensor(given_, dtype=torch.float64), "float64", "stage 1"
    )
    best = np.abs(np.array(given_)[:, None] - np.array(table)).min(axis=1)
    assert np.array_equal(np.abs(written - given_), best)
    assert set(written) <= set(table)
    assert np.array_equal(nearest(np.array(table), np.array(table)), np.arange(len(table)))


def test_values_that_are_not_finite_are_never_written():
    with pytest.raises(
        BadInput, match=r"stage 2: parameter 'phase' holds 2 non-finite values, nothing was written.*learning rate"
    ):
        to_device(spec(3), torch.tensor([math.nan, 1.0, math.inf]), "float32", "stage 2")


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0.05, 3))
def test_no_write_moves_a_value_by_more_than_its_slew(start, end, slew):
    writes = slewed(spec(1, slew=slew), np.array([start]), np.array([end]))
    path = np.concatenate([[start], *writes])
    assert path[-1] == end
    assert np.abs(np.diff(path)).max() <= slew * (1 + 1e-8)
    assert len(writes) == max(1, math.ceil(abs(end - start) / slew * (1 - 1e-9)))


def test_without_a_limit_or_a_known_value_one_write_does():
    assert len(slewed(spec(1), np.zeros(1), np.ones(1))) == 1
    assert len(slewed(spec(1, slew=0.1), None, np.ones(1))) == 1


def test_a_difference_goes_the_short_way_round():
    wrap = spec(3, period=TWO_PI, edge="wrap")
    plus, minus = np.array([0.05, 3.0, TWO_PI - 0.1]), np.array([TWO_PI - 0.05, 2.9, 0.1])
    np.testing.assert_allclose(difference(wrap, plus, minus), [0.1, 0.1, -0.2])
    np.testing.assert_allclose(difference(spec(3), plus, minus), plus - minus)


def test_a_perturbed_value_is_cut_not_reflected():
    """Reflection could bring both ends of a probe to the same value."""
    reflect = spec(1, low=0.0, high=1.0, edge="reflect")
    up, down = (settled(reflect, np.array([1.0 + s * 0.1]), "float64", "") for s in (1, -1))
    assert (up, down) == (1.0, 0.9)


def test_the_widest_gap_of_a_converter():
    assert widest_gap(spec(1)) == 0
    assert widest_gap(spec(1, levels=(0.0, 0.5, 2.0))) == 1.5


# ---- in a network


def chip(**parameter) -> FakeDevice:
    return FakeDevice.mlp([2, 2], "identity", dtype="float64", bias=False, parameter=parameter)


def test_updates_below_one_converter_step_add_up_in_the_master():
    device = chip(levels=tuple(np.linspace(-1, 1, 5)))
    module = Opaque([Stage(device, 0, initial={"weight": np.zeros((2, 2))})]).double()
    x = inputs(2, 2, grad=False)
    written = []
    for _ in range(4):
        module(x)
        written.append(float(device.read(0)["weight"][0, 0]))
        with torch.no_grad():
            next(module.parameters()).add_(0.1)
    assert written == [0.0, 0.0, 0.0, 0.5]
    assert len(device.writes) == 2  # 0.1 and 0.2 are the codes that are there already


def test_a_step_out_of_the_range_is_folded_and_counted():
    device = chip(low=-1.0, high=1.0)
    module = Opaque([Stage(device, 0, initial={"weight": np.zeros((2, 2))})]).double()
    with torch.no_grad():
        next(module.parameters()).copy_(torch.tensor([[3.0, 0.5], [-2.0, 0.0]]))
    module(inputs(1, 2, grad=False))
    assert next(module.parameters()).tolist() == [[1.0, 0.5], [-1.0, 0.0]]
    assert module.ledger.events["folded"] == 2
    assert device.read(0)["weight"].tolist() == [[1.0, 0.5], [-1.0, 0.0]]


def test_large_writes_are_split_below_the_slew_limit():
    """The fake device refuses a larger step."""
    device = chip(slew=0.25)
    module = Opaque([Stage(device, 0, initial={"weight": np.zeros((2, 2))})]).double()
    module(inputs(1, 2, grad=False))
    before = len(device.writes)
    with torch.no_grad():
        next(module.parameters()).fill_(1.0)
    module(inputs(1, 2, grad=False))
    assert len(device.writes) - before == 4
    assert (device.read(0)["weight"] == 1).all()


@pytest.mark.parametrize(("parameter", "low", "high"), [({"low": 0.0, "high": TWO_PI}, 0, TWO_PI), ({}, -1, 1)])
def test_masters_begin_inside_their_range_and_the_same_for_the_same_seed(parameter, low, high):
    first, again, other = (Opaque([Stage(chip(**parameter), 0)], seed=s).stages[0].weight for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert low <= first.min() and first.max() <= high
