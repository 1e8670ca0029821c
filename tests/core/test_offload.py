"""A device that probes by itself: the targets, queries and books are those of rows, and little travels."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hzo_hil import Opaque, Plan, Stage
from hzo_hil.devices.api import Axis, Local, Probes, Segment
from hzo_hil.devices.errors import BadReply, BadStep, DeviceRebooted, LinkLost
from hzo_hil.devices.probes_torch import answered
from hzo_hil.devices.simulated import SimulatedDevice
from hzo_hil.devices.wrapper import Wrapper
from hzo_hil.offload import offloaded
from hzo_hil.simulators.conv_unit import ConvUnit
from hzo_hil.simulators.elementwise import Elementwise
from hzo_hil.simulators.emulated import EmulatedLinear
from hzo_hil.simulators.model import Port, Reach
from hzo_hil.simulators.twins import Twin
from tests.core.convs import reaches
from tests.core.nets import differing, gradients, inputs, spent_and_predicted, worst

SAMPLES = 5
PLAIN = Reach(2, 2, (5, 4), (3, 3), (1, 1), (1, 1), (1, 1))


class ByRows(Wrapper):
    """The same device, asked row by row: a wrapper hides that it could probe by itself."""

    def run(self, segment: Segment, inputs: Any, **options: Any) -> Any:
        return self.device.run(segment, inputs, **options)


def module(models: list[Any], plan: Plan, rows: bool = False, **options: Any) -> Opaque:
    how = {n: options.pop(n) for n in ("taps", "dtype", "max_batch", "power") if n in options}
    device: Any = SimulatedDevice(models, engine="torch", **({"dtype": "float64"} | how))
    device = ByRows(device) if rows else device
    rng = np.random.default_rng(0)
    stages = []
    for k, model in enumerate(models):
        initial = {n: v + rng.normal(0, 0.1, v.shape) for n, v in model.initial(rng).items()}
        stages.append(Stage(device, k, twin=Twin(model), initial=initial))
    return Opaque(stages, plan=plan, seed=3, **options).double()


def found(run: Opaque, x: torch.Tensor | None = None) -> list[torch.Tensor]:
    x = inputs(SAMPLES, run.network.width(0)) if x is None else x
    return gradients(run, list(run.parameters()), x)


@given(reaches(), st.sampled_from(["central", "forward"]), st.sampled_from([0.0, 0.01]))
@settings(max_examples=80, deadline=None)
def test_a_convolution_of_any_shape_is_probed_as_by_rows(reach: Local, differences: str, noise: float) -> None:
    """Noise too: a row has the same key whoever builds it."""
    models = [ConvUnit(Reach(**vars(reach)), skip=False, read_noise_std=noise)]
    plan = Plan(eps=1e-3, differences=differences, shared=False)
    alone, rows = (module(models, plan, r) for r in (False, True))
    assert worst(found(alone), found(rows)) < 1e-8
    here, there = (m.ledger.accounts["probes"] for m in (alone, rows))
    assert (here.queries, here.stage_evaluations) == (there.queries, there.stage_evaluations)


UNITS = [
    ConvUnit(PLAIN),
    ConvUnit(replace(PLAIN, out_channels=3, stride=(2, 2))),
    ConvUnit(Reach(3, 4, (3, 2), (1, 1), (1, 1), (0, 0), (1, 1))),
]
LAYERS = [EmulatedLinear(6, 5, read_noise_std=0.01), EmulatedLinear(5, 4)]


@pytest.mark.parametrize("tree", ["bisect", "chain", "direct"])
@pytest.mark.parametrize("differences", ["central", "forward"])
@pytest.mark.parametrize("models", [UNITS, LAYERS], ids=["local", "dense"])
def test_the_books_are_those_of_rows_but_for_calls_and_bytes(models: list[Any], differences: str, tree: str) -> None:
    plan = Plan(tree, eps=1e-3, differences=differences, shared=False)
    alone, rows = (module(models, plan, r) for r in (False, True))
    stays = module(models, plan)
    alone._stays = lambda: False  # type: ignore[method-assign]
    first = found(stays)
    assert worst(first, found(rows)) < 1e-8
    # What stays on the device is the same, bit by bit.
    assert all(torch.equal(a, b) for a, b in zip(first, found(alone), strict=True))
    assert differing(*spent_and_predicted(stays, inputs(SAMPLES, stays.network.width(0)))) == []
    assert stays.ledger.accounts["probes"].bytes == 0
    assert 0 < alone.ledger.accounts["probes"].bytes < rows.ledger.accounts["probes"].bytes


def test_a_pass_that_asks_again_finds_the_same() -> None:
    plan = Plan("bisect", eps=1e-3, shared=False)
    assert worst(found(module(UNITS, plan, memory="recompute")), found(module(UNITS, plan))) < 1e-12


@pytest.mark.parametrize("at_once", [1, 50, 300, 10**6])
def test_the_size_of_pieces_does_not_matter(at_once: int) -> None:
    """To rounding: sums within torch's convolutions depend on how many rows there are."""
    rng = np.random.default_rng(1)
    run = module(UNITS, Plan("chain", eps=1e-3, shared=False))
    axes = run.network.colouring(0, 1).axes(run.network.width(1))
    assert axes is not None
    x, w = rng.normal(size=(SAMPLES, 40)), rng.normal(size=(SAMPLES, 40))
    model, state = UNITS[0], UNITS[0].program(UNITS[0].initial(rng), 0)
    for paired in (True, False):
        probes = Probes(Segment(0, 1), x, axes, 1e-3, paired, w)
        one, other = (
            answered(probes, lambda rows, keys: model.run(state, rows, keys), torch.device("cpu"), n)
            for n in (at_once, 1 << 20)
        )
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_a_reference_that_is_known_is_not_asked_again() -> None:
    plan = Plan("chain", eps=1e-3, differences="forward", shared=False)
    alone, rows = (module(UNITS, plan, r, taps=False) for r in (False, True))
    assert worst(found(alone), found(rows)) < 1e-8
    assert alone.ledger.accounts["probes"].queries == rows.ledger.accounts["probes"].queries
    assert all(alone.resolved.at[k].answered for k in (1, 2))


