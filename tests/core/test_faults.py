"""What a device does wrong, and what is made of it: asked again, counted, a step dropped, or the run stopped."""

from __future__ import annotations

import re
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hzo_hil import Opaque, Stage
from hzo_hil.devices.api import BoundarySpec, Reply
from hzo_hil.devices.errors import BadReply, BadStep, DeviceRebooted, LinkLost, Saturated, TooManyBadSteps
from hzo_hil.devices.fake import FakeDevice, Script
from hzo_hil.devices.fake_stages import mlp_stages
from hzo_hil.programming import Policy
from hzo_hil.updates.delta import DeltaRule

WIDTHS = [5, 6, 4]
STAGES = mlp_stages(WIDTHS, "tanh", seed=0, bias=True)


def mlp(script: Script | None = None, **options: Any) -> FakeDevice:
    return FakeDevice.mlp(WIDTHS, script=script, **{"dtype": "float64", **options})


def opaque(device: Any, **options: Any) -> Opaque:
    depth = len(device.capabilities.stages)
    return Opaque([Stage(device, k, leaf=DeltaRule("tanh")) for k in range(depth)], **options).double()


def batch(count: int = 4) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def step(module: Opaque) -> list[Tensor]:
    """Gradients of one training step."""
    module.zero_grad()
    (module(batch()) ** 2).sum().backward()
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


EXPECTED = step(opaque(mlp()))
CALLS = 3  # of one step: forward through two stages, one cut


# ---- answers that are not finite


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("first", range(CALLS))
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("pipelined", [False, True])
def test_an_answer_that_is_not_finite_is_asked_again(value: float, first: int, times: int, pipelined: bool) -> None:
    script = Script(nan=range(first, first + times), bad_value=value)
    onn = opaque(mlp(script, pipelined=pipelined))
    assert same(step(onn), EXPECTED)
    clean = opaque(mlp())
    step(clean)
    assert onn.ledger.events["non_finite"] == times
    assert onn.bad_steps == 0
    total, expected = onn.ledger.total, clean.ledger.total
    assert total.queries == expected.queries and total.stage_evaluations == expected.stage_evaluations
    assert total.calls == expected.calls + times
    assert total.resent == times * [4, 4, 4 * 2 * 6][first]


@pytest.mark.parametrize("first", range(CALLS))
def test_after_three_repeats_the_step_is_dropped_and_no_parameter_touched(first: int) -> None:
    device = mlp(Script(nan=range(first, first + 4)))
    onn = opaque(device)
    before = [p.clone() for p in onn.parameters()]
    stages = ["1..1", "2..2", "2..2"][first]
    text = f"'fake' answered with NaN or infinity for stages {stages}, .* and again 3 times. The step was dropped"
    with pytest.raises(BadStep, match=text):
        step(onn)
    assert len(device.calls) == first + 4
    assert all(p.grad is None for p in onn.parameters())
    assert same([p.detach() for p in onn.parameters()], [p.detach() for p in before])
    assert (onn.bad_steps, onn.bad_in_a_row, onn.ledger.events["bad_steps"]) == (1, 1, 1)
    assert same(step(onn), EXPECTED)
    assert (onn.bad_steps, onn.bad_in_a_row) == (1, 0)


def test_max_bad_steps_in_a_row_stop_the_run() -> None:
    onn = opaque(mlp(Script(always_nan=True)), max_bad_steps=3)
    for _ in range(2):
        with pytest.raises(BadStep):
            step(onn)
    with pytest.raises(TooManyBadSteps, match="3 steps in a row were lost. The last: device 'fake' answered with NaN"):
        step(onn)
    assert onn.ledger.events["bad_steps"] == 3


