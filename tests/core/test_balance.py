"""Gains brought near 1 before training: against exact Jacobians in float64, and nothing is lost on the way."""

from __future__ import annotations

import copy

import pytest
import torch

import hzo_hil
from hzo_hil import BadInput, DeviceError, Gain, Opaque, Stage, Tiles
from hzo_hil.devices.fake import FakeDevice
from tests.core.nets import Affine, inputs, leaf_rule, loss_of

DEPTH, WIDTH = 6, 8


def stages(apart: bool, curve: str = "tanh", size: float = 1.0) -> list[Stage]:
    """On one device, or each on a device of its own."""
    made = []
    chain = FakeDevice.mlp([WIDTH] * (DEPTH + 1), curve, dtype="float64", seed=0)
    for k in range(DEPTH):
        device = FakeDevice.mlp([WIDTH, WIDTH], curve, dtype="float64", seed=k) if apart else chain
        index = 0 if apart else k
        initial = {"weight": size * device.read(index)["weight"]}
        made.append(Stage(device, index, leaf=leaf_rule("delta", curve), twin=Affine(curve), initial=initial))
    return made


def unset(made: list[Stage]) -> list[Stage]:
    for stage in made:
        stage.initial.clear()
    return made


def exact_gains(module: Opaque, x: torch.Tensor, curve: str = "tanh") -> list[float]:
    """By stage ||J||_F^2 / outputs, averaged over the batch, of the stage as the host sees it."""
    found = []
    for k, stage in enumerate(module.stages):
        values = {n: p.detach() for n, p in stage.named_parameters()}

        def run(row: torch.Tensor, values=values, factor=module.factors[k]) -> torch.Tensor:
            return factor * Affine(curve)(row, **values)

        jacobians = torch.stack([torch.autograd.functional.jacobian(run, row) for row in x])
        found.append(float(jacobians.square().sum((1, 2)).mean()) / WIDTH)
        x = run(x)
    return found


@pytest.mark.parametrize("curve", ["tanh", "relu", "identity"])
def test_orthogonal_starts_are_scaled_until_gains_are_near_one(curve):
    module = Opaque(unset(stages(False, curve)), gain=Gain("orthogonal", host=False), seed=3).double()
    x = inputs(16, WIDTH, grad=False)
    found = hzo_hil.balance_model(module, x)["opaque"]
    assert all(0.6 < g < 1.7 for g in exact_gains(module, x, curve)), exact_gains(module, x, curve)
    for stage in module.stages:
        w = stage.weight.detach()
        square = w @ w.T
        assert torch.allclose(square / square[0, 0], torch.eye(WIDTH).double(), atol=1e-5)  # masters began as float32
    assert found.factors == (1.0,) * DEPTH
    assert module.ledger.accounts["calibration"].queries and not module.ledger.accounts["forward"].queries


@pytest.mark.parametrize(("size", "curve"), [(0.2, "tanh"), (5.0, "identity")])
def test_starts_of_ones_own_are_scaled(size, curve):
    module = Opaque(stages(False, curve, size), gain=Gain("scaled", host=False)).double()
    x = inputs(16, WIDTH, grad=False)
    before = exact_gains(module, x, curve)
    hzo_hil.balance_model(module, x)
    assert not any(1 / 3 < g < 3 for g in before)
    assert all(1 / 3 < g < 3 for g in exact_gains(module, x, curve))


def test_between_devices_the_host_multiplies_and_gradients_are_those_of_what_it_sees():
    module = Opaque(stages(True), gain=Gain("none", host=True), differences="richardson", eps=1e-2).double()
    x = inputs(12, WIDTH, grad=False)
    weights = [p.detach().clone() for p in module.stages.parameters()]
    hzo_hil.balance_model(module, x)
    assert all(torch.equal(a, b) for a, b in zip(weights, module.stages.parameters(), strict=True))
    assert all(0.5 < g < 2 for g in exact_gains(module, x))
    values = x
    for k, stage in enumerate(module.stages):
        values = module.factors[k] * Affine("tanh")(values, **dict(stage.named_parameters()))
    wanted = torch.autograd.grad(loss_of(values), list(module.stages.parameters()))
    outputs = module(x)
    found = torch.autograd.grad(loss_of(outputs), list(module.stages.parameters()))
    assert torch.allclose(outputs, values, atol=1e-12)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(found, wanted, strict=True))


