"""The planner where Jacobians are shared by a batch, or reach as far as a convolution: cost and error, measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hzo_hil import Opaque, Stage
from hzo_hil.cuttables import ways
from hzo_hil.devices.api import Local, ParameterSpec, StageSpec
from hzo_hil.devices.fake import FakeDevice, FakeStage, Script
from hzo_hil.network import Network, stages_of
from hzo_hil.updates.delta import DeltaRule
from tests.core.convs import Conv
from tests.core.nets import inputs, loss_of, spent_and_predicted

WIDTH, LAYERS, BATCH, SEEDS = 8, 3, 24, 60
FEATURES = {"taps": True, "keyed": True, "virtual_time": True, "dtype": "float64"}


def device(noise: float, linear: bool = True) -> FakeDevice:
    """Matrices with tanh between them; the tanh a stage of its own."""
    stages = []
    for k in range(LAYERS):
        weight = ParameterSpec("weight", (WIDTH, WIDTH))
        spec = StageSpec(f"matrix{k}", WIDTH, WIDTH, (weight,), linear=linear)
        stages.append(FakeStage(spec, lambda x, p: x @ p["weight"].T))
        if k < LAYERS - 1:
            stages.append(FakeStage(StageSpec(f"tanh{k}", WIDTH, WIDTH, structure="diagonal"), lambda x, _: np.tanh(x)))
    return FakeDevice.functions(stages, script=Script(noise=noise, seed=4), latency_s=1e-6, query_s=1e-6, **FEATURES)


def opaque(dev: FakeDevice, seed: int = 0, **plan) -> Opaque:
    rng = np.random.default_rng(7)
    weights = [np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0] for _ in range(LAYERS)]
    stages = []
    for k, spec in enumerate(dev.capabilities.stages):
        own = {"leaf": DeltaRule(), "initial": {"weight": weights[k // 2]}} if spec.parameters else {}
        stages.append(Stage(dev, k, **own))
    return Opaque(stages, seed=seed, **plan).double()


def gradient(module: Opaque, x: torch.Tensor) -> torch.Tensor:
    module.zero_grad()
    loss_of(module(x)).backward()
    return torch.cat([p.grad.flatten() for p in module.parameters()])


def test_a_shared_jacobian_costs_a_batch_what_it_costs_a_sample():
    shared, each = (Network(stages_of(device(0.0, linear))) for linear in (True, False))
    rows = [[w.rows * BATCH for w in ways(n, 0, 1, BATCH)] for n in (shared, each)]
    assert rows == [[2 * WIDTH] * 2, [2 * WIDTH * BATCH] * 2]
    assert [w.rows for w in ways(shared, 1, 2, BATCH)] == [2]


def test_what_is_predicted_to_be_asked_is_asked():
    module = opaque(device(0.02), plan="auto", tolerance=0.2)
    x = inputs(BATCH, WIDTH, grad=False)
    module.calibrate(x, loss_of)
    assert module.outcome is not None
    spent, predicted = spent_and_predicted(module, x, learning_rate=0.1)
    assert spent["probes"].queries == predicted.purposes["probes"].queries
    assert module.outcome.cost == pytest.approx(spent["probes"].device_seconds, rel=1e-9)
    alone = opaque(device(0.02, linear=False), plan="auto", tolerance=0.2)
    alone.calibrate(x, loss_of)
    assert module.outcome.cost < alone.outcome.cost / 4


@pytest.mark.parametrize("noise", [0.05, 0.3])
def test_the_error_of_shared_jacobians_is_predicted(noise: float):
    """Root mean squares over 60 noisy devices agree within a factor 1.5 (their ratio: +- 3 %)."""
    x = inputs(BATCH, WIDTH, grad=False)
    exact = gradient(opaque(device(0.0), tree="chain"), x)
    found, predicted = [], []
    for seed in range(SEEDS):
        module = opaque(device(noise), seed, plan="auto", queries_per_step=BATCH * (2 * LAYERS + 6) + 60 * WIDTH)
        module.calibrate(x, loss_of)
        assert module.outcome is not None and any(p.shared for p in module.resolved.at)
        predicted.append(module.outcome.prediction.error**2)
        found.append(float((gradient(module, x) - exact).norm() / exact.norm()) ** 2)
    ratio = math.sqrt(np.mean(predicted) / np.mean(found))
    assert 1 / 1.5 < ratio < 1.5, (math.sqrt(np.mean(predicted)), math.sqrt(np.mean(found)))


def test_local_reaches_count_their_colours_and_what_an_output_sees():
    reach = Local.conv(2, 3, (6, 6), 3, circular=True, padding=1)
    into, out = reach.widths
    spec = StageSpec("conv", into, out, (ParameterSpec("weight", (3, 2, 3, 3)),), structure=reach)
    conv = Conv(reach)

    def run(values: np.ndarray, parameters: dict) -> np.ndarray:
        return conv(torch.as_tensor(values), torch.as_tensor(parameters["weight"])).numpy()

    network = Network(stages_of(FakeDevice.functions([FakeStage(spec, run)], **FEATURES)))
    (way,) = ways(network, 0, 1, BATCH)
    assert (way.rows, way.decoder, way.bend) == (2 * 2 * 3 * 3, 2 * 9, 1 / 18)
