"""A Jacobian carried on by the commanded change is the measured one, with less noise; what contradicts it is found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom, chi2
from torch import Tensor

from hzo_hil import Opaque, Plan, Stage, Tiles
from hzo_hil.credit.averaged import FALSE_ALARMS
from hzo_hil.devices.api import BoundarySpec, ParameterSpec, StageSpec
from hzo_hil.devices.errors import BadInput
from hzo_hil.devices.fake import FakeDevice, FakeStage, Script
from hzo_hil.devices.fake_stages import exact_matmul
from hzo_hil.plan import Cut, portion
from tests.core.nets import Affine, affine_opaque, differing, gradients, inputs, loss_of, spent_and_predicted, worst

ROWS, WIDTH = 7, 8
NOISE, EPS = 0.05, 0.5
COSTS = {"virtual_time": True, "latency_s": 1e-3, "query_s": 3e-6, "settling_s": 0.02}


def linear_opaque(widths: list[int], average: Any = 0.25, device: Any = None, **plan: Any) -> Opaque:
    device = device or FakeDevice.mlp(widths, "identity", dtype="float64", read_noise=0.0)
    return affine_opaque(widths, "identity", device=device, plan=Plan("chain", average=average, **plan))


def noisy(widths: list[int], seed: int = 0, **options: Any) -> FakeDevice:
    script = options.pop("script", None) or Script(noise=NOISE, seed=seed)
    return FakeDevice.mlp(widths, "identity", dtype="float64", script=script, keyed=True, read_noise=NOISE, **options)


def asked(module: Opaque) -> int:
    return module.ledger.accounts["probes"].queries


def renewed(module: Opaque) -> int:
    return module.ledger.events["jacobian_renewed"]


def on_host(module: Opaque, x: Tensor) -> Tensor:
    for stage in module.stages:
        x = Affine("identity")(x, **dict(stage.named_parameters()))
    return x


def steps(module: Opaque, count: int, rate: float = 0.02, first: int = 0) -> list[Tensor]:
    """Gradients of the input at every step; each changes the weights by a draw of its own."""
    found = []
    for step in range(first, first + count):
        x = inputs(ROWS, module.network.width(0), seed=step)
        loss_of(module(x)).backward()
        found.append(x.grad)
        drawn = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for master in module.parameters():
                master += rate * torch.randn(master.shape, generator=drawn, dtype=torch.float64)
                master.grad = None
    return found


class Core:
    """One linear stage of whatever a test makes of the weights it holds."""

    def __init__(self, width: int = WIDTH, outputs: int = 3) -> None:
        self.held: Callable[[Any], Any] = lambda weight: weight
        weight = np.random.default_rng(1).normal(size=(outputs, width))
        spec = StageSpec("core", width, outputs, (ParameterSpec("weight", weight.shape),), linear=True)
        run = lambda a, p: exact_matmul(a, self.held(p["weight"]))  # noqa: E731
        self.device = FakeDevice.functions([FakeStage(spec, run, {"weight": weight})], dtype="float64", read_noise=0.0)

    def module(self, average: float = 0.25) -> Opaque:
        stage = Stage(self.device, 0, leaf="delta", initial=dict(self.device.read(0)))
        return Opaque([stage], plan=Plan(average=average)).double()

    def error(self, module: Opaque, step: int) -> float:
        """Of the input's gradient in one step, to what the device really is."""
        weight = torch.as_tensor(self.held(module.stages[0].weight.detach().numpy().copy()))
        (found,) = steps(module, 1, first=step)
        x = inputs(ROWS, module.network.width(0), seed=step)
        loss_of(x @ weight.T).backward()
        return float((found - x.grad).abs().max())


# ---- exact, and counted