def test_within_a_device_the_host_has_one_factor_at_its_end_and_says_so():
    module = Opaque(stages(False, size=0.2), gain=Gain("none", host=True)).double()
    x = inputs(12, WIDTH, grad=False)
    with pytest.warns(
        UserWarning, match=r"5 of 6 stages stay outside.*inside the device, where the host has no factor"
    ):
        found = hzo_hil.balance_model(module, x)["opaque"]
    assert found.factors[:-1] == (1.0,) * (DEPTH - 1) and found.factors[-1] > 1
    assert found.after[-1] == pytest.approx(1)
    assert len(module.network.route(0, DEPTH)) == 1


def test_what_was_set_is_saved_copied_and_set_once():
    module = Opaque(stages(True), gain=Gain("scaled"), name="a").double()
    x = inputs(12, WIDTH, grad=False)
    hzo_hil.balance_model(module, x)
    other = Opaque(stages(True), gain=Gain("scaled"), name="a").double()
    other.load_state_dict(module.state_dict())
    with torch.no_grad():
        for again in (other, copy.deepcopy(module)):
            assert torch.equal(again(x), module(x))
            assert hzo_hil.balance_model(again, x) == {}
    loss_of(other(x)).backward()  # balanced: may be trained


def test_layers_one_after_the_other_and_the_same_twice():
    def made() -> torch.nn.Sequential:
        layers = [Opaque(unset(stages(False)), gain=Gain(), name=n, seed=5).double() for n in "ab"]
        return torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1])

    x = inputs(16, WIDTH, grad=False)
    found = [hzo_hil.balance_model(m, x) for m in (made(), made())]
    assert list(found[0]) == ["a", "b"] and found[0] == found[1]


def test_tiles_are_drawn_orthogonal_as_a_whole():
    device = FakeDevice.mlp([4, 4], "identity", dtype="float64", seed=0)
    module = Opaque([Stage(device, 0, leaf="delta", tiles=Tiles(10, 6))], gain=Gain("orthogonal", host=False))
    blocks = module.stages[0].weight.detach()
    whole = blocks.permute(0, 2, 1, 3).reshape(8, 12)
    assert torch.allclose(whole[:6, :10] @ whole[:6, :10].T, torch.eye(6), atol=1e-6)
    assert not whole[6:].any() and not whole[:, 10:].any()


def test_what_cannot_be_is_refused_in_words():
    with pytest.raises(BadInput, match="unknown gain start 'unitary'"):
        Gain("unitary")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="would change nothing"):
        Gain("none", host=False)
    with pytest.raises(BadInput, match="has an initial 'weight'"):
        Opaque(stages(False), gain=Gain())
    module = Opaque(stages(False), gain=Gain("scaled")).double()
    with pytest.raises(BadInput, match="was not balanced.*balance_model"):
        module(inputs(4, WIDTH))
    assert not module.ledger.total.queries
    dark = Opaque(stages(False, size=0.0), gain=Gain("scaled")).double()
    with pytest.raises(DeviceError, match="stage 1 .* answers the same whatever is driven"):
        hzo_hil.balance_model(dark, inputs(4, WIDTH, grad=False))


def test_a_chip_without_matrices_has_nothing_to_draw():
    mesh = hzo_hil.open_device({"kind": "onn", "options": {"ports": 4, "layers": 1}})
    with pytest.raises(BadInput, match="no stage has a matrix.*host=True"):
        Opaque(mesh, gain=Gain())
