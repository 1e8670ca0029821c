"""The training loop: one model, one optimiser, resumable to the bit at every step.

It knows nothing of run folders' layout or of the command line; whoever calls it saves what `state` gives and shows what `report` is
told. A step that is interrupted or lost leaves no trace but in the ledger.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hzo_hil.build import loss_function, make_optimizer, make_schedule, metric_function, opaques
from hzo_hil.config import Config
from hzo_hil.data import Dataset, batches
from hzo_hil.devices.errors import BadInput, BadStep
from hzo_hil.ledger import Ledger
from hzo_hil.streams import stream_key

EVALUATION_BATCH = 512
Report = Callable[[Mapping[str, Any]], None]


@dataclass
class Tensors:
    """A data set on the host device."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor

    @classmethod
    def of(cls, data: Dataset, host: str) -> Tensors:
        parts = (data.x_train, data.y_train, data.x_test, data.y_test)
        return cls(*(torch.as_tensor(p).to(host) for p in parts))


class Training:
    """Train `model` as `config` says. `evaluated` is what is measured on the test set (default: the model itself)."""

    def __init__(self, config: Config, model: nn.Module, data: Tensors, ledger: Ledger) -> None:
        self.config = config
        self.model = model
        self.data = data
        self.ledger = ledger
        self.loss = loss_function(config.train.loss)
        self.metric = metric_function(config.train.metric)
        self.opaques = opaques(model)
        parameters = list(model.parameters())
        self.steps_per_epoch = -(-len(data.x_train) // config.train.batch_size)
        self.total_steps = self.steps_per_epoch * config.train.epochs
        self.optimizer = make_optimizer(config, parameters)
        self.schedule = make_schedule(config, self.optimizer, self.total_steps)
        self.step = 0
        self.bad_steps = 0
        self.best: float | None = None
        self.sums = [0.0, 0.0, 0.0]  # loss, metric, samples of this epoch so far
        self.seconds = 0.0
        self.evaluation: dict[str, float] = {}
        self._updating = False

    # --- running -----------------------------------------------------------------------------------------------

    def run(self, report: Report, save: Callable[[], None]) -> None:
        """Go on from where it is to the end. `report` hears a row a step and a row an epoch; `save` is called at checkpoints."""
        every = self.config.train.checkpoint_every
        started = time.perf_counter() - self.seconds
        while self.step < self.total_steps:
            epoch, place = divmod(self.step, self.steps_per_epoch)
            order = batches(
                len(self.data.x_train), self.config.train.batch_size, stream_key(self.config.seed, "data", epoch)
            )
            for rows in order[place:]:
                row = self._one_step(torch.as_tensor(rows))
                self.seconds = time.perf_counter() - started
                report({**row, "epoch": epoch, **self._spent()})
                last = self.step % self.steps_per_epoch == 0
                if every and self.step % every == 0 and not last:
                    save()
            report(self._end_of_epoch(epoch))
            self.seconds = time.perf_counter() - started
            save()

    def _one_step(self, rows: Tensor) -> dict[str, Any]:
        before = [(o.forwards, o.evaluated) for o in self.opaques]
        # Dropout and the like in host layers: the same draws whenever this step is run.
        torch.manual_seed(stream_key(self.config.seed, "host", self.step) % 2**63)
        x, y = self.data.x_train[rows], self.data.y_train[rows]
        self._updating = False
        try:
            outputs = self.model(x)
            loss = self.loss(outputs, y)
            self._check_loss(loss)
            self.optimizer.zero_grad()
            loss.backward()
        except BadStep as error:
            self.optimizer.zero_grad()
            self.bad_steps += 1
            self._advance()
            return {"step": self.step, "bad_step": str(error)}
        except BaseException:
            for module, (forwards, evaluated) in zip(self.opaques, before, strict=True):
                module.forwards, module.evaluated = forwards, evaluated
            raise
        self._updating = True
        self.optimizer.step()
        self._advance()
        self._updating = False
        measured = self.metric(outputs.detach(), y)
        for i, value in enumerate((loss.item() * len(rows), measured * len(rows), len(rows))):
            self.sums[i] += value
        return {"step": self.step, "loss": loss.item(), f"train_{self.config.train.metric}": measured}

    def _advance(self) -> None:
        self.schedule.step()
        self.step += 1

    def _check_loss(self, loss: Any) -> None:
        if not isinstance(loss, Tensor) or loss.ndim:
            raise BadInput(f"the loss must be a tensor of one number, not {getattr(loss, 'shape', type(loss).__name__)}")
        if not torch.isfinite(loss):
            raise BadInput(
                f"the loss is {loss.item()} at step {self.step + 1}: training diverged. Lower train.optimizer.lr, or look at the data"
            )

    def _end_of_epoch(self, epoch: int) -> dict[str, Any]:
        self.evaluation = self.evaluate(self.model)
        score = self.evaluation[f"test_{self.config.train.metric}"]
        self.best = score if self.best is None else max(self.best, score)
        loss, metric, seen = self.sums
        self.sums = [0.0, 0.0, 0.0]
        row: dict[str, Any] = {"step": self.step, "epoch": epoch + 1, **self._spent()}
        if seen:
            row |= {"loss": loss / seen, f"train_{self.config.train.metric}": metric / seen}
        return {**row, **self.evaluation, "bad_steps": self.bad_steps}

    def _spent(self) -> dict[str, Any]:
        total = self.ledger.total
        return {
            "queries": total.queries,
            "stage_evaluations": total.stage_evaluations,
            "writes": total.writes,
            "device_seconds": total.device_seconds,
            "wall_seconds": self.seconds,
        }

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Loss and metric on the test set."""
        model.eval()
        parts = self.data.x_test.split(EVALUATION_BATCH)
        outputs = torch.cat([model(x) for x in parts])
        model.train()
        y = self.data.y_test
        return {
            "test_loss": float(self.loss(outputs, y)),
            f"test_{self.config.train.metric}": self.metric(outputs, y),
        }

    # --- stopping and going on ---------------------------------------------------------------------------------

    @property
    def can_be_saved(self) -> bool:
        """False while the optimiser has changed some parameters and not others."""
        return not self._updating

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "ledger": self.ledger.state_dict(),
            "sums": list(self.sums),
            "best": self.best,
            "bad_steps": self.bad_steps,
            "seconds": self.seconds,
            "evaluation": dict(self.evaluation),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.ledger.load_state_dict(state["ledger"])
        self.step, self.sums, self.best = state["step"], list(state["sums"]), state["best"]
        self.bad_steps, self.seconds = state["bad_steps"], state["seconds"]
        self.evaluation = dict(state["evaluation"])