@pytest.mark.parametrize("differences", ["central", "richardson"])
@pytest.mark.parametrize("probes", ["coordinate", "hadamard"])
@pytest.mark.parametrize("average", [0.01, 0.25, 0.6])
def test_without_noise_it_is_the_measured_one(average, probes, differences):
    module = linear_opaque([5, WIDTH, 6, 3], average, probes=probes, differences=differences)
    once = {"central": 2, "richardson": 4}[differences]
    sizes = (5, WIDTH, 6) if probes == "coordinate" else (8, 8, 8)
    for step in range(6):
        x, before = inputs(ROWS, 5, seed=step), asked(module)
        parameters = list(module.parameters())
        found = gradients(module, parameters, x)
        assert worst(found, gradients(lambda x: on_host(module, x), parameters, x)) < 1e-11
        assert asked(module) - before == once * sum(portion(average, n) if step else n for n in sizes)
        with torch.no_grad():
            for master in parameters:
                master += 0.1 * torch.randn(master.shape, generator=torch.Generator().manual_seed(step))
    assert not renewed(module)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("read", [0.0, 0.01])
def test_converters_and_rounding_raise_no_alarm(read, dtype):
    """Weights in steps of 0.05, inputs of 0.1, outputs of 0.01: none of it is drift, whatever is written."""
    boundaries = [BoundarySpec(low=-2, high=2, in_step=0.1), BoundarySpec(out_step=read)]
    levels = {"parameter": {"low": -3.0, "high": 3.0, "levels": tuple(np.linspace(-3, 3, 121))}}
    device = FakeDevice.mlp(
        [WIDTH, 6], "identity", dtype=dtype, boundaries=boundaries, read_noise=0.0, bias=False, **levels
    )
    module = linear_opaque([WIDTH, 6], 0.4, device)
    steps(module, 40)
    assert not renewed(module)
    module(inputs(ROWS, WIDTH)).sum().backward()
    jacobian = module.jacobians.known(Cut(0, 1))
    assert jacobian is not None and module.resolved.eps == (2.0,)
    error = np.abs(jacobian.slopes - device.read(0)["weight"].T).max()
    # Two answers, each off by half a step, over twice eps.
    assert error < read / (2 * 2.0) + (1e-5 if dtype == "float32" else 1e-12)


def test_nothing_is_asked_while_nothing_is_written():
    module = linear_opaque([WIDTH, 3], device=noisy([WIDTH, 3]))
    module(x := inputs(ROWS, WIDTH)).sum().backward()
    module(x).sum().backward()
    assert asked(module) == 2 * WIDTH


# ---- noise


@pytest.mark.parametrize("probes", ["coordinate", "hadamard"])
@pytest.mark.parametrize("repeats", [1, 2])
def test_noise_falls_by_the_factor_of_an_average(repeats, probes):
    """With a weight of 1/2 for the new answer the variance is 1/3 of a measurement's: g / (2 - g). The statistic falls
    outside with a probability of 2e-4.
    """
    width, outputs = 16, 12
    module = linear_opaque([width, outputs], 0.5, noisy([width, outputs]), eps=EPS, repeats=repeats, probes=probes)
    steps(module, 30)
    module(inputs(ROWS, width)).sum().backward()
    carried = module.jacobians.carried(Cut(0, 1))
    assert carried is not None
    np.testing.assert_allclose(carried.spread, 1 / 3, rtol=1e-6)
    jacobian = module.jacobians.known(Cut(0, 1))
    assert jacobian is not None
    energy = ((jacobian.slopes - module.stages[0].weight.detach().numpy().T) ** 2).sum()
    energy /= NOISE**2 / (2 * EPS**2) / repeats / 3 / (width if probes == "hadamard" else 1)
    low, high = chi2.ppf([1e-4, 1 - 1e-4], width * outputs)
    assert low < energy < high


def test_a_sound_device_is_suspected_as_seldom_as_said():
    """300 passes at 1e-4: more than 2 alarms have a probability of 4e-6."""
    assert binom.sf(2, 300, FALSE_ALARMS) < 5e-6
    module = linear_opaque([WIDTH, 6], 0.25, noisy([WIDTH, 6]), eps=EPS)
    steps(module, 300)
    assert renewed(module) <= 2


# ---- what contradicts it


