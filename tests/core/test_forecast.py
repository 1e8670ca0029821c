"""The forecast is the ledger, field by field, for every combination of what a plan can say."""

from __future__ import annotations

import itertools

import pytest
import torch

from hzo_hil import Codec, Opaque, Stage, Tiles
from hzo_hil.devices.api import BoundarySpec, Segment
from hzo_hil.devices.fake import FakeDevice
from hzo_hil.forecast import forecast
from hzo_hil.updates.probing import ParameterProbing
from tests.core.nets import Affine, affine_opaque, differing, inputs, leaf_rule, spent_and_predicted

WIDTHS = (2, 3, 2, 1)
COSTS = {"virtual_time": True, "latency_s": 1e-3, "query_s": 3e-6, "settling_s": 0.02}

TREES = ["bisect", "chain", "direct", (1, 2)]
PROBES = ["coordinate", "hadamard", "rademacher:3"]
DIFFERENCES = ["central", "forward", "richardson"]
LEAVES = ["delta", "measured", "probing"]
# What else may differ; taken in turn, so that every pair with the above comes up.
DEVICES = [
    {},
    {"max_batch": 4},
    {"taps": True, "max_batch": 5, "repeats": True},
    {"max_bytes": 120, "dtype": "float64"},
    {"taps": True, "repeats": True, "dtype": "float64"},
]
ROWS = [1, 2, 3, 5]
REPEATS = [1, 2, 2]


@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize("needs_input", [False, True])
def test_every_plan_costs_what_was_forecast(leaf, needs_input):
    turns = zip(*(itertools.cycle(turn) for turn in (DEVICES, ROWS, REPEATS)), strict=False)
    for (declared, rows, repeats), (tree, probes, differences) in zip(
        turns, itertools.product(TREES, PROBES, DIFFERENCES), strict=False
    ):
        device = FakeDevice.mlp(WIDTHS, "tanh", **COSTS, **declared)
        options = {"tree": tree, "probes": probes, "differences": differences, "repeats": repeats}
        rule = ParameterProbing("rademacher:2") if leaf == "probing" else leaf
        module = affine_opaque(WIDTHS, "tanh", rule, device=device, **options)
        spent, predicted = spent_and_predicted(module, inputs(rows, WIDTHS[0], grad=needs_input))
        assert differing(spent, predicted) == [], (declared, rows, options)
        assert predicted.queries_per_sample * rows == spent["probes"].queries
        assert predicted.stage_evaluations_per_sample * rows == spent["probes"].stage_evaluations


@pytest.mark.parametrize("leaf", ["autograd", "probing"])
@pytest.mark.parametrize("differences", DIFFERENCES)
@pytest.mark.parametrize("form", ["offset", "pair", "two_pass"])
def test_codecs_cost_what_was_forecast(form, differences, leaf):
    codec = Codec(offset=5.0) if form == "offset" else Codec(form=form)
    device = FakeDevice.mlp(
        [6, 6], "identity", boundaries=BoundarySpec(low=0, high=10), bias=False, max_batch=8, **COSTS
    )
    read = Codec(form="pair") if form == "pair" else Codec()
    width = 6 // codec.ports
    core = Stage(device, 0, leaf=leaf, twin=_Pairs(codec, read), codec_in=codec, codec_out=read)
    module = Opaque([core] * 3, tree="chain", differences=differences, repeats=2)
    spent, predicted = spent_and_predicted(module, inputs(3, width).float())
    assert differing(spent, predicted) == []


class _Pairs(torch.nn.Module):
    """A twin of the right shapes; how good it is does not matter for counting."""

    def __init__(self, drive: Codec, read: Codec) -> None:
        super().__init__()
        self.ports = drive.ports, read.ports

    def forward(self, inputs, weight):
        return inputs @ weight[:: self.ports[1], :: self.ports[0]].T


@pytest.mark.parametrize("leaf", ["delta", "probing"])
@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("form", ["plain", "two_pass"])
def test_tiles_cost_what_was_forecast(form, repeats, leaf):
    if form == "two_pass":
        leaf = "autograd" if leaf == "delta" else leaf
    device = FakeDevice.mlp([4, 3], "identity", bias=False, max_batch=20, repeats=repeats == 3, **COSTS)
    codec = Codec(form=form)
    stages = [Stage(device, 0, leaf=leaf, twin=Affine("identity"), codec_in=codec, tiles=Tiles(6, 6)) for _ in range(2)]
    module = Opaque(stages, probes="hadamard", repeats=repeats)
    spent, predicted = spent_and_predicted(module, inputs(4, 6).float())
    assert differing(spent, predicted) == []
    assert module.resolved.tree.name == "chain"


def test_merged_stages_and_diagonal_ones_cost_what_was_forecast():
    boundaries = [BoundarySpec(), BoundarySpec(drive=False), BoundarySpec(), BoundarySpec()]
    device = FakeDevice.mlp([3, 4, 3, 3], boundaries=boundaries, **COSTS)
    module = Opaque(device)
    assert [s.segment for s in module.network.stages] == [Segment(0, 2), Segment(2, 3)]
    spent, predicted = spent_and_predicted(module, inputs(4, 3).float())
    assert differing(spent, predicted) == []
    assert spent["probes"].stage_evaluations == 4 * 2 * (3 * 1 + 3 * 2)


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2)])
@pytest.mark.parametrize("shared", [False, True])
def test_frozen_stages_cost_neither_probes_nor_writes(frozen, shared):
    device = FakeDevice.mlp([4, 4] if shared else [4] * 4, **COSTS)
    stages = [Stage(device, 0 if shared else k, leaf=leaf_rule("measured", "tanh"), twin=Affine()) for k in range(3)]
    module = Opaque(stages)
    for k in frozen:
        module.stages[k].requires_grad_(False)
    spent, predicted = spent_and_predicted(module, inputs(5, 4, grad=False).float())
    assert differing(spent, predicted) == []
    if not shared:
        assert spent["forward"].writes == 3 - len(frozen)


def test_physics_aware_training_probes_nothing():
    module = affine_opaque(WIDTHS, leaf="autograd", device=FakeDevice.mlp(WIDTHS, **COSTS), credit="twin")
    spent, predicted = spent_and_predicted(module, inputs(5, 2), credit="twin")
    assert differing(spent, predicted) == []
    assert spent["probes"].queries == predicted.queries_per_sample == 0


@pytest.mark.parametrize("rows", [1, 100])
def test_costs_per_sample_do_not_depend_on_the_batch(rows):
    module = affine_opaque(WIDTHS)
    predicted = forecast(module.network, module.resolved, module.rules, rows)
    assert predicted.queries_per_sample == 2 * (3 + 2)
    assert predicted.purposes["probes"].queries == rows * 2 * (3 + 2)
    assert predicted.total.queries == rows * (2 * (3 + 2) + 3)


def test_forecasting_sends_nothing():
    device = FakeDevice.mlp(WIDTHS)
    module = Opaque(device)
    forecast(module.network, module.resolved, module.rules, 8, needs_input=True)
    assert not device.calls and not device.writes and not device.opened
