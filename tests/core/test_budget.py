"""Budgets stop a run cleanly, and whoever records is charged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hzo_hil import Opaque, Stage
from hzo_hil.devices.errors import BadInput, BudgetSpent, RunStopped
from hzo_hil.devices.fake import FakeDevice
from hzo_hil.ledger import Account, Budget, Ledger, open_ledgers, recording
from hzo_hil.updates.delta import DeltaRule

FORWARD = 4
PROBES = 4 * 2 * 6  # coordinate, one cut at a boundary 6 wide
STEP = FORWARD * 2 + PROBES


def opaque(**options: Any) -> Opaque:
    device = FakeDevice.mlp([5, 6, 4], **options)
    return Opaque([Stage(device, k, leaf=DeltaRule("tanh")) for k in range(2)])


def device_of(module: Opaque) -> Any:
    return module.network.devices[0]


def batch() -> Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


def step(module: nn.Module) -> None:
    (module(batch()) ** 2).sum().backward()


def test_the_count_of_a_step() -> None:
    onn = opaque()
    step(onn)
    accounts = onn.ledger.accounts
    assert accounts["forward"].queries == accounts["forward"].stage_evaluations == 2 * FORWARD
    assert accounts["probes"].queries == accounts["probes"].stage_evaluations == PROBES
    assert onn.ledger.total.queries == STEP == sum(call.rows for call in device_of(onn).calls)
    assert onn.ledger.total.calls == len(device_of(onn).calls)
    assert onn.ledger.total.writes == len(device_of(onn).writes) == 2
    wire = sum(call.rows * (w_in + w_out) * 4 for call, (w_in, w_out) in zip(
        device_of(onn).calls, [(5, 6), (6, 4), (6, 4)], strict=True))  # fmt: skip
    written = sum(v.nbytes for w in device_of(onn).writes for v in w.parameters.values())
    assert onn.ledger.total.bytes == wire + written


@pytest.mark.parametrize("left", [0, FORWARD, 2 * FORWARD, STEP - 1])
def test_max_queries_stops_before_it_is_exceeded(left: int) -> None:
    onn = opaque()
    onn.ledger.budget = Budget(max_queries=STEP + left)
    step(onn)
    before = [p.grad.clone() for p in onn.parameters() if p.grad is not None]
    asked = len(device_of(onn).calls)
    text = rf"the budget of {STEP + left} queries is spent: .* used and the next batch needs .*Raise max_queries"
    with pytest.raises(BudgetSpent, match=text) as raised:
        step(onn)
    assert isinstance(raised.value, RunStopped)
    assert onn.ledger.total.queries <= STEP + left
    assert len(device_of(onn).calls) == asked + (left >= FORWARD) + (left >= 2 * FORWARD)
    assert all(torch.equal(p.grad, g) for p, g in zip(onn.parameters(), before, strict=True))
    assert onn.bad_steps == 0
    onn.ledger.budget = Budget()
    step(onn)


def test_a_budget_that_just_suffices_does() -> None:
    onn = opaque()
    onn.ledger.budget = Budget(max_queries=2 * STEP)
    step(onn)
    step(onn)
    with pytest.raises(BudgetSpent, match="112 used and the next batch needs 4"):
        step(onn)


def test_max_device_seconds_stops_on_declared_time() -> None:
    onn = opaque(virtual_time=True, latency_s=1.0, query_s=0.01, settling_s=0.5)
    step(onn)
    seconds = 3 * 1.0 + STEP * 0.01 + 2 * 0.5
    assert onn.ledger.total.device_seconds == pytest.approx(seconds)
    onn.ledger.budget = Budget(max_device_seconds=seconds + 0.5)
    with pytest.raises(BudgetSpent, match="the budget of 5.06 device seconds is spent .5.600 used.. Raise max_d"):
        step(onn)
    assert len(device_of(onn).calls) == 4


def test_evaluation_is_counted_and_not_budgeted() -> None:
    onn = opaque(virtual_time=True, latency_s=1.0)
    onn.ledger.budget = Budget(max_queries=1, max_device_seconds=0.5)
    with torch.no_grad():
        for _ in range(3):
            onn(batch())
    assert onn.ledger.accounts["evaluation"].queries == 12
    assert onn.ledger.accounts["evaluation"].stage_evaluations == 24
    with pytest.raises(BudgetSpent):
        onn(batch())


@pytest.mark.parametrize("field", ["max_queries", "max_device_seconds"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_budget_must_be_above_zero(field: str, value: float) -> None:
    with pytest.raises(BadInput, match=f"{field} is {value}: a budget must be above zero .leave it out for no limit"):
        Budget(**{field: value})  # type: ignore[arg-type]


# ---- recording


def test_a_recording_is_charged_for_every_module_and_only_while_open() -> None:
    model = nn.Sequential(opaque(), nn.Linear(4, 5), opaque())
    book = Ledger()
    step(model)
    with recording(book) as given:
        assert given is book
        step(model)
    step(model)
    single: list[Any] = [m.ledger.total.queries for m in model if isinstance(m, Opaque)]
    assert 3 * book.total.queries == sum(single)
    assert not open_ledgers()


def test_nested_recordings_are_each_charged_once_and_close_in_order() -> None:
    onn = opaque()
    outer, inner = Ledger(), Ledger()
    with recording(outer):
        with recording(inner), recording(outer):
            assert open_ledgers() == (outer, inner)
            step(onn)
        assert len(open_ledgers()) == 1 and open_ledgers()[0] is outer
        step(onn)
    assert (inner.total.queries, outer.total.queries) == (STEP, 2 * STEP)
    assert not open_ledgers()


def test_an_empty_recording_inside_another_closes_itself_and_not_the_other() -> None:
    outer, inner = Ledger(), Ledger()
    with recording(outer):
        with recording(inner):
            pass
        assert open_ledgers()[0] is outer


def test_recording_a_modules_own_ledger_charges_it_once() -> None:
    onn = opaque()
    with recording(onn.ledger):
        step(onn)
    assert onn.ledger.total.queries == STEP


def test_the_budget_of_a_recording_holds_for_all_modules_together() -> None:
    first, second = opaque(), opaque()
    with recording(Ledger(Budget(max_queries=STEP + FORWARD))) as book:
        step(first)
        with pytest.raises(BudgetSpent, match="60 queries is spent: 60 used and the next batch needs 4"):
            step(second)
    step(second)
    assert book.total.queries == STEP + FORWARD


def test_events_are_recorded_too_and_an_error_closes_the_recording() -> None:
    onn = opaque(parameter={"low": -1.0, "high": 1.0})
    onn.stages[0].weight.data[0, 0] = 5.0
    with pytest.raises(ZeroDivisionError), recording(Ledger()) as book:
        onn(batch())
        raise ZeroDivisionError
    assert book.events["folded"] == onn.ledger.events["folded"] == 1
    assert not open_ledgers()


def test_a_ledger_can_be_saved_and_restored() -> None:
    onn = opaque()
    step(onn)
    restored = Ledger()
    restored.load_state_dict(onn.ledger.state_dict())
    assert restored.as_dict() == onn.ledger.as_dict()
    assert restored.accounts["probes"] == onn.ledger.accounts["probes"] != Account()
