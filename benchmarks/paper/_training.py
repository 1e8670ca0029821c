"""A training as one part of an item. Stopped at any moment, it goes on from its last checkpoint, on another machine too
if its folder is copied there. It knows no network and no device.
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _result  # isort: skip
import torch
from _pictures import Pictures
from torch import nn
from torch.nn import functional

from hzo_hil.checkpoints import has_checkpoint, load_checkpoint, save_checkpoint
from hzo_hil.data import batches
from hzo_hil.ledger import Account, Ledger, recording
from hzo_hil.streams import stream_key

EVERY_S = 60.0  # between checkpoints
EVALUATED = 100  # pictures at a time
STOPPED = 3  # exit status

Optimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Recipe:
    """Batches of `batch`, one-cycle learning rate up to `rate`, cross-entropy."""

    optimizer: Optimizer
    rate: float
    epochs: int
    batch: int


class Deadline:
    """When a piece of a run is to end: `minutes` from now; None: never."""

    def __init__(self, minutes: float | None) -> None:
        self._end = math.inf if minutes is None else time.perf_counter() + 60 * minutes

    @property
    def over(self) -> bool:
        return time.perf_counter() > self._end


def part(result: _result.Result, name: str, folder: Path, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The part `name` of a result, a training whose checkpoint lies in `folder` until the part itself is kept."""
    if result.given.fresh and name not in result.parts:
        shutil.rmtree(folder, ignore_errors=True)
    found = result.part(name, run)
    shutil.rmtree(folder, ignore_errors=True)
    return found


def trained(
    make: Callable[[], nn.Module], pictures: Pictures, recipe: Recipe, seed: int, folder: Path, deadline: Deadline
) -> dict[str, Any]:
    """Test accuracy after every epoch, seconds and queries, of one training from its beginning or from its checkpoint
    in `folder`. Ends the process where the deadline comes first.
    """
    return Run(make(), pictures, recipe, seed, folder).finished(deadline)


class Run:
    def __init__(self, model: nn.Module, pictures: Pictures, recipe: Recipe, seed: int, folder: Path) -> None:
        self.model, self.pictures, self.recipe, self.seed, self.folder = model, pictures, recipe, seed, folder
        self.steps_per_epoch = -(-pictures.count // recipe.batch)
        self.total = recipe.epochs * self.steps_per_epoch
        self.optimizer = recipe.optimizer(list(model.parameters()))
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, recipe.rate, self.total)
        self.step, self.seconds, self.spent = 0, 0.0, Ledger()
        self.course: list[dict[str, float]] = []
        self._ordered: tuple[int, list[Any]] | None = None
        if has_checkpoint(folder):
            self._load(load_checkpoint(folder))

    def finished(self, deadline: Deadline) -> dict[str, Any]:
        self.folder.mkdir(parents=True, exist_ok=True)
        saved = time.perf_counter()
        with recording(self.spent):
            while self.step < self.total:
                start = time.perf_counter()
                loss = self._one_step()
                self.seconds += time.perf_counter() - start
                if self.step % self.steps_per_epoch == 0:
                    self._end_of_epoch(loss.item())
                late = deadline.over and self.step < self.total
                if late or time.perf_counter() - saved > EVERY_S:
                    save_checkpoint(self.folder, self._state())
                    saved = time.perf_counter()
                if late:
                    print(f"stopped at step {self.step} of {self.total}, {self.folder}: the same command goes on",
                          file=sys.stderr)  # fmt: skip
                    raise SystemExit(STOPPED)
        save_checkpoint(self.folder, self._state())
        return self._found()

    def _one_step(self) -> torch.Tensor:
        epoch, number = divmod(self.step, self.steps_per_epoch)
        rows = self._order(epoch)[number]
        x, y = self.pictures.training(rows, epoch)
        loss = functional.cross_entropy(self.model(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        return loss.detach()

    def _order(self, epoch: int) -> list[Any]:
        if self._ordered is None or self._ordered[0] != epoch:
            key = stream_key(self.seed, "data", epoch)
            self._ordered = epoch, batches(self.pictures.count, self.recipe.batch, key)
        return self._ordered[1]

    def _end_of_epoch(self, loss: float) -> None:
        """Test accuracy; its seconds are not counted as training's."""
        epoch = self.step // self.steps_per_epoch
        row = {"epoch": epoch, "loss": loss, "accuracy": self._accuracy(), "seconds": self.seconds}
        self.course.append(row)
        print(f"{self.folder.name}: {row}", file=sys.stderr, flush=True)

    @torch.no_grad()
    def _accuracy(self) -> float:
        self.model.eval()
        right, count = 0, len(self.pictures.data.x_test)
        at_once = EVALUATED * (10 if self.pictures.place.type == "cuda" else 1)
        for first in range(0, count, at_once):
            x, y = self.pictures.test(slice(first, first + at_once))
            right += int((self.model(x).argmax(1) == y).sum())
        self.model.train()
        return right / count

    def _found(self) -> dict[str, Any]:
        accounts = self.spent.as_dict()["purposes"]
        return {
            "accuracy": self.course[-1]["accuracy"],
            "course": self.course,
            "steps": self.total,
            "seconds": self.seconds,
            "queries": accounts["probes"]["queries"],
            "threads": torch.get_num_threads(),
            "hardware": _result.hardware(),
            "in_all": {
                "wall_seconds": round(self.seconds, 3),
                "ledger": {p: a for p, a in accounts.items() if any(a.values())},
            },
        }

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(), "step": self.step, "seconds": self.seconds, "course": self.course,
            "ledger": self.spent.as_dict()["purposes"], "total": self.total,
        }  # fmt: skip

    def _load(self, state: dict[str, Any]) -> None:
        if state["total"] != self.total:
            raise _result.HzoError(
                f"{self.folder} holds a training of {state['total']} steps, and this is one of {self.total}: give the"
                " settings it was begun with, or take the folder away"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.step, self.seconds, self.course = state["step"], state["seconds"], state["course"]
        for purpose, account in state["ledger"].items():
            self.spent.charge(purpose, Account(**account))