def test_drift_is_found_at_once_and_all_is_measured_anew():
    core = Core()
    module = core.module()
    for step in range(3):
        assert core.error(module, step) < 1e-12
    core.held = lambda weight: weight + 0.01
    for step, cost in enumerate((2 + WIDTH, 2, 2), start=3):
        before = asked(module)
        assert core.error(module, step) < 1e-12
        assert renewed(module) == 1 and asked(module) - before == 2 * cost  # carried on from what was found


def test_writes_that_do_not_do_as_commanded_are_found():
    core = Core()
    core.held = lambda weight: np.round(weight, 1)
    module = core.module()
    for step in range(6):
        assert core.error(module, step) < 1e-12
    assert renewed(module) == 5


def test_one_column_that_is_off_is_found_when_its_turn_comes():
    core = Core()
    module = core.module(average=0.25)
    steps(module, 2)

    def held(weight: Any) -> Any:
        weight = weight.copy()
        weight[:, 5] += 0.3
        return weight

    core.held = held
    errors = [core.error(module, step) for step in range(2, 6)]
    assert renewed(module) == 1 and errors[-1] < 1e-12 < max(errors)


def test_drift_below_the_noise_of_one_answer_is_seen_by_all_of_them():
    """0.7 of the noise of a measurement, so 1.36 times the energy that 2,048 answers of a pass should have, where 1.12
    is an alarm: missed with a probability below 1e-6.
    """
    width = 64
    device = noisy([width, width])
    module = linear_opaque([width, width], 0.5, device, eps=EPS)
    steps(module, 8, rate=0.0001)
    assert not renewed(module)
    shift = 0.7 * NOISE / EPS / 2**0.5 * np.random.default_rng(2).normal(size=(width, width))
    plain = device._stages[0].function
    drifted = FakeStage(device._stages[0].spec, lambda a, p: plain(a, {**p, "weight": p["weight"] + shift}))
    device._stages[0] = drifted
    steps(module, 1, rate=0.0001, first=8)
    assert renewed(module) == 1


def test_after_maintenance_all_is_measured_anew():
    module = linear_opaque([WIDTH, 3])
    steps(module, 2)
    module.ledger.events["maintenances"] += 1
    before = asked(module)
    steps(module, 1, first=2)
    assert asked(module) - before == 2 * WIDTH and not renewed(module)


# ---- counted, kept, repeated


@pytest.mark.parametrize("memory", ["store", "recompute"])
@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("frozen", [(), (1,)])
def test_an_ordinary_pass_costs_what_was_forecast(frozen, repeats, memory):
    for declared in ({}, {"max_batch": 7}, {"taps": True, "repeats": True}):
        widths = [5, WIDTH, 6, 3]
        device = FakeDevice.mlp(widths, "identity", dtype="float64", read_noise=0.0, **COSTS, **declared)
        stages = [Stage(device, k, leaf="delta", initial=dict(device.read(k))) for k in range(3)]
        plan = Plan("chain", average={0: 0.3, 1: 0.3, 2: 1.0}, repeats=repeats)
        module = Opaque(stages, plan=plan, memory=memory).double()
        for k in frozen:
            module.stages[k].requires_grad_(False)
        spent, predicted = spent_and_predicted(module, inputs(ROWS, 5), memory=memory)
        assert differing(spent, predicted) == [], declared
        assert not renewed(module)


def test_layers_that_take_turns_on_a_core_cost_what_was_forecast():
    device = FakeDevice.mlp([WIDTH, WIDTH], "identity", dtype="float64", read_noise=0.0, **COSTS)
    curve = FakeDevice.functions(
        [(StageSpec("curve", WIDTH, WIDTH, structure="diagonal"), lambda a, _: np.tanh(a))], dtype="float64", **COSTS
    )
    core = Stage(device, 0, leaf="delta")
    module = Opaque([core, Stage(curve, 0), core, core], plan=Plan("chain", average=0.3)).double()
    spent, predicted = spent_and_predicted(module, inputs(ROWS, WIDTH))
    assert differing(spent, predicted) == [] and not renewed(module)


