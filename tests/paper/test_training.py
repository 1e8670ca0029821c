"""Trainings of `benchmarks/paper`: stopped anywhere they end as they would have, and pictures vary by row alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from _blocks import BlockNet, Net, UnitNet, by_autograd, cost_of, on_device
from _images import stripes
from _pictures import Pictures
from _result import begun
from _training import STOPPED, Deadline, Recipe, Run, part, trained
from torch import nn

from hzo_hil.data import Dataset
from hzo_hil.devices.errors import HzoError

NET = BlockNet(size=8, patch=2, blocks=((2, 1), (4, 2)), eps=1e-3)


def pictures(zoom: float = 0.6) -> Pictures:
    made = stripes(8, 14, 12)
    x_train, x_test = (np.rint(made.pop(n) * 255).astype(np.uint8) for n in ("x_train", "x_test"))
    return Pictures(Dataset(x_train=x_train, x_test=x_test, **made, name="stripes", checksum=""), zoom, seed=3)


def model() -> nn.Module:
    return on_device(NET, pictures().first(14), 10, seed=0)


RECIPE = Recipe(partial(torch.optim.Adam, lr=1e-2), 1e-2, epochs=2, batch=4)


def values(run: Run) -> list[bytes]:
    return [p.detach().numpy().tobytes() for p in run.model.parameters()]


def test_a_training_stopped_after_every_step_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole = Run(model(), pictures(), RECIPE, 0, tmp_path / "whole")
    once = whole.finished(Deadline(None))
    pieces = 1
    while True:
        run = Run(model(), pictures(), RECIPE, 0, tmp_path / "pieces")
        try:
            found = run.finished(Deadline(0))
            break
        except SystemExit as stopped:
            assert stopped.code == STOPPED
            pieces += 1
    assert pieces == once["steps"] == 2 * 4
    assert values(run) == values(whole)
    assert [r["accuracy"] for r in found["course"]] == [r["accuracy"] for r in once["course"]]
    assert found["in_all"]["ledger"] == once["in_all"]["ledger"]
    assert found["queries"] > 0


def test_a_checkpoint_is_kept_until_its_part_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "work"
    monkeypatch.setattr("sys.argv", ["item.py", "--out", str(tmp_path)])
    result = begun("item", "An item.", {"seeds": 1}, {})
    once = trained(model, pictures(), RECIPE, 0, folder, Deadline(None))  # and here it is killed
    again = part(result, "a/0", folder, lambda: trained(model, pictures(), RECIPE, 0, folder, Deadline(None)))
    assert again["course"] == once["course"]  # seconds, too: it was not run again
    assert not folder.exists()


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        trained(model, pictures(), RECIPE, 0, tmp_path, Deadline(0))
    longer = Recipe(RECIPE.optimizer, RECIPE.rate, epochs=3, batch=4)
    with pytest.raises(HzoError, match="holds a training of 8 steps, and this is one of 12"):
        trained(model, pictures(), longer, 0, tmp_path, Deadline(None))


UNITS = UnitNet(size=8, patch=2, groups=((4, 1), (6, 1)), eps=1e-2)


@pytest.mark.parametrize("net", [NET, UNITS], ids=["blocks", "units"])
@pytest.mark.parametrize("engine", ["native", "torch"])
def test_the_gradient_of_opaque_segments_is_that_of_autograd(net: Net, engine: str) -> None:
    data = pictures()
    x, y = data.training(np.arange(6), 0)
    found = []
    for one in (on_device(net, data.first(14), 10, 0, engine), by_autograd(net, data.first(14), 10, seed=0)):
        nn.functional.cross_entropy(one(x), y).backward()
        found.append(torch.cat([p.grad.double().flatten() for p in one.parameters() if p.grad is not None]))
    assert float(found[0] @ found[1] / (found[0].norm() * found[1].norm())) > 0.999


def test_a_separable_unit_is_asked_what_it_mixes() -> None:
    device = UNITS.opaque()
    device(torch.zeros(3, 3 * 8 * 8)).sum().backward()
    # Behind the stem: 3 x 3 on each channel, 4 channels, patches of 2 x 2, 4 channels, 3 x 3 (of 2 x 2 pixels), 6.
    rows = [9, 4, 4, 4, 4, 6]
    asked = 3 * (sum(rows) + len(rows))
    assert device.ledger.accounts["probes"].queries == 3 * cost_of(UNITS).queries == asked


def test_the_ledger_is_the_cost_and_locality_saves_what_it_can() -> None:
    net = BlockNet(size=16, patch=2, blocks=((2, 1), (4, 1)), eps=1e-3)
    device = net.opaque()
    device(torch.zeros(3, 3 * 16 * 16)).sum().backward()
    # Blocks reach over 5 x 5 of the 8 x 8 pixels; of the last, of the first and of the pixels nothing is asked.
    assert device.ledger.accounts["probes"].queries == 3 * cost_of(net).queries == 3 * 2 * (25 * 2 + 25 * 2)


def test_pictures_vary_by_epoch_and_row_and_not_by_batch() -> None:
    data = pictures()
    x, y = data.training(np.arange(14), 1)
    for rows in (np.array([5]), np.array([9, 2, 5])):
        part, labels = data.training(rows, 1)
        assert torch.allclose(part, x[rows], atol=1e-6)
        assert torch.equal(labels, y[rows])
    assert not torch.allclose(data.training(np.arange(14), 2)[0], x)
    assert torch.equal(pictures(1.0).training(np.arange(14), 1)[0], pictures(1.0).first(14))


def test_pictures_are_standardised_by_channel() -> None:
    x = pictures().first(14).reshape(14, 3, -1).double()
    assert torch.allclose(x.mean((0, 2)), torch.zeros(3, dtype=torch.double), atol=1e-5)
    assert torch.allclose(x.std((0, 2), correction=0), torch.ones(3, dtype=torch.double), atol=1e-4)
