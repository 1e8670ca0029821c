"""Several devices as one under an `Opaque`: replicas that share queries, and different chips that share samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hzo_hil import Opaque, Stage
from hzo_hil.devices.fake import FakeDevice, Script
from hzo_hil.devices.fake_stages import mlp_stages
from hzo_hil.devices.pool import Pool
from hzo_hil.link import link_to
from hzo_hil.updates.delta import DeltaRule

WIDTHS = (3, 5, 2)


class Chip(FakeDevice):
    """Answers with its own gain; keeps what it was asked."""

    gain = 1.0

    def run(self, *args: Any, **kwargs: Any) -> Any:
        reply = super().run(*args, **kwargs)
        reply.outputs = reply.outputs * reply.outputs.dtype.type(self.gain)
        return reply


def chip(gain: float = 1.0, name: str = "chip", **options: Any) -> Chip:
    made = Chip(mlp_stages(WIDTHS, "tanh", seed=0, bias=True), dtype="float64", identity=name, **options)
    made.gain = gain
    return made


def gradients(device: Any, x: torch.Tensor) -> list[torch.Tensor]:
    stages = [Stage(device, k, leaf=DeltaRule("tanh")) for k in range(2)]
    model = Opaque(stages, tree="chain", eps=1e-4, seed=2)
    try:
        (model(x) ** 2).sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]
    finally:
        link_to(device).close()


def data() -> torch.Tensor:
    return torch.as_tensor(np.random.default_rng(0).normal(size=(7, 3)))


def test_identical_members_give_what_one_device_gives_to_the_bit() -> None:
    members = [chip(name=f"replica {k}", max_batch=4) for k in range(3)]
    one, three = gradients(chip(max_batch=4), data()), gradients(Pool(members), data())
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))
    assert sum(len(m.calls) > 5 for m in members) > 1  # more than the common batch


def test_each_sample_stays_on_one_chip_and_gradients_add_up() -> None:
    """The minibatch's gradient is the sum of those that each chip alone gives for its own samples."""
    gains = (1.0, 1.5)
    x = data()
    found = gradients(Pool([chip(g, f"chip {g}", max_batch=5) for g in gains], identical=False), x)
    apart = [gradients(chip(g, max_batch=5), x[k::2]) for k, g in enumerate(gains)]
    assert len(found) == 4
    for together, first, second in zip(found, *apart, strict=True):
        torch.testing.assert_close(together, first + second)


def test_repeated_shots_of_a_sample_stay_with_it() -> None:
    """Devices that cannot average get copies of each row: they belong to the sample of the row."""
    members = [chip(g, f"chip {g}", script=Script(noise=1e-9), max_batch=6) for g in (1.0, 2.0)]
    stages = [Stage(d, k, leaf=DeltaRule("tanh")) for d in [Pool(members, identical=False)] for k in range(2)]
    model = Opaque(stages, tree="chain", eps=1e-2, repeats=3)
    (model(data()) ** 2).sum().backward()
    asked = [sum(c.rows for c in m.calls) for m in members]
    total = sum(a.queries for a in model.ledger.accounts.values())
    # Seven samples: four on the first chip, three on the second.
    assert asked == [total * 4 // 7, total * 3 // 7]
    link_to(stages[0].device).close()
