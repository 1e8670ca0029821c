"""Convolutions and residual blocks as stages: torch's numbers, their defects, and a reach that is true."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from hzo_hil.devices.api import Local, Segment
from hzo_hil.devices.conformance import check
from hzo_hil.devices.simulated import SimulatedDevice
from hzo_hil.simulators.conv_core import ConvCore
from hzo_hil.simulators.conv_unit import ConvUnit
from hzo_hil.simulators.emulated_conv import EmulatedConv
from hzo_hil.simulators.model import Reach
from hzo_hil.simulators.patches import Patches
from hzo_hil.simulators.residual_block import ResidualBlock
from hzo_hil.simulators.tensor_core import TensorCore
from hzo_hil.simulators.twins import Twin

KEYS = np.arange(6, dtype=np.uint64)
PLAIN = Reach(3, 4, (5, 6), (3, 3), (1, 1), (1, 1), (1, 1))
REACHES = [
    PLAIN,
    Reach(4, 6, (7, 5), (3, 2), (2, 1), (1, 0), (1, 2), groups=2),
    Reach(2, 2, (6, 6), (3, 3), (1, 1), (1, 1), (1, 1), circular=True),
    Reach(2, 4, (9,), (3,), (2,), (2,), (2,)),
    Reach(2, 4, (9,), (3,), (1,), (1,), (1,), circular=True),
]


def by_torch(reach: Reach, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    kind = nn.Conv1d if len(reach.shape) == 1 else nn.Conv2d
    conv = kind(
        reach.in_channels, reach.out_channels, reach.kernel, reach.stride, reach.padding, reach.dilation, reach.groups,
        bias=False, padding_mode="circular" if reach.circular else "zeros", dtype=x.dtype,
    )  # fmt: skip
    conv.weight = nn.Parameter(weight)
    return conv(x.reshape(len(x), reach.in_channels, *reach.shape)).flatten(1)


def drawn(model: EmulatedConv | ResidualBlock, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    return model.initial(rng), rng.normal(size=(6, model.in_width))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("reach", REACHES, ids=str)
def test_without_defects_it_is_torchs_convolution(reach, bias):
    model = EmulatedConv(reach, bias=bias)
    values, x = drawn(model)
    if bias:
        values["bias"] = np.arange(1.0, reach.out_channels + 1)
    expected = by_torch(reach, torch.as_tensor(values["weight"]), torch.as_tensor(x))
    if bias:
        expected = expected + torch.as_tensor(values["bias"]).repeat_interleave(math.prod(reach.out_shape))
    found = model.run(model.program(values, 0), x, KEYS)
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-12)
    tensors = {n: torch.as_tensor(v) for n, v in values.items()}
    torch.testing.assert_close(Twin(model)(torch.as_tensor(x), **tensors), expected.detach())
    as_tensor = model.run(model.program(values, 0), torch.as_tensor(x), torch.as_tensor(KEYS.view(np.int64)))
    np.testing.assert_allclose(as_tensor.numpy(), found, atol=1e-12)


def test_noise_follows_keys_and_converters_round():
    model = EmulatedConv(PLAIN, in_bits=6, in_bound=1.0, out_bits=8, out_bound=8.0, read_noise_std=0.05)
    values, x = drawn(model)
    state = model.program(values, 0)
    x = x.astype(np.float32)
    first, again = model.run(state, x, KEYS), model.run(state, x, KEYS)
    np.testing.assert_array_equal(first, again)
    assert (model.run(state, x, KEYS + np.uint64(7)) != first).any()
    np.testing.assert_array_equal(model.run(state, x[3:], KEYS[3:]), first[3:])
    steps = first / model.output.step
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
    assert model.read_noise == 0.05
    quiet = EmulatedConv(PLAIN)
    off = EmulatedConv(PLAIN, read_noise_std=0.05).run(state, x, KEYS) - quiet.run(state, x, KEYS)
    # 720 values: the standard deviation has a standard error of 2.6 %; 15 % is more than five of them.
    assert off.std() == pytest.approx(0.05, rel=0.15)


def test_what_is_no_convolution_is_refused():
    with pytest.raises(ValueError, match="must not be negative"):
        EmulatedConv(PLAIN, read_noise_std=-1)
    with pytest.raises(ValueError, match="is no convolution"):
        EmulatedConv(Reach(3, 4, (2, 2), (3, 3), (1, 1), (0, 0), (1, 1)))
    with pytest.raises(ValueError, match="3 channels cannot be padded to 4"):
        ResidualBlock(3, 4, (4, 4))


@pytest.mark.parametrize(("channels", "out", "stride"), [(4, 4, 1), (4, 8, 2)])
def test_a_block_is_that_of_the_paper(channels, out, stride):
    """Basic block, option A: norms as gains and shifts."""
    model = ResidualBlock(channels, out, (6, 8), stride)
    values, x = drawn(model)
    rng = np.random.default_rng(1)
    values |= {n: rng.normal(size=v.shape) for n, v in values.items() if not n.startswith("weight")}
    t = {n: torch.as_tensor(v) for n, v in values.items()}
    images = torch.as_tensor(x).reshape(6, channels, 6, 8)
    per = (1, out, 1, 1)
    y = functional.conv2d(images, t["weight1"], stride=stride, padding=1) * t["gain1"].reshape(per)
    y = (y + t["shift1"].reshape(per)).relu()
    y = functional.conv2d(y, t["weight2"], padding=1) * t["gain2"].reshape(per) + t["shift2"].reshape(per)
    skip = functional.pad(images[:, :, ::stride, ::stride], (0, 0, 0, 0, (out - channels) // 2, (out - channels) // 2))
    expected = (y + skip).relu().flatten(1)
    np.testing.assert_allclose(model.run(model.program(values, 0), x, KEYS), expected.numpy(), atol=1e-12)
    torch.testing.assert_close(Twin(model)(torch.as_tensor(x), **t), expected)
    assert model.out_width == expected.shape[1]
    assert ResidualBlock(channels, out, (6, 8), stride, read_noise_std=0.1).read_noise == 0.1


@pytest.mark.parametrize("reach", [*REACHES, replace(PLAIN, out_channels=3)])
@pytest.mark.parametrize("skip", [True, False])
def test_a_unit_is_convolution_norm_rectifier_and_skip(reach, skip):
    model = ConvUnit(reach, skip, read_noise_std=0.0)
    rng = np.random.default_rng(2)
    values = {p.name: rng.normal(size=p.shape) for p in model.parameters}
    x = rng.normal(size=(6, model.in_width))
    sums = EmulatedConv(reach).ideal(np, {"weight": values["weight"]}, x).reshape(6, reach.out_channels, -1)
    expected = np.maximum(sums * values["gain"][:, None] + values["shift"][:, None], 0).reshape(6, -1)
    if skip and model.in_width == model.out_width and reach.in_channels == reach.out_channels:
        expected = expected + x
    for engine_of in (lambda v: v, torch.as_tensor):
        found = model.run(model.program(values, 0), engine_of(x), engine_of(KEYS.astype(np.int64)))
        np.testing.assert_allclose(np.asarray(found), expected, atol=1e-12)
    np.testing.assert_allclose(model.noiseless(np, values, x), expected, atol=1e-12)
    assert ConvUnit(reach, read_noise_std=0.1).read_noise == 0.1


def test_a_unit_whose_skip_lies_beyond_its_kernel_says_nothing_of_its_reach():
    shifted = Reach(2, 2, (6,), (2,), (1,), (2,), (4,))
    assert shifted.out_shape == shifted.shape
    assert (ConvUnit(shifted).structure, ConvUnit(shifted, skip=False).structure) == ("dense", shifted)
    with pytest.raises(ValueError, match="is no convolution"):
        ConvUnit(replace(PLAIN, groups=2))


MODELS = [
    EmulatedConv(REACHES[1], read_noise_std=0.01),
    EmulatedConv(REACHES[2], bias=True, in_bits=7, in_bound=3.0),
    ResidualBlock(2, 4, (8, 8), 2),
    ConvUnit(replace(PLAIN, out_channels=3)),
    ConvUnit(Reach(4, 4, (5, 6), (3, 3), (1, 1), (1, 1), (1, 1), groups=4)),
    ConvCore(Patches(2, 5, 5, 2), TensorCore(8, 3, 4)),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_the_kit_certifies_it_with_its_reach(model):
    """Noise follows keys, so this cannot fail by chance."""
    report = check(lambda: SimulatedDevice([model]), quick=True)
    assert report.failed() == []
    (row,) = [r for r in report.rows if r.name == "local"]
    assert row.outcome == "pass"


@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_its_reach_is_that_of_its_jacobian(model):
    """No output outside it, and no smaller one would do."""
    values = {n: np.abs(v) + 0.1 for n, v in model.initial(np.random.default_rng(0)).items()}
    t = {n: torch.as_tensor(v) for n, v in values.items()}
    x = torch.ones(1, model.in_width, dtype=torch.float64)
    found = torch.autograd.functional.jacobian(lambda x: Twin(model)(x, **t)[0], x)[:, 0].numpy() != 0
    spec = SimulatedDevice([model]).capabilities.stages[0]
    assert isinstance(spec.structure, Local) and spec.linear == model.linear
    declared = np.zeros_like(found)
    for output in range(len(declared)):
        declared[output, spec.structure.inputs_of(output)] = True
    np.testing.assert_array_equal(found, declared)


def test_a_served_convolution_needs_its_weights_first():
    device = SimulatedDevice([EmulatedConv(PLAIN)])
    x = np.zeros((2, 90), dtype=np.float32)
    with pytest.raises(Exception, match="was never written"):
        device.run(Segment(0, 1), x)
    device.write(0, {"weight": np.ones((4, 3, 3, 3))})
    assert device.run(Segment(0, 1), x).outputs.shape == (2, 4 * 30)
