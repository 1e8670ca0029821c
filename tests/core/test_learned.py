"""The learned twin: measured node by node, followed for nothing, judged by its gradient, left where it is not good."""

from __future__ import annotations

import copy
import io
import warnings

import numpy as np
import pytest
import torch

from hzo_hil import Opaque, Stage, Tiles
from hzo_hil.devices.errors import BadInput
from hzo_hil.devices.simulated import SimulatedDevice
from hzo_hil.learning import cost_of_learning, learn_twins
from hzo_hil.simulators import chip
from hzo_hil.simulators.fitted import FittedMesh
from hzo_hil.simulators.twins import Twin
from hzo_hil.updates.learned import LearnedTwin
from hzo_hil.updates.shift import ParameterShift
from tests.core.nets import cosine, differing, inputs, loss_of, spent_and_predicted

PORTS = 4
RAW = {"preset": "l2ight_chip", "coupler_std": 0.02, "noise_std": 0.002, "activation": "tanh", "gain": 2.0}
COSTS = {"latency_s": 1e-3, "query_s": 3e-6, "settling_s": 0.02}


def raw(layers: int = 1, seed: int = 3, device: dict | None = None, **options) -> SimulatedDevice:
    models = chip.build("onn", layers=layers, ports=PORTS, seed=seed, **(RAW | options))
    return SimulatedDevice(models, dtype="float64", **(COSTS | (device or {})))


def opaque(device: SimulatedDevice, leaf=LearnedTwin, seed: int = 0, **how) -> Opaque:
    """Every mesh with a twin to learn; activations as they are."""
    stages = []
    for k, model in enumerate(device.models):
        mesh = model.parameters
        stages.append(Stage(device, k, leaf=leaf(**how) if mesh else "auto", twin=FittedMesh(model) if mesh else None))
    return Opaque(stages, tree="chain", probes="hadamard", eps=0.05, seed=seed).double()


def gradients(module: Opaque, x: torch.Tensor) -> list[torch.Tensor]:
    module.zero_grad()
    loss_of(module(x)).backward()
    return [p.grad.clone() for p in module.parameters()]


def train(module: Opaque, steps: int, first: int = 0) -> list[torch.Tensor]:
    optimiser = torch.optim.SGD(module.parameters(), lr=1e-2)
    for step in range(first, first + steps):
        optimiser.zero_grad()
        loss_of(module(inputs(12, PORTS, seed=step, grad=False))).backward()
        optimiser.step()
    return [p.detach().clone() for p in module.parameters()]


def rule_of(module: Opaque) -> LearnedTwin:
    return next(iter(module.learned.values()))


# ---- node by node


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_measured_node_by_node_a_twin_points_where_the_chip_does_and_the_ideal_one_does_not(seed):
    """Biases U(-1, 1) rad, heaters, couplers and crosstalk unknown, 8-bit voltages, read noise."""
    x = inputs(20, PORTS, grad=False)
    module = opaque(raw(seed=seed))
    left = learn_twins(module)
    assert left[0] < 0.03
    found = gradients(module, x)
    assert rule_of(module).trusted
    quiet = Opaque([Stage(raw(seed=seed, noise_std=0.0), 0, leaf=ParameterShift())]).double()
    quiet.load_state_dict({n: v for n, v in module.state_dict().items() if "extra" not in n}, strict=False)
    exact = gradients(quiet, x)
    assert cosine(found, exact) > 0.99
    values = {n: torch.as_tensor(v).requires_grad_() for n, v in module.written.values[0].items()}
    ideal = torch.autograd.grad(loss_of(Twin(module.network.stages[0].twin.model)(x, **values)), list(values.values()))
    assert cosine(list(ideal), exact) < 0.8


def test_measuring_costs_what_was_forecast_and_is_done_once():
    module = opaque(raw(layers=2, device={"max_batch": 4}), settings=5)
    predicted = cost_of_learning(module)
    learn_twins(module)
    spent = module.ledger.accounts["calibration"]
    for name in ("queries", "stage_evaluations", "calls", "writes"):
        assert getattr(spent, name) == getattr(predicted, name), name
    assert spent.device_seconds == pytest.approx(predicted.device_seconds)
    assert spent.writes == 2 * (2 * (2 * 6 + 1) + 5)
    assert learn_twins(module) == {} and cost_of_learning(module).queries == 0
    assert spent.writes == 2 * (2 * (2 * 6 + 1) + 5)


def test_meshes_that_read_intensities_are_refused_before_anything_is_asked():
    module = opaque(raw(detection="intensity"))
    with pytest.raises(BadInput, match=r"stage 'mesh1': a mesh that reads intensities .* nodewise: false"):
        learn_twins(module)
    assert module.ledger.total.queries == 0


# ---- judged by its gradient


def test_a_twin_that_points_elsewhere_is_left_for_the_shift_and_says_so_once():
    module = opaque(raw(), nodewise=False, fit_steps=0, trust=0.999)
    shifted = opaque(raw(), leaf=ParameterShift)
    x = inputs(10, PORTS, grad=False)
    with pytest.warns(UserWarning, match=r"the learned twin of stage 'mesh1' is not good enough: .* parameter shift"):
        found = gradients(module, x)
    assert cosine(found, gradients(shifted, x)) > 0.999
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradients(module, x)
    assert module.ledger.events["twin_refused:1"] == 1
    assert module.ledger.accounts["leaf"].writes == 2 * 2 * 16