def test_a_good_step_in_between_starts_the_count_again() -> None:
    bad = 4  # calls of a step whose first query is lost for good
    lost = [*range(0, 4), *range(4, 8), *range(8 + CALLS, 12 + CALLS), *range(12 + CALLS, 16 + CALLS)]
    onn = opaque(mlp(Script(nan=lost)), max_bad_steps=3)
    for good in (False, False, True, False, False, True):
        if good:
            step(onn)
            continue
        with pytest.raises(BadStep):
            step(onn)
    assert onn.bad_steps == 4 and len(lost) == 4 * bad


def test_evaluations_lost_now_and_then_never_stop_a_run() -> None:
    onn = opaque(mlp(Script(nan=[n for n in range(40) if n % 5 < 4])), max_bad_steps=2)
    with torch.no_grad():
        for _ in range(8):
            with pytest.raises(BadStep):
                onn(batch())
            onn(batch())


@pytest.mark.parametrize("pipelined", [False, True])
def test_a_bad_evaluation_is_counted_and_the_module_stays_usable(pipelined: bool) -> None:
    onn = opaque(mlp(Script(nan=range(4)), pipelined=pipelined))
    with torch.no_grad(), pytest.raises(BadStep, match=r"stages 1\.\.2, 4 inputs \(evaluation\)"):
        onn(batch())
    assert same(step(onn), EXPECTED)


class Tapping(FakeDevice):
    """Its taps are bad at the scripted calls."""

    bad: dict[int, Any]

    def run(self, *args: Any, **options: Any) -> Reply:
        reply = super().run(*args, **options)
        if (spoil := self.bad.get(len(self.calls) - 1)) is not None:
            reply = spoil(reply)
        return reply


def tapping(**bad: Any) -> Tapping:
    device = Tapping(STAGES, dtype="float64", taps=True)
    device.bad = {int(call[1:]): spoil for call, spoil in bad.items()}
    return device


def test_taps_that_are_not_finite_are_asked_again() -> None:
    onn = opaque(tapping(_0=lambda reply: Reply(reply.outputs, {1: reply.taps[1] * np.nan})))
    assert same(step(onn), EXPECTED)
    assert onn.ledger.events["non_finite"] == 1


# ---- answers of the wrong kind


def test_an_answer_of_the_wrong_shape_says_what_was_expected() -> None:
    device = mlp(Script(wrong_shape_at={1}))
    onn = opaque(device)
    text = (
        "device 'fake' answered float64 [4, 3] to 4 inputs through stages 2..2, read at boundary 2;"
        " expected float64 [4, 4]. Its capabilities and its run() disagree"
    )
    with pytest.raises(BadReply, match=re.escape(text)):
        step(onn)
    assert len(device.calls) == 2  # asking again would not help
    assert same(step(onn), EXPECTED)


def test_an_answer_coarser_than_declared_is_refused() -> None:
    with pytest.raises(BadReply, match=r"answered float16 \[4, 6\].*expected float64 \[4, 6\]"):
        step(opaque(mlp(Script(wrong_dtype_at={0}))))


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda reply: "busy", "answered str to 4 inputs"),
        (lambda reply: Reply(None), "answered NoneType to 4 inputs"),  # type: ignore[arg-type]
        (lambda reply: Reply(reply.outputs + 1j), r"answered complex128 \[4, 4\]"),
        (lambda reply: Reply(reply.outputs), "answered NoneType to 4 inputs.*read at boundary 1"),
        (lambda reply: Reply(reply.outputs, {1: reply.taps[1][:2]}), r"answered float64 \[2, 6\].*read at boundary 1"),
    ],
)
def test_answers_that_are_no_answers(spoil: Any, text: str) -> None:
    onn = opaque(tapping(_0=spoil))
    with pytest.raises(BadReply, match=text):
        step(onn)
    assert same(step(onn), EXPECTED)


def test_a_driver_that_returns_nothing() -> None:
    class Silent(FakeDevice):
        def run(self, *args: Any, **options: Any) -> Any:
            super().run(*args, **options)

    with pytest.raises(BadReply, match="device 'fake' answered NoneType to 4 inputs through stages 1..1"):
        step(opaque(Silent(STAGES, dtype="float64")))


