"""Convolutions on fake devices and by torch, and a strategy for their shapes. Knows nothing of what is asserted."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from hzo_hil.devices.api import Local, ParameterSpec, StageSpec
from hzo_hil.devices.errors import CapabilityError
from hzo_hil.devices.fake import FakeStage


@st.composite
def reaches(draw: st.DrawFn, in_channels: int | None = None, shape: tuple[int, ...] | None = None) -> Local:
    """Every combination of stride, padding, dilation, groups and circular padding, in one and two dimensions."""
    axes = len(shape) if shape else draw(st.integers(1, 2))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=axes, max_size=axes)))

    groups = draw(st.sampled_from([g for g in (1, 2, 3) if not (in_channels or 0) % g]))
    into = in_channels or groups * draw(st.integers(1, 2))
    given = (shape or each(2, 7), each(1, 3), each(1, 3), each(0, 2), each(1, 2), groups, draw(st.booleans()))
    try:
        return Local(into, groups * draw(st.integers(1, 2)), *given)
    except CapabilityError:
        assume(False)
        raise


class Conv(nn.Module):
    """curve(conv(x)) of flat values by torch: the twin of a fake stage."""

    def __init__(self, reach: Local, curve: Any = torch.tanh) -> None:
        super().__init__()
        self.reach, self.curve = reach, curve

    def forward(self, inputs: Tensor, weight: Tensor) -> Tensor:
        r = self.reach
        values, padding = inputs.reshape(len(inputs), r.in_channels, *r.shape), r.padding
        if r.circular:
            values = functional.pad(values, [p for p in reversed(padding) for _ in (0, 1)], mode="circular")
            padding = (0,) * len(padding)
        conv = functional.conv1d if len(r.shape) == 1 else functional.conv2d
        return self.curve(conv(values, weight, None, r.stride, padding, r.dilation, r.groups)).flatten(1)


def identity(values: Tensor) -> Tensor:
    return values


def weight_shape(reach: Local) -> tuple[int, ...]:
    return (reach.out_channels, reach.in_channels // reach.groups, *reach.kernel)


def conv_stage(reach: Local, curve: Any = torch.tanh, seed: int = 0, name: str = "conv", **changes: Any) -> FakeStage:
    """A fake stage and its exact reach; `changes` are fields of its spec."""
    weight = np.random.default_rng(seed).normal(size=weight_shape(reach))
    twin = Conv(reach, curve)
    inside, outside = reach.widths
    declared = {"structure": reach, "linear": curve is identity, **changes}
    spec = StageSpec(name, inside, outside, (ParameterSpec("weight", weight.shape),), **declared)

    def run(inputs: Any, parameters: Any) -> Any:
        values = torch.from_numpy(inputs)
        return twin(values, torch.from_numpy(parameters["weight"]).to(values)).numpy()

    return FakeStage(spec, run, {"weight": weight})


def jacobian(twin: Conv, weight: Any) -> Any:
    """[out, in] of a linear convolution."""
    width = twin.reach.widths[0]
    return twin(torch.eye(width, dtype=torch.float64), torch.as_tensor(weight)).T.numpy()