def test_neither_the_split_nor_the_order_of_answers_changes_it():
    found = []
    script = {"noise": NOISE, "seed": 3}
    for options in (
        {},
        {"max_batch": 3},
        {"max_batch": 4, "pipelined": True, "script": Script(**script, reorder=True)},
    ):
        module = linear_opaque([WIDTH, 6, 3], 0.4, noisy([WIDTH, 6, 3], **{"script": Script(**script), **options}))
        found.append(steps(module, 6))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_what_still_holds_serves_recomputed_activations():
    """A frozen stage below another cut: its target comes from the Jacobian of the step before."""
    found = []
    for memory in ("store", "recompute"):
        device = FakeDevice.mlp([5, WIDTH, 6, 3], "identity", dtype="float64")
        stages = [Stage(device, k, leaf="delta", initial=dict(device.read(k))) for k in range(3)]
        module = Opaque(stages, tree="chain", memory=memory).double()
        module.stages[1].requires_grad_(False)
        for _ in range(2):
            module(x := inputs(ROWS, 5)).sum().backward()
        found.append(x.grad)
    assert torch.equal(*found)


def test_a_resumed_run_is_the_run(tmp_path):
    module = linear_opaque([WIDTH, 6, 3], device=noisy([WIDTH, 6, 3]))
    steps(module, 5)
    torch.save(module.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again, plain = (linear_opaque([WIDTH, 6, 3], a, noisy([WIDTH, 6, 3])) for a in (0.25, 1.0))
    again.load_state_dict(state)
    before = asked(module)
    expected, found = steps(module, 4, first=5), steps(again, 4, first=5)
    assert all(map(torch.equal, expected, found))
    assert asked(again) == asked(module) - before
    plain.load_state_dict(state)  # not averaged: what is carried is of no use to it
    steps(plain, 1, first=5)
    assert asked(plain) == 2 * (WIDTH + 6)


def test_a_copy_measures_for_itself():
    module = linear_opaque([WIDTH, 3])
    steps(module, 2)
    twin = copy.deepcopy(module)
    before = asked(twin)
    steps(twin, 1, first=2)
    assert asked(twin) - before == 2 * WIDTH


# ---- where it does not hold


def refused(stages: Any, **plan: Any) -> str:
    with pytest.raises(BadInput) as caught:
        Opaque(stages, plan=Plan(**{"average": 0.5, **plan}))
    return str(caught.value)


def test_what_does_not_qualify_is_refused_in_words():
    quiet = {"read_noise": 0.0}
    device = FakeDevice.mlp([4, 4], "identity", bias=False, **quiet)
    deep = FakeDevice.mlp([4, 4, 4], "identity", **quiet)
    delta = [Stage(deep, k, leaf="delta") for k in range(2)]
    assert "average names boundaries [3]" in refused(delta, average={1: 0.5, 3: 0.5})
    assert "average={boundary: fraction}" in refused([Stage(device, 0, leaf="autograd", twin=Affine("identity"))])
    assert "only the delta rule says" in refused([Stage(device, 0, leaf="autograd", twin=Affine("identity"))])
    assert "without tiles" in refused([Stage(device, 0, leaf="delta", tiles=Tiles(6, 6))])
    assert "does not declare its read_noise" in refused([Stage(FakeDevice.mlp([4, 4], "identity"), 0)])
    assert "differences='central'" in refused([Stage(device, 0)], differences="forward")
    three = [Stage(FakeDevice.mlp([4] * 4, "identity", **quiet), k) for k in range(3)]
    assert "tree='chain'" in refused(three, tree="direct")
    tanh = FakeDevice.mlp([4, 4], "tanh", **quiet)
    assert "none is measured once for the batch at any boundary" in refused([Stage(tanh, 0)])
    assert "at boundaries [1]" in refused([Stage(device, 0), Stage(tanh, 0)], average={0: 0.5, 1: 0.5})
    assert "none is measured once" in refused([Stage(device, 0)], shared=False)
    for average in (0.0, -1.0, 1.5, float("nan")):
        assert "above 0 and at most 1" in refused([Stage(device, 0)], average=average)
    assert not device.calls
    Opaque([Stage(device, 0), Stage(tanh, 0)], plan=Plan(average=0.5))  # the curve is probed sample by sample
