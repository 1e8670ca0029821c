"""Saving, resuming and moving an `Opaque`: a resumed loop is the uninterrupted one, bit for bit."""

from __future__ import annotations

import copy
import io
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hzo_hil import Opaque, Stage
from hzo_hil.devices.errors import BadInput
from hzo_hil.devices.fake import FakeDevice, Script
from hzo_hil.sources import remember
from hzo_hil.updates.delta import DeltaRule

WIDTHS = [5, 6, 4, 5]


def make_device(identity: str = "fake", noise: float = 0.05, **options: Any) -> FakeDevice:
    return FakeDevice.mlp(WIDTHS, keyed=True, identity=identity, script=Script(noise=noise), **options)


def opaque(device: FakeDevice | None = None, **options: Any) -> Opaque:
    device = device or make_device()
    return Opaque([Stage(device, k, leaf=DeltaRule("tanh")) for k in range(3)], **{"probes": "rademacher:4", **options})


def device_of(module: Opaque) -> Any:
    return module.network.devices[0]


def batch(step: int) -> Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(step))


class Loop:
    """A model partly on a device, an optimiser and a step count."""

    def __init__(self, device: FakeDevice) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(5, 5), opaque(device), nn.Linear(5, 2))
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=0.02)
        self.losses: list[float] = []

    def train(self, first: int, last: int) -> None:
        for step in range(first, last):
            self.optimiser.zero_grad()
            loss = (self.model(batch(step)) ** 2).mean()
            loss.backward()
            self.losses.append(float(loss.detach()))
            self.optimiser.step()

    def evaluate(self) -> Tensor:
        with torch.no_grad():
            return self.model(batch(99))

    def saved(self) -> bytes:
        buffer = io.BytesIO()
        torch.save({"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}, buffer)
        return buffer.getvalue()

    def load(self, saved: bytes) -> None:
        state = torch.load(io.BytesIO(saved), weights_only=True)
        self.model.load_state_dict(state["model"], strict=True)
        self.optimiser.load_state_dict(state["optimiser"])


@pytest.mark.parametrize("levels", [None, tuple(i / 64 for i in range(-192, 193))])
def test_a_resumed_loop_is_bit_identical_to_an_uninterrupted_one(levels: tuple[float, ...] | None) -> None:
    parameter = {} if levels is None else {"low": -3.0, "high": 3.0, "levels": levels}
    whole, before = (Loop(make_device(parameter=parameter)) for _ in range(2))
    whole.train(0, 3)
    whole.evaluate()
    whole.train(3, 6)
    before.train(0, 3)
    before.evaluate()
    after = Loop(make_device(parameter=parameter))
    after.load(before.saved())
    after.train(3, 6)
    assert after.losses == whole.losses[3:]
    for a, b in zip(after.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(after.evaluate(), whole.evaluate())
    states = [loop.model[1].get_extra_state() for loop in (after, whole)]
    assert states[0] == states[1]
    assert states[0]["forwards"] == 6 and states[0]["evaluated"] == 8


def test_saving_changes_nothing() -> None:
    saved, plain = Loop(make_device()), Loop(make_device())
    for step in range(4):
        saved.train(step, step + 1)
        saved.saved()
    plain.train(0, 4)
    assert saved.losses == plain.losses


def test_loading_back_in_the_same_process_rewinds() -> None:
    loop = Loop(make_device())
    loop.train(0, 2)
    saved = loop.saved()
    loop.train(2, 4)
    loop.load(saved)
    loop.train(2, 4)
    assert loop.losses[4:] == loop.losses[2:4]


def test_programming_noise_follows_the_epoch_of_a_stage() -> None:
    keys = []
    for rewind in (False, True):
        loop = Loop(make_device())
        loop.train(0, 2)
        saved = loop.saved()
        if rewind:
            loop = Loop(make_device())
            loop.load(saved)
        device = device_of(loop.model[1])
        written = len(device.writes)
        loop.evaluate()
        keys.append([w.key for w in device.writes[written:]])
    assert keys[0] == keys[1]
    assert len(set(keys[0])) == 3


def test_state_dict_names_and_strictness() -> None:
    onn = opaque()
    state = onn.state_dict()
    assert list(state) == [
        "_extra_state",
        *(f"stages.{k}.{name}" for k in range(3) for name in ("weight", "bias")),
    ]
    del state["stages.1.bias"]
    with pytest.raises(RuntimeError, match="Missing key.*stages.1.bias"):
        opaque().load_state_dict(state)


def test_weights_alone_can_be_loaded_without_the_streams() -> None:
    first, second = opaque(seed=1), opaque(seed=2)
    weights = {k: v for k, v in first.state_dict().items() if isinstance(v, Tensor)}
    second(batch(0))
    found = second.load_state_dict(weights, strict=False)
    assert found.missing_keys == ["_extra_state"] and second.forwards == 1
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_loading_on_another_device_warns_and_on_the_same_does_not() -> None:
    state = opaque(make_device("bench-1")).state_dict()
    with pytest.warns(UserWarning, match="was trained on bench-1 and is loaded on bench-2.*imperfections"):
        opaque(make_device("bench-2")).load_state_dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opaque(make_device("bench-1")).load_state_dict(state)


# ---- copies


def test_a_deep_copy_is_another_owner_of_the_same_device() -> None:
    device = make_device(noise=0.0)
    first = opaque(device)
    expected = first(batch(0)).detach()
    second = copy.deepcopy(first)
    assert second.network.devices == [device] and second.ledger is not first.ledger
    assert not any(a is b for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert torch.equal(second(batch(0)), expected)
    assert second.ledger.events["owner_changes"] == 3
    with torch.no_grad():
        for p in second.parameters():
            p.mul_(0.5)
    changed = second(batch(0)).detach()
    assert not torch.equal(changed, expected)
    assert torch.equal(first(batch(0)), expected)
    assert torch.equal(second(batch(0)), changed)
    assert first.ledger.events["owner_changes"] == 3
    assert second.ledger.events["owner_changes"] == 6


def test_a_deep_copy_trains_as_its_original_would() -> None:
    loop = Loop(make_device())
    loop.train(0, 2)
    model, optimiser = copy.deepcopy((loop.model, loop.optimiser))
    loop.train(2, 4)
    other = Loop(make_device())
    other.model, other.optimiser = model, optimiser
    other.train(2, 4)
    assert other.losses == loop.losses[2:]


# ---- pickles


def test_a_module_is_pickled_by_where_its_device_came_from() -> None:
    opener = partial(make_device, "bench-1")
    onn = opaque(remember(opener(), opener))
    loss = (onn(batch(0)) ** 2).sum()
    loss.backward()
    with torch.no_grad():
        for p in onn.parameters():
            p -= 0.1 * p.grad
    buffer = io.BytesIO()
    torch.save(onn, buffer)
    loaded = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert device_of(loaded) is not device_of(onn)
    assert device_of(loaded).capabilities.identity == "bench-1"
    # Its own device holds nothing yet.
    assert loaded.get_extra_state() == {**onn.get_extra_state(), "held": []}
    for step in range(2):
        a, b = onn(batch(step)), loaded(batch(step))
        assert torch.equal(a, b)
        for module, output in ((onn, a), (loaded, b)):
            module.zero_grad()
            output.sum().backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(onn.parameters(), loaded.parameters(), strict=True))
    torch.save(loaded, io.BytesIO())


def test_a_device_made_in_this_process_cannot_be_pickled() -> None:
    with pytest.raises(BadInput, match="device 'fake' cannot be pickled: it was made in this proc.*save state_dict()"):
        torch.save(opaque(), io.BytesIO())


def test_stages_of_one_device_share_it_again_after_loading() -> None:
    opener = partial(make_device, "bench-1")
    onn = opaque(remember(opener(), opener))
    buffer = io.BytesIO()
    torch.save(nn.Sequential(onn), buffer)
    loaded = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)[0]
    assert len({id(stage.device) for stage in loaded.network.stages}) == 1
