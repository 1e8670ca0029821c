"""Canaries, references, maintenance, limits across channels: what keeps a real device honest over a long run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hzo_hil import HealthPolicy, Opaque, Stage, watch
from hzo_hil.devices.api import BoundarySpec, ChannelLimit
from hzo_hil.devices.errors import Drifted, OverLimit
from hzo_hil.devices.fake import FakeDevice, Script
from hzo_hil.devices.fake_stages import FakeStage, mlp_stages
from hzo_hil.health import Watch
from hzo_hil.ledger import Ledger, recording
from hzo_hil.link import link_to
from tests.core.nets import Affine


def step(model: Opaque, number: int = 0) -> list[torch.Tensor]:
    x = torch.randn(4, model.network.width(0), generator=torch.Generator().manual_seed(number))
    model.zero_grad()
    (model(x) ** 2).sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


class Wandering(FakeDevice):
    """Everything it answers is scaled and shifted; `maintain` undoes it."""

    gain, dark, maintained, cures = 1.0, 0.0, 0, True

    def run(self, *args: Any, **kwargs: Any) -> Any:
        reply = super().run(*args, **kwargs)
        reply.outputs = (reply.outputs * self.gain + self.dark).astype(reply.outputs.dtype)
        reply.taps = {k: (v * self.gain + self.dark).astype(v.dtype) for k, v in reply.taps.items()}
        return reply

    def maintain(self) -> None:
        self.maintained += 1
        if self.cures:
            self.gain, self.dark = 1.0, 0.0


def wandering(**options: Any) -> Wandering:
    return Wandering(mlp_stages((3, 5, 2), "tanh", seed=0, bias=True), dtype="float64", **options)


def test_an_unwatched_device_is_asked_nothing_for_its_health() -> None:
    model = Opaque(wandering())
    step(model)
    assert model.ledger.accounts["health"].queries == 0


def test_a_canary_at_the_start_and_every_so_many_queries() -> None:
    device = wandering()
    watch(device, canary=100, rows=5)
    model = Opaque(device)
    for n in range(10):
        step(model, n)
    spent = model.ledger.accounts["health"].queries
    # Four asks for the baseline, then one each time 100 queries (its own included) have gone by.
    others = sum(a.queries for p, a in model.ledger.accounts.items() if p != "health")
    assert 4 * 5 + 5 <= spent <= 4 * 5 + 5 * (1 + (others + spent) // 100)
    assert model.dispatch.monitors["health_drift"] == 0.0


def test_drift_beyond_the_limit_stops_the_run_and_says_by_how_much() -> None:
    device = wandering()
    watch(device, HealthPolicy(canary=1, limit=0.1))
    model = Opaque(device)
    step(model)
    device.gain = 1.3
    with pytest.raises(Drifted, match=r"answers its canary 0\.3\d* of its spread away .* limit of 0\.1"):
        step(model)
    assert device.maintained == 0


def test_maintenance_is_called_and_the_parameters_are_written_again() -> None:
    device = wandering()
    watch(device, HealthPolicy(canary=1, limit=0.1, on_drift="maintain"))
    model = Opaque(device)
    before = step(model)
    device.gain, device.dark = 1.4, 0.2
    after = step(model)
    assert device.maintained == 1
    assert model.ledger.events["maintenances"] == 1
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b)


def test_maintenance_that_does_not_help_stops_the_run() -> None:
    device = wandering()
    device.cures = False
    watch(device, HealthPolicy(canary=1, limit=0.1, on_drift="maintain", tries=2))
    model = Opaque(device)
    step(model)
    device.gain = 1.4
    with pytest.raises(Drifted, match="2 maintenances left it at 0.4"):
        step(model)
    assert device.maintained == 2


def test_a_driver_without_maintenance_is_named() -> None:
    device: Any = FakeDevice(mlp_stages((3, 2), "tanh", seed=0, bias=True), script=Script(drift_per_call=0.05))
    watch(device, HealthPolicy(canary=1, limit=0.1, on_drift="maintain"))
    model = Opaque(device)
    with pytest.raises(Drifted, match=r"no maintain\(\) to call"):
        for n in range(5):
            step(model, n)


def test_references_correct_gain_and_dark_level_exactly_without_noise() -> None:
    device = wandering(taps=True)
    found = watch(device, reference=1)
    model = Opaque(device)
    before = step(model)
    device.gain, device.dark = 0.8, -0.05
    after = step(model)
    assert found.gain == pytest.approx(0.8)
    assert found.dark == pytest.approx(-0.05)
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b)
    assert model.dispatch.monitors["health_gain"] == pytest.approx(0.8)


def test_segments_are_cut_up_where_references_correct_their_ends() -> None:
    plain, watched = wandering(), wandering()
    watch(watched, reference=100)
    assert len(Opaque(plain).network.route(0, 2)) == 1
    assert len(Opaque(watched).network.route(0, 2)) == 2


def test_a_reference_prefers_a_stage_that_needs_no_write() -> None:
    stages = mlp_stages((3, 3), "tanh", seed=0, bias=True)
    bare = FakeStage(replace(stages[0].spec, name="bare", parameters=()), lambda x, _: np.tanh(x))
    device = FakeDevice([stages[0], bare], boundaries=BoundarySpec(low=0.25, high=4.0))
    probe = Watch(HealthPolicy(reference=1), device.capabilities).reference
    assert probe is not None
    assert (probe.segment.lo, probe.segment.hi, probe.parameters) == (1, 2, {})
    assert probe.inputs.min() == 0.25  # dark is as dark as it can be driven
    assert probe.inputs.max() <= 1.0


def test_a_canary_is_not_alarmed_by_noise() -> None:
    """Noise as large as the limit; 300 asks of a sound device. False-alarm rate below 1e-6 an ask."""
    device = wandering(script=Script(noise=0.3, seed=4))
    watch(device, HealthPolicy(canary=1, limit=0.05, rows=16))
    model = Opaque(device)
    for n in range(150):
        step(model, n)
    assert model.ledger.events["bad_steps"] == 0


def test_a_canary_is_asked_again_after_a_reconnect() -> None:
    device: Any = wandering()
    device.counters = {"reconnects": 0}
    watch(device, HealthPolicy(canary=10**9))
    model = Opaque(device)
    step(model)
    asked = model.ledger.accounts["health"].calls
    step(model)
    assert model.ledger.accounts["health"].calls == asked
    device.counters["reconnects"] = 1
    step(model)
    assert model.ledger.accounts["health"].calls == asked + 1


def test_health_needs_no_budget_of_its_own_but_is_counted() -> None:
    device = wandering()
    watch(device, canary=1)
    model = Opaque(device)
    with recording(Ledger()) as ledger:
        step(model)
    assert ledger.accounts["health"].queries == model.ledger.accounts["health"].queries > 0
    assert ledger.accounts["health"].writes > 0


# --- limits across channels --------------------------------------------------------------------------------------


def limited(high: float) -> FakeDevice:
    stage = mlp_stages((3, 2), "tanh", seed=0, bias=True)[0]
    limit = ChannelLimit("heater power", ("weight",), high=high, power=2.0, scale=0.5, unit="W")
    return FakeDevice([FakeStage(replace(stage.spec, limits=(limit,)), stage.function)])


def test_too_much_power_is_refused_before_anything_is_written() -> None:
    device = limited(1.0)
    model = Opaque([Stage(device, 0, initial={"weight": np.full((2, 3), 1.0)}, twin=Affine("tanh"))])
    with pytest.raises(OverLimit, match=r"heater power would be 3 W, above its limit of 1 W. Nothing was written"):
        step(model)
    assert device.writes == []


def test_power_within_the_limit_is_written() -> None:
    device = limited(3.5)
    model = Opaque([Stage(device, 0, initial={"weight": np.full((2, 3), 1.0)}, twin=Affine("tanh"))])
    step(model)
    assert len(device.writes) == 1


def test_a_canary_keeps_to_the_limits() -> None:
    capabilities = limited(0.2).capabilities
    probe = Watch(HealthPolicy(canary=1), capabilities).canary
    assert probe is not None
    assert capabilities.stages[0].limits[0].total(probe.parameters[0]) <= 0.2


# --- parking -----------------------------------------------------------------------------------------------------


def test_every_device_is_parked_when_the_process_ends(run_python: Any) -> None:
    found = run_python("""
import torch, hzo_hil
from hzo_hil.devices.fake import FakeDevice
class Parking(FakeDevice):
    def park(self): print("parked")
from hzo_hil.devices.fake_stages import mlp_stages
model = hzo_hil.Opaque(Parking(mlp_stages((3, 2), "tanh", seed=0, bias=True)))
model(torch.zeros(1, 3))
raise SystemExit("an error in the user's loop")
""")
    assert "parked" in found.stdout


def test_links_close_once() -> None:
    device = wandering()
    model = Opaque(device)
    step(model)
    link_to(device).close()
    link_to(device).close()
    assert device.closed == 1
