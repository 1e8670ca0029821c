"""Batches keep within the device's limits, cover every row once, and split no pair."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hzo_hil import Opaque, Plan
from hzo_hil.devices.api import BoundarySpec, Capabilities, StageSpec
from hzo_hil.devices.errors import CapabilityError
from hzo_hil.devices.fake import FakeDevice
from hzo_hil.scheduler import LARGEST_CALL, calls, pack, rows_per_call
from tests.core.nets import inputs


def device(**limits) -> Capabilities:
    return Capabilities("bench", (StageSpec("one", 5, 4),), (BoundarySpec(), BoundarySpec()), **limits)


@given(total=st.integers(0, 500), rows=st.integers(1, 60))
def test_calls_cover_every_row_once_in_order(total, rows):
    ranges = list(pack(total, rows))
    assert [r for first, last in ranges for r in range(first, last)] == list(range(total))
    assert all(0 < last - first <= rows for first, last in ranges)
    assert calls(total, rows) == len(ranges)


@given(
    max_batch=st.integers(0, 50), max_bytes=st.integers(0, 2000), repeats=st.integers(1, 5), group=st.integers(1, 2),
    averages=st.booleans(), dtype=st.sampled_from(["float32", "float64"]),
)  # fmt: skip
def test_a_call_keeps_within_every_limit(max_batch, max_bytes, repeats, group, averages, dtype):
    capabilities = device(max_batch=max_batch, max_bytes=max_bytes, repeats=averages, dtype=dtype)
    copies = 1 if averages else repeats
    size = 5 * (4 if dtype == "float32" else 8)
    smallest = group * copies
    fits = (not max_batch or smallest <= max_batch) and (not max_bytes or smallest * size <= max_bytes)
    assume(fits)
    rows = rows_per_call(capabilities, 5, repeats, group)
    assert rows % group == 0 and rows >= group
    assert not max_batch or rows * copies <= max_batch
    assert not max_bytes or rows * copies * size <= max_bytes
    more = (rows + group) * copies
    assert (max_batch and more > max_batch) or (max_bytes and more * size > max_bytes) or more > LARGEST_CALL * copies


@pytest.mark.parametrize("limits", [{"max_batch": 1}, {"max_batch": 5}, {"max_bytes": 100}])
def test_a_pair_that_does_not_fit_is_refused(limits):
    with pytest.raises(
        CapabilityError, match=r"device 'bench' takes .* rows of 5 inputs a call, and 2 rows .* 3 copies each do not"
    ):
        rows_per_call(device(**limits), 5, 3, 2)


@pytest.mark.parametrize("max_batch", [2, 3, 7, 8])
def test_plus_and_minus_travel_in_one_call_and_change_places(max_batch):
    """Within a call rows come as + - - + ..., so that a slow drift cancels; an odd limit leaves a row unused."""
    fake = FakeDevice.mlp([4, 3], "identity", dtype="float64", keep_inputs=True, max_batch=max_batch)
    module = Opaque(fake, plan=Plan(eps=0.125, shared=False)).requires_grad_(False)
    x = inputs(3, 4)
    module(x).sum().backward()
    probes = [c for c in fake.calls if c.number >= -(-3 // max_batch)]
    signs = []
    for call in probes:
        assert call.rows % 2 == 0
        change = call.inputs[0::2] - call.inputs[1::2]
        assert (abs(abs(change).sum(axis=1) - 0.25) < 1e-12).all()
        signs += list(change.sum(axis=1) > 0)
    assert signs == [True, False] * (len(signs) // 2)
    assert len(signs) == 3 * 4


def test_calls_of_an_unlimited_device_are_still_bounded():
    assert rows_per_call(device(), 5, 1, 2) == LARGEST_CALL
    assert rows_per_call(device(), 5, 3, 2) == LARGEST_CALL
