"""Gradients against noise-free copies of simulated devices: equal without noise, apart with it, at no query."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hzo_hil.build import build_model, open_devices
from hzo_hil.codec import Codec
from hzo_hil.config import parse_config
from hzo_hil.devices.errors import BadInput
from hzo_hil.devices.fake import FakeDevice
from hzo_hil.devices.simulated import SimulatedDevice
from hzo_hil.layers import Residual
from hzo_hil.module import Opaque
from hzo_hil.network import Stage, stages_of
from hzo_hil.noiseless import cosine, noiseless_gradients, present_gradients, relative_error
from hzo_hil.simulators import chip
from hzo_hil.simulators.twins import Noiseless


def specimen(width=5, layers=2, seed=3, **options):
    """A chip with large fabrication errors; `options` add noise. float64, so that nothing is rounded."""
    made = {"coupler_std": 0.1, "phase_bias": 0.5, "crosstalk": 0.02, "loss_db": 0.1, "activation": "tanh", **options}
    return SimulatedDevice(chip.build("onn", seed=seed, layers=layers, ports=width, **made), dtype="float64")


def layer(device, name="chip", **options):
    """Known to the last error: every leaf is differentiated on the noise-free copy of its stage."""
    stages = [
        Stage(device, k, leaf="autograd", twin=Noiseless(device.models[k])) if s.parameters else s
        for k, s in enumerate(stages_of(device))
    ]
    return Opaque(stages, eps=1e-4, name=name, **options).double()


def loss(outputs, y):
    return ((outputs - y) ** 2).sum()


def compared(model, x, y):
    model.zero_grad()
    loss(model(x), y).backward()
    found, true = present_gradients(model), noiseless_gradients(model, x, y, loss)
    return {name: (torch.cat(found[name]), torch.cat(true[name])) for name in true}


def data(width=5, rows=6):
    drawn = torch.Generator().manual_seed(1)
    return (torch.rand(rows, width, generator=drawn, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize("tree", ["chain", "bisect"])
def test_without_noise_a_probed_gradient_is_that_of_the_copy(tree):
    ((found, true),) = compared(layer(specimen(), tree=tree), *data()).values()
    assert relative_error(found, true) < 1e-6
    assert cosine(found, true) > 1 - 1e-10


def test_host_layers_skips_and_a_layer_used_twice_are_followed():
    torch.manual_seed(0)
    opaque = layer(specimen())
    model = nn.Sequential(nn.Linear(5, 5).double(), Residual(nn.Sequential(opaque)), nn.Dropout(0.0), opaque)
    ((found, true),) = compared(model, *data()).values()
    assert relative_error(found, true) < 1e-6


def test_the_copy_holds_the_codes_that_the_device_holds():
    coarse = layer(specimen(phase_bits=3, v_pi=4.36))
    ((found, true),) = compared(coarse, *data()).values()
    assert relative_error(found, true) < 1e-6


def test_codecs_and_the_power_of_the_light_are_followed():
    device = SimulatedDevice(chip.build("onn", layers=1, ports=4, phase_bias=0.5), dtype="float64", power=0.7)
    twin = Noiseless(device.models[0], 0.7)
    codec = Codec(gain=0.5, offset=0.1)
    from hzo_hil.coded import CodedTwin

    stage = Stage(device, 0, leaf="autograd", codec_in=codec, twin=CodedTwin(twin, codec, Codec(), -np.inf, np.inf))
    ((found, true),) = compared(Opaque([stage]).double(), *data(4)).values()
    assert relative_error(found, true) < 1e-9


@pytest.mark.parametrize("noise", [{"shot_phase_std": 0.1}, {"noise_std": 0.1}, {"programming_std": 0.2}])
def test_noise_is_seen(noise):
    """The error is of the size of the noise: a copy that had the noise would leave less than 1e-6."""
    ((found, true),) = compared(layer(specimen(**noise)), *data()).values()
    assert relative_error(found, true) > 0.01


def test_a_copy_leaves_no_trace():
    """No query, no write, no moved stream: the next forward is the same, noise included."""
    x, y = data()
    outputs = []
    for look in (False, True):
        opaque = layer(specimen(noise_std=0.1))
        opaque(x)
        before = opaque.ledger.total
        if look:
            noiseless_gradients(opaque, x, y, loss)
            assert opaque.ledger.total == before
        outputs.append(opaque(x).detach())
    assert torch.equal(*outputs)


def test_running_statistics_and_gradients_of_host_layers_stay():
    norm = nn.BatchNorm1d(5).double()
    model = nn.Sequential(norm, layer(specimen()))
    x, y = data()
    noiseless_gradients(model, x, y, loss)
    assert norm.num_batches_tracked == 0
    assert norm.weight.grad is None


def test_a_device_that_is_not_simulated_is_refused_by_name():
    fake = FakeDevice.mlp([3, 3], "tanh", dtype="float64")
    model = Opaque(stages_of(fake), name="bench")
    with pytest.raises(BadInput, match="not simulated in this process"):
        noiseless_gradients(model, torch.ones(2, 3), torch.ones(2, 3), loss)


def test_closed_inner_boundaries_and_other_physics_are_refused():
    closed = SimulatedDevice(chip.build("onn", layers=2, ports=4), inner_boundaries=False)
    with pytest.raises(BadInput, match="inner boundaries are closed"):
        noiseless_gradients(Opaque(stages_of(closed), tree="chain"), torch.ones(2, 4), torch.ones(2, 4), loss)
    crossbar = SimulatedDevice(chip.build("crossbar", widths=[3, 2]))
    with pytest.raises(BadInput, match="no differentiable copy of a Crossbar"):
        noiseless_gradients(Opaque(stages_of(crossbar)), torch.ones(2, 3), torch.ones(2, 2), loss)


def test_cosine_and_error_of_known_vectors():
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([3.0, -4.0])
    assert cosine(a, b) == pytest.approx(-7 / 25)
    assert relative_error(a, b) == pytest.approx(8 / 5)
    assert np.isnan(cosine(a, 0 * b)) and np.isnan(relative_error(a, 0 * b))


def test_dropout_drops_the_same_in_the_copy():
    """As training uses it: the generator is set to the same place before both."""
    model = nn.Sequential(nn.Dropout(0.5), layer(specimen()))
    x, y = data()
    torch.manual_seed(5)
    loss(model(x), y).backward()
    torch.manual_seed(5)
    true = noiseless_gradients(model, x, y, loss)["chip"]
    assert relative_error(torch.cat(present_gradients(model)["chip"]), torch.cat(true)) < 1e-6


def test_an_emulator_with_mismatch_from_a_configuration():
    config = parse_config(
        {
            "name": "e", "data": {"name": "digits"}, "method": {"leaf": "probing"},
            "devices": {"core": {
                "kind": "emulator", "dtype": "float64",
                "options": {"widths": [4, 6, 3], "weight_mismatch": 0.3, "slope_mismatch": 0.2},
            }},
            "network": [{"opaque": "core", "name": "core"}],
        }
    )  # fmt: skip
    model = build_model(config, open_devices(config)).double()
    drawn = torch.Generator().manual_seed(1)
    x, y = torch.rand(5, 4, generator=drawn).double(), torch.rand(5, 3, generator=drawn).double()
    ((found, true),) = compared(model, x, y).values()
    assert relative_error(found, true) < 1e-4
