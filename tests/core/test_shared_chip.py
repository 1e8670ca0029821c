"""Several layers on one chip, and several chips under one network, are the network they stand for."""

from __future__ import annotations

import pytest
import torch

from hzo_hil import Opaque, Stage
from hzo_hil.devices.errors import BadInput
from hzo_hil.devices.fake import FakeDevice, Script
from hzo_hil.devices.simulated import SimulatedDevice
from hzo_hil.simulators.stages import EmulatedLinear
from tests.core.nets import Affine, OnHost, differing, gradients, inputs, leaf_rule, loss_of, spent_and_predicted, worst

LAYERS, WIDTH = 4, 4


def simulated() -> SimulatedDevice:
    """Noise of every write and of every shot, keyed."""
    model = EmulatedLinear(WIDTH, WIDTH, "tanh", read_noise_std=0.02, write_noise=0.05, weight_bound=1.0)
    return SimulatedDevice([model], max_batch=50)


def fake(**options) -> FakeDevice:
    return FakeDevice.mlp([WIDTH, WIDTH], script=Script(noise=0.02, seed=5), keyed=True, max_batch=50, **options)


def network(devices: list, leaf: str, **options) -> Opaque:
    return Opaque([Stage(d, 0, leaf=leaf, twin=Affine()) for d in devices], eps=0.1, seed=3, **options)


def trained(module: Opaque, steps: int) -> list[torch.Tensor]:
    """Outputs and parameters after a few steps, an evaluation in between."""
    optimiser = torch.optim.Adam(module.parameters(), lr=0.02)
    seen = []
    for step in range(steps):
        x = inputs(5, WIDTH, seed=step, grad=False).float()
        optimiser.zero_grad()
        outputs = module(x)
        loss_of(outputs).backward()
        optimiser.step()
        with torch.no_grad():
            seen += [outputs.detach().clone(), module(x)]
    return seen + [p.detach().clone() for p in module.parameters()]


@pytest.mark.parametrize(
    ("leaf", "probes", "steps"),
    [("autograd", "coordinate", 4), ("autograd", "hadamard", 4), ("probing", "coordinate", 2)],
)
@pytest.mark.parametrize("make", [simulated, fake])
def test_four_layers_on_one_chip_equal_four_chips_bit_for_bit(make, leaf, probes, steps):
    one = make()
    shared = trained(network([one] * LAYERS, leaf, tree="chain", probes=probes), steps)
    apart = trained(network([make() for _ in range(LAYERS)], leaf, tree="chain", probes=probes), steps)
    assert all(torch.equal(a, b) for a, b in zip(shared, apart, strict=True))


def test_noise_is_there_to_be_equal():
    """Without it the test above would say little: another seed of the module gives other outputs."""
    x = inputs(5, WIDTH, grad=False).float()
    first, second = (Opaque([Stage(simulated(), 0, initial={"weight": torch.eye(WIDTH)})], seed=s)(x) for s in (0, 1))
    assert not torch.equal(first, second)
    assert (first - second).abs().max() < 0.5


def test_longer_segments_of_a_shared_chip_are_refused_in_words():
    device = fake()
    with pytest.raises(
        BadInput,
        match=r"tree 'bisect' asks stages 3\.\.4 in one go, but some of them share a physical stage,"
        r" which must be re-programmed in between.*Use tree='chain'",
    ):
        network([device] * LAYERS, "autograd", tree="bisect")
    assert network([device] * LAYERS, "autograd").resolved.tree.name == "chain"
    assert network([fake() for _ in range(LAYERS)], "autograd").resolved.tree.name == "bisect"


@pytest.mark.parametrize("leaf", ["autograd", "probing", "measured"])
def test_writes_of_a_shared_chip_are_forecast(leaf):
    device = fake(virtual_time=True, settling_s=0.01, latency_s=0.001, query_s=1e-5)
    module = network([device] * LAYERS, leaf_rule(leaf, "tanh"))
    spent, predicted = spent_and_predicted(module, inputs(5, WIDTH).float())
    assert differing(spent, predicted) == []
    assert spent["forward"].writes == LAYERS
    # The last layer is still there after the forward; the cuts go down to the input.
    assert spent["probes"].writes == LAYERS - 1


# ---- several devices under one network


def chips() -> list[Stage]:
    """Five layers: two on one device, one on a second, two on a third, each device with a limit of its own."""
    first = FakeDevice.mlp([4, 5, 6], dtype="float64", max_batch=5, seed=1, identity="first")
    second = FakeDevice.mlp([6, 3], dtype="float64", max_batch=16, seed=2, identity="second", taps=True)
    third = FakeDevice.mlp([3, 4, 2], dtype="float64", max_bytes=7 * 3 * 8, seed=3, identity="third", taps=True)
    found = [(first, 0), (first, 1), (second, 0), (third, 0), (third, 1)]
    return [Stage(d, k, twin=Affine(), initial=dict(d.read(k))) for d, k in found]


@pytest.mark.parametrize("probes", ["coordinate", "hadamard"])
@pytest.mark.parametrize("tree", ["bisect", "chain", "direct", [4, 2, 1, 3]])
def test_segments_may_cross_devices_with_different_limits(tree, probes):
    module = Opaque(chips(), tree=tree, probes=probes).double()
    x = inputs(7, 4)
    parameters = list(module.parameters())
    assert worst(gradients(module, parameters, x), gradients(OnHost(module, "tanh"), parameters, x)) < 1e-7
    spent, predicted = spent_and_predicted(module, x)
    assert [d for d in differing(spent, predicted) if "device_seconds" not in d] == []


def test_devices_of_different_precision_work_together():
    """To the precision of the coarser one: central differences in float32 keep some five digits."""
    devices = [
        FakeDevice.mlp([4, 4], dtype=d, seed=s) for s, d in enumerate(["float64", "float32", "float64", "float32"])
    ]
    for tree in ("chain", "bisect", "direct"):
        stages = [Stage(d, 0, twin=Affine(), initial=dict(d.read(0))) for d in devices]
        module = Opaque(stages, tree=tree).double()
        x = inputs(6, 4)
        parameters = list(module.parameters())
        assert worst(gradients(module, parameters, x), gradients(OnHost(module, "tanh"), parameters, x)) < 1e-3


def test_two_chips_shared_by_turns_cost_what_was_forecast_whatever_their_speed():
    """Layers A B A B: a call on its way from A to B must not find B re-programmed by a call sent after it."""
    first, second = (
        FakeDevice.mlp([3, 3], dtype="float64", script=Script(delay=delay), max_batch=4)
        for delay in (dict.fromkeys(range(0, 400, 2), 0.003), dict.fromkeys(range(1, 400, 3), 0.002))
    )
    stages = [Stage(d, 0, twin=Affine()) for d in (first, second, first, second)]
    module = Opaque(stages, tree=[2, 1, 3]).double()
    spent, predicted = spent_and_predicted(module, inputs(5, 3, grad=False))
    assert [d for d in differing(spent, predicted) if "device_seconds" not in d] == []
    x = inputs(5, 3)
    parameters = list(module.parameters())
    assert worst(gradients(module, parameters, x), gradients(OnHost(module, "tanh"), parameters, x)) < 1e-7
