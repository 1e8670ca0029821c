"""Results depend on neither batches nor the order of answers; memory is bounded; nothing stays in flight."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from hzo_hil import Opaque, Stage
from hzo_hil.devices.api import Query, Reply
from hzo_hil.devices.fake import FakeDevice, Script
from hzo_hil.devices.fake_pipelined import PipelinedFakeDevice
from hzo_hil.devices.fake_stages import mlp_stages
from hzo_hil.ledger import Account
from hzo_hil.updates.delta import DeltaRule

WIDTHS = [5, 7, 6, 4, 3]


def mlp(script: Script | None = None, dtype: str = "float32", **options: Any) -> Any:
    return FakeDevice.mlp(WIDTHS, script=script or Script(noise=0.05), keyed=True, dtype=dtype, **options)  # type: ignore[arg-type]


def opaque(device: Any, leaf: Any = None, **options: Any) -> Opaque:
    stages = [Stage(device, k, leaf=leaf or DeltaRule("tanh")) for k in range(4)]
    made = Opaque(stages, **{"probes": "hadamard", **options})
    return made.double() if device.capabilities.dtype == "float64" else made


def train(module: Opaque, steps: int = 2, count: int = 6) -> list[Tensor]:
    """Outputs, input gradients and parameters of a short training loop, and of an evaluation after it."""
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    seen = []
    for step in range(steps):
        x = torch.randn(count, 5, generator=torch.Generator().manual_seed(step), dtype=next(module.parameters()).dtype)
        x.requires_grad_()
        optimiser.zero_grad()
        output = module(x)
        (output**2).sum().backward()
        assert x.grad is not None
        seen += [output.detach(), x.grad]
        optimiser.step()
    with torch.no_grad():
        seen.append(module(x))
    return seen + [p.detach() for p in module.parameters()]


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


PLANS: list[dict[str, Any]] = [
    {"tree": "bisect"},
    {"tree": "direct", "differences": "richardson", "probes": "coordinate"},
    {"tree": "chain", "differences": "forward", "repeats": 3},
    {"tree": "bisect", "probes": "rademacher:3", "repeats": 2},
    {"tree": "bisect", "leaf": "probing"},
]


# ---- batches


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_largest_batch_a_device_takes_changes_nothing(plan: dict[str, Any], dtype: str) -> None:
    expected = train(opaque(mlp(dtype=dtype), **plan), steps=1, count=3)
    smallest = 2 * plan.get("repeats", 1)  # a pair, or a reference and its probe
    for max_batch in (smallest, smallest + 3, 23):
        device = mlp(dtype=dtype, max_batch=max_batch)
        assert same(train(opaque(device, **plan), steps=1, count=3), expected), max_batch
        assert max(call.rows for call in device.calls) <= max_batch


def test_the_bytes_a_device_takes_change_nothing() -> None:
    expected = train(opaque(mlp()))
    device = mlp(max_bytes=200, keep_inputs=True)
    assert same(train(opaque(device)), expected)
    assert 100 < max(call.inputs.nbytes for call in device.calls) <= 200


def test_pairs_are_never_split() -> None:
    device = mlp(max_batch=5, keep_inputs=True)
    train(opaque(device, tree="chain"), steps=1)
    probing = [call for call in device.calls if call.rows == 4]
    assert len(probing) > 10
    for call in probing:
        pair_sums = call.inputs[0::2] + call.inputs[1::2]
        middle = call.inputs[:2].mean(axis=0)
        assert abs(pair_sums[0] / 2 - middle).max() < 1e-6
        assert abs(call.inputs[0::2] - call.inputs[1::2]).max() > 1e-4


@pytest.mark.parametrize("taps", [False, True])
def test_taps_change_the_calls_and_not_the_answers(taps: bool) -> None:
    exact = Script()
    expected = train(opaque(mlp(exact)))
    device = mlp(exact, taps=taps)
    assert same(train(opaque(device)), expected)
    assert device.calls[0].taps == ((1, 2, 3) if taps else ())


# ---- order


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("seed", [1, 2])
def test_the_order_of_answers_changes_nothing(plan: dict[str, Any], seed: int) -> None:
    expected = train(opaque(mlp(), **plan), steps=1, count=3)
    script = Script(noise=0.05, reorder=True, latency_s=0.01, delay=dict.fromkeys(range(0, 400, 3 + seed), 0.02))
    # The noise must be that of the device it is compared with; only the order is drawn from another seed.
    device = mlp(script, pipelined=True, virtual_time=True, max_batch=8, window=5)
    device._order.seed(seed)
    found = train(opaque(device, **plan), steps=1, count=3)
    assert same(found, expected)
    assert device.most_in_flight > 1 and device.in_flight == 0


def test_answers_did_come_in_another_order() -> None:
    """What the test above stands on: the scripted device really overtakes itself."""
    device = mlp(Script(reorder=True), pipelined=True, max_batch=4, window=6)
    handed_out: list[int] = []
    poll = device.poll

    def noting(timeout: float) -> list[tuple[int, Any]]:
        arrived = poll(timeout)
        handed_out.extend(ticket for ticket, _ in arrived)
        return arrived

    device.poll = noting
    train(opaque(device), steps=1)
    assert handed_out != sorted(handed_out)
    assert sorted(handed_out) == list(range(len(device.calls)))


def test_two_devices_answering_at_different_speeds() -> None:
    def build(*devices: Any) -> Opaque:
        return Opaque([Stage(devices[k % len(devices)], k, leaf=DeltaRule("tanh")) for k in range(4)], tree="bisect")

    expected = train(build(mlp(Script())), steps=1)
    slow = mlp(Script(latency_s=0.005, reorder=True), pipelined=True, max_batch=16)
    assert same(train(build(mlp(Script(), max_batch=8), slow), steps=1), expected)


# ---- a parent's answer that comes late


class Accounting(PipelinedFakeDevice):
    """Keeps weak notes of the answers it gave out, to see how many are alive at once."""

    def _answer(self, query: Query, number: int) -> Reply:
        reply = super()._answer(query, number)
        if not hasattr(self, "alive"):
            self.alive: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
            self.most_bytes = 0
        self.alive[number] = reply.outputs
        self.most_bytes = max(self.most_bytes, sum(a.nbytes for a in self.alive.values()))
        return reply


def late(buffer_bytes: int, delay: dict[int, float]) -> tuple[list[Tensor], Accounting]:
    stages = mlp_stages([8] * 9, "tanh", seed=0, bias=True)
    device = Accounting(stages, window=4, max_batch=32, keyed=True, script=Script(delay=delay), virtual_time=True)
    made = Opaque(
        [Stage(device, k, leaf=DeltaRule("tanh")) for k in range(8)], tree="bisect", buffer_bytes=buffer_bytes
    )
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    (made(x) ** 2).sum().backward()
    return [p.grad for p in made.parameters()], device  # type: ignore[misc]


def test_while_a_parents_answer_is_late_children_wait_within_the_buffer() -> None:
    answer = 32 * 8 * 4
    forward_calls = 8
    expected, prompt = late(2**20, {})
    assert prompt.seconds == 0.0
    for answers in (1, 3, 7):
        found, device = late(answers * answer, {forward_calls: 2.0})
        assert same(found, expected)
        assert device.seconds == pytest.approx(2.0)  # asked once, waited for, not asked again
        assert len(device.calls) == len(prompt.calls)
        # The buffer may overshoot by what was in flight when it filled; one more is being weighed.
        assert device.most_bytes <= (answers + device.window + 1) * answer
    found, free = late(2**20, {forward_calls: 2.0})
    assert same(found, expected)
    assert free.most_bytes > 20 * answer  # a wider buffer would have taken more


def test_a_late_answer_in_real_time() -> None:
    expected = train(opaque(mlp(Script())), steps=1)
    device = mlp(Script(delay={4: 0.3}), pipelined=True, max_batch=8)
    assert same(train(opaque(device, buffer_bytes=64), steps=1), expected)


# ---- Ctrl-C


class Parking(PipelinedFakeDevice):
    parked = 0

    def park(self) -> None:
        self.parked += 1


class ParkingBlocking(FakeDevice):
    parked = 0

    def park(self) -> None:
        self.parked += 1


@pytest.mark.parametrize("kind", [Parking, ParkingBlocking])
@pytest.mark.parametrize("call", [0, 2, 5, 9])
def test_ctrl_c_leaves_nothing_in_flight_and_the_device_parked_and_usable(kind: Any, call: int) -> None:
    stages = mlp_stages(WIDTHS, "tanh", seed=0, bias=True)
    expected = train(opaque(mlp(Script())))
    device = kind(stages, max_batch=8, keyed=True, script=Script(fail={call: KeyboardInterrupt()}))
    module = opaque(device)
    before = [p.clone() for p in module.parameters()]
    with pytest.raises(KeyboardInterrupt):
        train(module)
    assert device.parked == 1
    assert same(list(module.parameters()), before)
    assert not module.dispatch._flying
    if kind is Parking:
        assert device.in_flight == 0
    module.forwards = 0
    assert same(train(module), expected)
    module.close()
    assert (device.parked, device.closed) == (2, 1)


@pytest.mark.parametrize("place", ["consumer", "leaf"])
def test_an_interruption_between_two_answers_leaves_nothing_in_flight(place: str) -> None:
    """Ctrl-C may hit the host's own arithmetic while the devices are busy."""
    device: Any = Parking(mlp_stages(WIDTHS, "tanh", seed=0, bias=True), max_batch=4, keyed=True, window=6)
    interrupt = [True]

    class Interrupting(DeltaRule):
        def gradients(self, leaf: Any) -> Any:
            if interrupt.pop() if interrupt else False:
                raise KeyboardInterrupt
            return super().gradients(leaf)

    module = opaque(device, leaf=Interrupting("tanh") if place == "leaf" else None)
    if place == "consumer":
        count = module.dispatch.count

        def interrupting(event: str, number: int = 1) -> None:
            if event == "one_sided" and interrupt and interrupt.pop():
                raise KeyboardInterrupt
            count(event, number)

        module.dispatch.count = interrupting  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        train(module)
    assert device.in_flight == 0 and device.parked == 1
    module.forwards = 0
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    module.zero_grad()
    (module(x) ** 2).sum().backward()
    clean = opaque(mlp(Script()))
    (clean(x) ** 2).sum().backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(module.parameters(), clean.parameters(), strict=True))


def test_an_error_of_one_step_is_not_charged_to_the_next() -> None:
    device = mlp(Script(fail={6: ValueError("loose cable")}), pipelined=True, max_batch=8)
    module, clean = opaque(device), opaque(mlp(Script(), max_batch=8))
    with pytest.raises(ValueError, match="loose cable"):
        train(module, steps=1)
    spent = {p: Account(**vars(a)) for p, a in module.ledger.accounts.items()}
    module.forwards = 0
    train(module, steps=1)
    train(clean, steps=1)
    for purpose in ("forward", "probes"):
        assert (
            module.ledger.accounts[purpose].queries - spent[purpose].queries == clean.ledger.accounts[purpose].queries
        )