@pytest.mark.parametrize(
    ("models", "plan"),
    [
        (LAYERS, Plan("chain", "hadamard", eps=1e-3, shared=False)),
        (LAYERS, Plan("chain", eps=1e-3, shared=False, repeats=2)),
        (LAYERS, Plan("chain", eps=1e-3)),  # linear: measured once for the batch
        (UNITS, Plan("chain", eps=1e-3, differences="richardson", shared=False)),
        ([Elementwise(4), Elementwise(4)], Plan("chain", eps=1e-3)),  # one colour: nothing to save
        ([Elementwise(4, input=Port(-1, 1))] * 2, Plan("chain", eps=1e-3)),
        ([EmulatedLinear(5, 4, out_bits=8, out_bound=4.0)] * 1, Plan("chain", eps=1e-3, shared=False)),
    ],
)
def test_what_the_host_must_see_goes_by_rows(models: list[Any], plan: Plan) -> None:
    run = module(models, plan)
    assert not any(offloaded(run.network, p) for p in run.resolved.at)
    assert all(
        isinstance(a, np.ndarray) for a in run.reference(torch.zeros(2, run.network.width(0)).double())[1].values()
    )


def test_a_wrapper_hides_it_and_a_watched_device_is_asked_by_rows() -> None:
    from hzo_hil.health import HealthPolicy, watch

    plan = Plan("chain", eps=1e-3, shared=False)
    assert not any(offloaded(m.network, p) for m in [module(UNITS, plan, rows=True)] for p in m.resolved.at)
    run = module(UNITS, plan)
    assert all(offloaded(run.network, p) for p in run.resolved.at) and run._stays()
    watch(run.network.devices[0], HealthPolicy(canary=1000))
    assert not any(offloaded(run.network, p) for p in run.resolved.at) and not run._stays()


class Fragile(ByRows):
    """Its first probes come to nothing, in ways to be chosen."""

    def __init__(self, device: Any, *troubles: Any) -> None:
        super().__init__(device)
        self.troubles = list(troubles)

    def run_probes(self, probes: Probes) -> Any:
        trouble = self.troubles.pop(0) if self.troubles else None
        if isinstance(trouble, Exception):
            raise trouble
        answer = self.device.run_probes(probes)
        return answer if trouble is None else trouble(answer)