def test_plain_arrays_and_whole_numbers_are_answers_too() -> None:
    class Counts(FakeDevice):
        def run(self, *args: Any, **options: Any) -> Any:
            return np.rint(super().run(*args, **options).outputs * 1000).astype(np.int32)

    onn = opaque(Counts(STAGES, dtype="float64"))
    with torch.no_grad():
        assert float(onn(batch()).abs().max()) > 1


def test_a_drivers_own_error_reaches_the_caller_and_the_module_stays_usable() -> None:
    onn = opaque(mlp(Script(fail={2: ValueError("the laser is off")})))
    with pytest.raises(ValueError, match="the laser is off"):
        step(onn)
    assert onn.bad_steps == 0
    assert same(step(onn), EXPECTED)


# ---- lost answers, lost writes, reboots


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("lost", [[0], [1], [2], [0, 1, 2], [2, 3, 4]])
def test_lost_answers_are_asked_again(pipelined: bool, lost: list[int]) -> None:
    onn = opaque(mlp(Script(lose=lost), pipelined=pipelined))
    assert same(step(onn), EXPECTED)
    assert onn.ledger.events["lost"] == len(lost)


def test_an_answer_lost_four_times_costs_the_step() -> None:
    onn = opaque(mlp(Script(lose=range(1, 5))))
    with pytest.raises(BadStep, match="did not answer .*scripted loss.* and again 3 times"):
        step(onn)
    assert same(step(onn), EXPECTED)


def test_many_lost_answers_of_many() -> None:
    """False alarm below 1e-6: 4 losses in a row of a query have probability 0.15^4 = 5e-4, and the seed is fixed."""
    onn = opaque(mlp(Script(lose_rate=0.15, nan_rate=0.05, seed=2), pipelined=True, max_batch=4))
    assert same(step(onn), EXPECTED)
    assert onn.ledger.events["lost"] + onn.ledger.events["non_finite"] > 2


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("lost", [[0], [1], [0, 1, 2]])
def test_lost_writes_are_repeated_whole(pipelined: bool, lost: list[int]) -> None:
    device = mlp(Script(lose_write=lost), pipelined=pipelined)
    onn = opaque(device)
    assert same(step(onn), EXPECTED)
    assert onn.ledger.events["lost"] == len(lost)
    assert onn.ledger.total.writes == 2
    assert all(w.where is None for w in device.writes)


def test_a_write_lost_for_good_costs_the_step_and_is_made_up_for() -> None:
    device = mlp()
    onn = opaque(device)
    step(onn)
    onn.stages[0].weight.data += 0.1
    device.script.lose_write = range(2, 6)
    with pytest.raises(BadStep, match="device 'fake' lost a write and 3 repeats of it .*written whole before the next"):
        step(onn)
    clean = opaque(mlp())
    clean.stages[0].weight.data += 0.1
    assert same(step(onn), step(clean))


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("call", range(CALLS))
def test_after_a_reboot_parameters_are_written_again_and_the_query_repeated(pipelined: bool, call: int) -> None:
    device = mlp(Script(reboot_at={call}), pipelined=pipelined)
    onn = opaque(device)
    assert same(step(onn), EXPECTED)
    assert device.boots == 1 and onn.ledger.events["reboots"] == 1
    assert all(w.where is None for w in device.writes)
    assert same(step(onn), EXPECTED)


@pytest.mark.parametrize("pipelined", [False, True])
def test_a_reboot_with_several_queries_in_flight(pipelined: bool) -> None:
    device = mlp(Script(reboot_at={7}), pipelined=pipelined, max_batch=2)
    onn = opaque(device)
    assert same(step(onn), EXPECTED)
    assert device.boots == 1