def test_what_it_costs_is_what_was_forecast_trusted_or_not():
    module = opaque(raw(layers=2), settings=8, check_every=1000)
    learn_twins(module)
    spent, predicted = spent_and_predicted(module, inputs(5, PORTS, grad=False), learning_rate=10)
    assert all(r.trusted for r in module.learned.values())
    assert differing(spent, predicted) == [] and spent["leaf"].queries == 0
    module = opaque(raw(layers=2), nodewise=False, fit_steps=0, trust=0.999)
    with pytest.warns(UserWarning, match="not good enough"):
        spent, predicted = spent_and_predicted(module, inputs(5, PORTS, grad=False), learning_rate=10)
    assert differing(spent, predicted) == [] and spent["leaf"].queries == 5 * 2 * 2 * 16


def test_checks_are_calibration_and_come_as_often_as_told():
    module = opaque(raw(), settings=8, check_every=3, check_phases=4)
    learn_twins(module)
    before = module.ledger.accounts["calibration"].queries
    train(module, 7)
    rule = rule_of(module)
    writes, queries = rule.check_cost(module.network.stages[0].block_specs)
    assert (writes, queries) == (8, 8)
    assert module.ledger.accounts["calibration"].queries - before == 3 * queries * 12
    assert module.ledger.accounts["leaf"].queries == 0
    assert rule.cosine is not None and rule.cosine > 0.9


def test_small_biases_are_learnt_from_the_answers_alone_and_the_twin_is_taken_back():
    """Biases of up to 0.5 rad: refused at first, followed, and trusted as soon as the whole gradient agrees."""
    module = opaque(raw(phase_bias=0.5), nodewise=False, fit_steps=4, rate=0.02, memory=24, trust=0.97)
    with pytest.warns(UserWarning, match="not good enough"):
        train(module, 20)
    events = module.ledger.events
    assert events["twin_refused:1"] >= 1 and events["twin_trusted:1"] >= 1
    assert rule_of(module).trusted


# ---- what is heard


def test_probes_and_leaf_queries_are_heard_whatever_the_batch_limit():
    kept = []
    for limit in (0, 7):
        module = opaque(raw(layers=2, device={"max_batch": limit}), nodewise=False, memory=12, trust=0.999)
        with pytest.warns(UserWarning, match="not good enough"):
            train(module, 2)
        kept.append([rule.replay.tensors() for rule in module.learned.values()])
    for rules in zip(*kept, strict=True):
        for one, other in zip(*rules, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    commanded = kept[0][0][0]
    assert commanded.shape == (16, 12)
    assert len(torch.unique(commanded, dim=1).T) > 6


def test_a_state_goes_on_to_the_bit():
    whole = opaque(raw(), settings=6, check_every=2)
    learn_twins(whole)
    expected = train(whole, 6)
    first = opaque(raw(), settings=6, check_every=2)
    learn_twins(first)
    train(first, 3)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second = opaque(raw(), settings=6, check_every=2)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    assert learn_twins(second) == {}
    for found, wanted in zip(train(second, 3, first=3), expected, strict=True):
        assert torch.equal(found, wanted)


def test_copies_share_the_device_and_what_was_learnt_of_it():
    module = opaque(raw(), settings=6)
    learn_twins(module)
    assert rule_of(copy.deepcopy(module)) is rule_of(module)


# ---- bad input


def test_what_has_no_twin_to_learn_is_refused():
    device = raw()
    with pytest.raises(BadInput, match=r"stage 'mesh1' asks for a learned twin, but has no twin with unknown errors"):
        Opaque([Stage(device, 0, leaf="learned_twin", twin=Twin(device.models[0]))])
    with pytest.raises(BadInput, match="without tiles or codecs"):
        twin = FittedMesh(device.models[0])
        Opaque([Stage(device, 0, leaf=LearnedTwin(), twin=twin, tiles=Tiles(8, 8))])
    shared = LearnedTwin()
    device = raw(layers=2)
    with pytest.raises(BadInput, match="give each its own"):
        Opaque([Stage(device, k, leaf=shared, twin=FittedMesh(device.models[k])) for k in (0, 2)])


@pytest.mark.parametrize("wrong", [{"trust": 1.0}, {"rate": 0.0}, {"check_phases": 1}, {"memory": 0}, {"settings": 0}])
def test_options_out_of_bounds_are_refused(wrong):
    with pytest.raises(BadInput, match="a learned twin needs"):
        LearnedTwin(**wrong)


def test_a_gradient_of_zero_proves_nothing():
    module = opaque(raw(), nodewise=False)
    outputs = module(inputs(4, PORTS, grad=False))
    with pytest.warns(UserWarning, match="cosine of 0.00"):
        outputs.backward(torch.zeros_like(outputs))
    assert all(bool((p.grad == 0).all()) for p in module.parameters())
    assert np.isfinite(rule_of(module).following.left)