def fragile(*troubles: Any) -> Opaque:
    run = module(UNITS, Plan("chain", eps=1e-3, shared=False))
    device = Fragile(run.network.devices[0], *troubles)
    stages = [replace(s, device=device) for s in run.network.stages]
    return Opaque(stages, plan=run.plan, seed=3).double()


@pytest.mark.parametrize(
    ("trouble", "event"),
    [(LinkLost("cable"), "lost"), (DeviceRebooted("power"), "reboots"), (lambda a: a * math.nan, "non_finite")],
)
def test_what_is_lost_is_asked_again(trouble: Any, event: str) -> None:
    run = fragile(trouble)
    assert worst(found(run), found(fragile())) == 0
    assert run.ledger.events[event] == 1
    assert run.ledger.accounts["probes"].resent > 0
    assert run.ledger.accounts["probes"].queries == fragile_queries()


def fragile_queries() -> int:
    run = fragile()
    found(run)
    return run.ledger.accounts["probes"].queries


def test_a_device_that_never_answers_costs_a_step_and_a_wrong_answer_the_run() -> None:
    with pytest.raises(BadStep, match="that it probes by itself, and again 3 times"):
        found(fragile(*[LinkLost("cable")] * 4))
    with pytest.raises(BadReply, match=r"answered float64 \[5, 1\] to probes of inputs"):
        found(fragile(lambda a: a[:, :1]))
    with pytest.raises(BadReply, match="answered list to probes"):
        found(fragile(lambda a: a.tolist()))


def test_targets_that_are_not_finite_cost_a_step() -> None:
    run = module(UNITS, Plan("chain", eps=1e-3, shared=False))
    with torch.no_grad():
        run.stages[2].weight.fill_(1e300)
    x = inputs(SAMPLES, 40)
    with pytest.raises(BadStep, match="NaN or infinite"):
        (run(x) * 1e10).sum().backward()
    assert run.ledger.events["bad_steps"] == 1


def test_axes_say_what_they_count() -> None:
    axis = Axis(np.ones((3, 4), dtype=bool), np.array([1, -1, 0, 1]))
    assert axis.count == 2
    probes = Probes(Segment(0, 1), np.zeros((2, 4)), (axis, axis), 0.1, True, np.zeros((2, 3)))
    assert (probes.colours, probes.rows, replace(probes, paired=False).rows) == (4, 8, 5)
    assert replace(probes, paired=False, reference=np.zeros((2, 3))).rows == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and torch finds none")
@pytest.mark.parametrize(("engine", "eps", "least"), [("cuda", 1e-3, 0.99999), ("cuda+tf32", 0.1, 0.998)])
def test_a_pass_stays_on_a_gpu(engine: str, eps: float, least: float) -> None:
    from tests.core.nets import cosine

    plan, x = Plan("chain", eps=eps, differences="forward", shared=False), torch.randn(16, 40)
    runs = []
    for one, place in (("native", "cpu"), (engine, "cuda")):
        device = SimulatedDevice(UNITS, engine=one)
        values = [m.initial(np.random.default_rng(k)) for k, m in enumerate(UNITS)]
        stages = [Stage(device, k, twin=Twin(m), initial=values[k]) for k, m in enumerate(UNITS)]
        run = Opaque(stages, plan=plan, seed=3).to(place)
        runs.append([g.cpu() for g in gradients(run, list(run.parameters()), x.to(place))])
        assert run._stays() == (place == "cuda")
    assert cosine(*runs) > least


def test_an_engine_computes_as_precisely_as_it_is_called_and_leaves_torch_as_it_was() -> None:
    from hzo_hil.devices.engines import Torch

    backends = torch.backends
    before = backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32
    for tf32 in (True, False):
        with Torch(torch, "cpu", tf32).arithmetic():
            assert (backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32) == (tf32, tf32)
            assert not torch.is_grad_enabled()
        assert (backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32) == before