def test_a_device_that_reboots_whenever_it_is_written_costs_the_step() -> None:
    class Restless(FakeDevice):
        def write(self, *args: Any, **options: Any) -> None:
            raise DeviceRebooted("brown-out")

    onn = opaque(Restless(STAGES, dtype="float64"))
    with pytest.raises(BadStep, match="lost a write and 3 repeats of it .brown-out"):
        step(onn)
    assert onn.ledger.events["reboots"] == 4


# ---- silence


def test_a_blocking_driver_that_hangs_is_given_up_within_the_timeout() -> None:
    device = mlp(Script(hang={1}, hang_s=30.0))
    onn = opaque(device, policy=Policy(timeout_s=0.2))
    start = time.monotonic()
    with pytest.raises(LinkLost, match=r"'fake' did not answer within 0.2 s \(stages 2..2, 4 inputs\). .* timeout_s"):
        step(onn)
    assert time.monotonic() - start < 2
    device.unhang()
    onn.policy.timeout_s = 10.0
    assert same(step(onn), EXPECTED)


def test_a_pipelined_query_without_an_answer_is_asked_again_after_the_timeout() -> None:
    device = mlp(Script(hang={1, 2}), pipelined=True, window=2, max_batch=4)
    onn = opaque(device, policy=Policy(timeout_s=0.1))
    assert same(step(onn), EXPECTED)
    assert onn.ledger.events["lost"] >= 2


def test_a_full_window_of_silent_queries_is_asked_again() -> None:
    device: Any = mlp(Script(hang={4, 5}), pipelined=True, window=2, max_batch=2)
    onn = opaque(device, policy=Policy(timeout_s=0.1))
    assert same(step(onn), EXPECTED)
    assert onn.ledger.events["lost"] == 2
    assert device.most_in_flight == 2 and device.in_flight == 0


def test_a_pipelined_device_silent_for_good_costs_the_step() -> None:
    onn = opaque(mlp(Script(hang=range(1, 5)), pipelined=True), policy=Policy(timeout_s=0.05))
    with pytest.raises(BadStep, match="did not answer within 0.05 s for stages 2..2, 4 inputs .* and again 3 times"):
        step(onn)
    assert same(step(onn), EXPECTED)


# ---- drift


def test_slow_drift_cancels_within_a_pair_and_its_neighbour() -> None:
    onn = opaque(mlp(Script(drift_per_call=1e-4), max_batch=2))
    steady = opaque(mlp(max_batch=2))
    for a, b in zip(step(onn), step(steady), strict=True):
        assert float((a - b).norm() / b.norm()) < 0.02
    assert not same(step(onn), step(steady))


# ---- ends of ranges


def saturating(high: float) -> FakeDevice:
    ends = [BoundarySpec(), BoundarySpec(out_low=-2.0, out_high=2.0), BoundarySpec(out_low=-high, out_high=high)]
    return mlp(boundaries=ends)


def test_saturated_answers_are_counted_per_boundary() -> None:
    onn = opaque(saturating(0.3), max_saturated=1.0)
    with torch.no_grad():
        output = onn(batch(50))
    ends = int((output.abs() == 0.3).sum())
    assert 0 < ends < output.numel()
    assert onn.ledger.events["saturated:2"] == ends
    assert onn.ledger.events["saturated:1"] == 0


def test_more_than_max_saturated_stops_the_run() -> None:
    onn = opaque(saturating(0.01), max_saturated=0.5)
    with pytest.raises(
        Saturated, match=r"of 200 answers at boundary 2 sit at the end .* max_saturated=0.5 allows. Lower"
    ):
        onn(batch(50))
    assert all(p.grad is None for p in onn.parameters())


def test_dark_is_not_saturated() -> None:
    ends = BoundarySpec(out_low=0.0, out_high=9.0)
    onn = Opaque(FakeDevice.mlp([5, 5], "relu", boundaries=ends), max_saturated=0.1)
    with torch.no_grad():
        assert int((onn(batch().float()) == 0).sum()) > 2
    assert onn.ledger.events["saturated:1"] == 0


def test_clipped_inputs_are_counted_and_have_no_gradient() -> None:
    device = mlp(boundaries=[BoundarySpec(low=-1.0, high=1.0), BoundarySpec(), BoundarySpec()], keep_inputs=True)
    onn = opaque(device)
    x = batch(20).requires_grad_()
    outside = x.detach().abs() > 1
    onn(x).sum().backward()
    assert onn.ledger.events["clipped:0"] == int(outside.sum()) > 0
    assert np.array_equal(device.calls[0].inputs, x.detach().clamp(-1, 1).numpy())
    assert x.grad is not None
    assert torch.equal(x.grad == 0, outside)


# ---- parameters: slew and ranges


def slewing(**options: Any) -> FakeDevice:
    return mlp(parameter={"slew": 0.25}, **options)


def test_a_large_write_is_split_within_the_slew_limit_and_counted() -> None:
    device = slewing()
    onn = opaque(device)
    onn(batch())
    written = len(device.writes)
    onn.stages[0].weight.data[1, 2] += 0.9
    onn(batch())
    steps = [w.parameters["weight"][1, 2] for w in device.writes[written:]]
    assert len(steps) == 4 and np.allclose(np.diff(steps), 0.225)
    assert {tuple(w.where["weight"]) for w in device.writes[written:]} == {(1 * 5 + 2,)}
    assert np.array_equal(device.read(0)["weight"], onn.stages[0].weight.detach().numpy())
    assert onn.ledger.total.writes == len(device.writes)


def test_a_split_write_that_is_interrupted_is_completed_later() -> None:
    device = slewing()
    onn = opaque(device, policy=Policy(retries=0))
    onn(batch())
    written = len(device.writes)
    onn.stages[0].weight.data[1, 2] += 0.9
    device.script.lose_write = {written + 2}
    with pytest.raises(BadStep, match="lost a write"):
        onn(batch())
    onn(batch())
    assert np.array_equal(device.read(0)["weight"], onn.stages[0].weight.detach().numpy())


def test_ctrl_c_between_the_parts_of_a_split_write_leaves_no_half_way_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    device = slewing(settling_s=1e-4)
    onn = opaque(device)
    onn(batch())
    written = len(device.writes)
    onn.stages[0].weight.data[1, 2] += 0.9

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("hzo_hil.dispatch.time.sleep", interrupted)  # while the first part settles
        onn(batch())
    assert len(device.writes) == written + 1
    onn(batch())
    assert np.array_equal(device.read(0)["weight"], onn.stages[0].weight.detach().numpy())


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"low": -1.0, "high": 1.0}, 1.0),
        ({"low": -1.0, "high": 1.0, "edge": "reflect"}, 0.75),
        ({"low": -1.0, "high": 1.0, "period": 2.0, "edge": "wrap"}, -0.75),
        ({"period": 2.0, "edge": "wrap"}, 1.25),
    ],
)
def test_parameters_return_to_their_range_and_are_counted(spec: dict[str, Any], expected: float) -> None:
    device = mlp(parameter=spec)
    onn = opaque(device)
    for p in onn.parameters():
        p.data.fill_(0.5)
    onn.stages[0].weight.data[0, :3] = 1.25 if "low" in spec else 3.25
    onn(batch())
    assert onn.ledger.events["folded"] == 3
    np.testing.assert_allclose(onn.stages[0].weight.detach().numpy()[0, :3], expected)
    assert np.array_equal(device.read(0)["weight"], onn.stages[0].weight.detach().numpy())
    onn(batch())
    assert onn.ledger.events["folded"] == 3


def test_no_thread_is_left_behind_by_a_module_that_is_gone() -> None:
    import gc

    onn = opaque(mlp(identity="short-lived"))
    onn(batch())
    assert any(t.name == "hzo short-lived" for t in threading.enumerate())
    del onn
    gc.collect()
    deadline = time.monotonic() + 5
    while any(t.name == "hzo short-lived" for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(t.name == "hzo short-lived" for t in threading.enumerate())
