"""The training loop: one model, one optimiser, resumable to the bit at every step.

It knows nothing of run folders' layout or of the command line; whoever calls it saves what `state` gives and shows
what `report` is told. A step that is interrupted or lost leaves no trace but in the ledger.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hzo_hil import livemetrics, lossonly
from hzo_hil.build import opaques
from hzo_hil.config import Config
from hzo_hil.data import batches
from hzo_hil.devices.errors import BadInput, BadStep, RunStopped
from hzo_hil.learning import learn_twins
from hzo_hil.ledger import Ledger
from hzo_hil.link import link_to
from hzo_hil.localloss import outputs_of
from hzo_hil.module import Opaque
from hzo_hil.noiseless import cosine, noiseless_gradients, present_gradients
from hzo_hil.objectives import loss_function, make_optimizer, make_schedule, metric_function
from hzo_hil.optim import LossOnly
from hzo_hil.preprocess import Augment
from hzo_hil.replanning import replan_model
from hzo_hil.streams import stream_key
from hzo_hil.tensors import Tensors, steps_of

EVALUATION_BATCH = 512
Report = Callable[[Mapping[str, Any]], None]


class Training:
    """Train `model` as `config` says. `evaluated` is what is measured on the test set and kept in checkpoints: the
    model itself, or one on devices that shares its parameters.
    """

    def __init__(
        self, config: Config, model: nn.Module, data: Tensors, ledger: Ledger, evaluated: nn.Module | None = None
    ) -> None:
        self.config = config
        self.model = model
        self.evaluated = model if evaluated is None else evaluated
        self.data = data
        self.ledger = ledger
        self.augment = None
        if config.data.augment is not None:
            self.augment = Augment(config.data.augment, config.seed, data.x_train, config.data.name)
        self.loss = loss_function(config.train.loss)
        self.metric = metric_function(config.train.metric)
        self.opaques = opaques(self.evaluated)
        self.steps_per_epoch = steps_of(config, len(data.x_train))
        self.total_steps = self.steps_per_epoch * config.train.epochs
        self.optimizer = make_optimizer(config, model, self.steps_per_epoch)
        self.loss_only = isinstance(self.optimizer, LossOnly)
        self.schedule = make_schedule(config, self.optimizer, self.total_steps)
        self.step = 0
        self.epoch = 0
        """Epochs that were finished, evaluation included."""
        self.bad_steps = 0
        self.best: float | None = None
        self.sums = [0.0, 0.0, 0.0]  # loss, metric, samples of this epoch so far
        self.seconds = 0.0
        self.evaluation: dict[str, float] = {}
        self.improved = False
        """Whether the epoch that ended last is the best so far."""
        self._unsettled = False
        self._warned: set[str] = set()
        self._clocks = self._devices_clocks()
        """Of devices that keep a time of their own: when the last step or evaluation was over."""

    # --- running -----------------------------------------------------------------------------------------------

    def run(self, report: Report, save: Callable[[], None]) -> None:
        """Go on from where it is to the end. `report` hears a row a step and an epoch; `save` makes a checkpoint."""
        every = self.config.train.checkpoint_every
        started = time.perf_counter() - self.seconds
        if not self.step:
            # Measured once: a resumed run finds what was learnt in its checkpoint.
            learnt = [bool(learn_twins(module)) for module in self.opaques]
            learnt.append(self._prepare())
            self.seconds = time.perf_counter() - started
            if any(learnt):
                self._clocks = self._devices_clocks()
                save()
        while self.epoch < self.config.train.epochs:
            place = self.step - self.epoch * self.steps_per_epoch
            for rows in self._batches()[place:]:
                row = self._one_step(torch.as_tensor(rows))
                self.seconds = time.perf_counter() - started
                report({**row, "epoch": self.step / self.steps_per_epoch, **self._spent()})
                self._unsettled = False
                if every and self.step % every == 0 and self.step % self.steps_per_epoch:
                    save()
            row = self._end_of_epoch()
            self.seconds = time.perf_counter() - started
            report({**row, "wall_seconds": self.seconds})
            self._unsettled = False
            save()

    def _prepare(self) -> bool:
        """Have a loss-only optimiser ask what it must know first, on the first batch; whether it asked anything."""
        if not self.loss_only or not self.optimizer.queries_before:
            return False
        x, y = self.first_batch()

        def closure() -> Tensor:
            self._seed_host()
            loss: Tensor = self.loss(self._answers(self.model, x), y)
            self._check_loss(loss)
            return loss

        with self._forgotten_on_error(), lossonly.undone_on_error(self.opaques), ExitStack() as charged:
            for module in self.opaques:
                charged.enter_context(module.dispatch.charged_to("calibration"))
            self.optimizer.prepare(closure)
        return True

    def _batches(self) -> list[Any]:
        size, key = self.config.train.batch_size, stream_key(self.config.seed, "data", self.epoch)
        return batches(len(self.data.x_train), size, key)

    def _sample(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and wanted outputs of these training rows, as this epoch shows them."""
        x, y = self.data.inputs(self.data.x_train[rows]), self.data.y_train[rows]
        return (x if self.augment is None else self.augment(x, rows, self.epoch)), y

    def _one_step(self, rows: Tensor) -> dict[str, Any]:
        self._seed_host()
        x, y = self._sample(rows)
        try:
            with self._forgotten_on_error():
                value, measured = self._by_losses(x, y) if self.loss_only else self._by_gradient(x, y)
                cosines = self._cosines(x, y)
        except BadStep as error:
            self.optimizer.zero_grad()
            self._unsettled = True
            self.bad_steps += 1
            with warnings.catch_warnings():  # of schedules that move before the optimiser's first step
                warnings.simplefilter("ignore", UserWarning)
                self._advance()
            return {"step": self.step, "bad_step": str(error)}
        self._unsettled = True
        if not self.loss_only:
            self.optimizer.step()
        self._advance()
        for i, added in enumerate((value * len(rows), measured * len(rows), len(rows))):
            self.sums[i] += added
        return {"step": self.step, "loss": value, f"train_{self.config.train.metric}": measured, **cosines}

    def _cosines(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Every so many steps, `cosine/LAYER`: of the gradient just found with that of noise-free copies."""
        every = self.config.train.cosine_every
        if not every or self.step % every or not self.opaques:
            return {}
        found = present_gradients(self.evaluated)
        with torch.random.fork_rng(devices=[]):
            self._seed_host()
            true = noiseless_gradients(self.evaluated, x, y, self.loss)
        return {f"cosine/{name}": cosine(torch.cat(found[name]), torch.cat(true[name])) for name in true}

    def _seed_host(self) -> None:
        """Dropout and the like in host layers: the same draws whenever this step is run."""
        torch.manual_seed(stream_key(self.config.seed, "host", self.step) % 2**63)

    def _by_gradient(self, x: Tensor, y: Tensor) -> tuple[float, float]:
        """Gradients of a batch; its loss and metric. Nothing has moved yet."""
        outputs = self.model(x)
        loss = self.loss(outputs, y)
        self._check_loss(loss)
        whole = sum((self.loss(local, y) for local in outputs_of(self.model)), loss)
        self.optimizer.zero_grad()
        whole.backward()
        return loss.item(), self.metric(outputs.detach(), y)

    def _by_losses(self, x: Tensor, y: Tensor) -> tuple[float, float]:
        """A whole step of a loss-only optimiser on a batch; its loss, and the mean metric of what it tried."""
        tried: list[float] = []

        def closure() -> Tensor:
            self._seed_host()
            outputs = self.model(x)
            loss: Tensor = self.loss(outputs, y)
            self._check_loss(loss)
            tried.append(self.metric(outputs, y))
            return sum((self.loss(local, y) for local in outputs_of(self.model)), loss)

        with lossonly.undone_on_error(self.opaques):
            found = float(self.optimizer.step(closure))
        return found, sum(tried) / max(1, len(tried))

    @contextmanager
    def _forgotten_on_error(self) -> Iterator[None]:
        """What is interrupted is done again on resuming, with the same draws; a lost step is over."""
        before = [(o.forwards, o.evaluated, o.gains.state()) for o in self.opaques]
        clocks, statistics = self._clocks, [(b, b.clone()) for b in self.model.buffers()]
        try:
            yield
            self._clocks = self._devices_clocks()
        except BadStep:
            _put_back(statistics)
            self._clocks = self._devices_clocks()
            raise
        except BaseException:
            _put_back(statistics)
            for module, (forwards, evaluated, gains) in zip(self.opaques, before, strict=True):
                module.forwards, module.evaluated = forwards, evaluated
                module.gains.load(gains)
            self._clocks = clocks
            raise

    def first_batch(self) -> tuple[Tensor, Tensor]:
        """The inputs and wanted outputs of the next step, for calibration."""
        return self._sample(torch.as_tensor(self._batches()[0]))

    def noise_of_gradient(self, layer: Opaque) -> float | None:
        """Of one opaque layer, by two estimates of one minibatch's gradient (see `Opaque.spread_of_gradient`).

        None where the device, or what is left of the budget, does not allow it: training is over, and stays so.
        """
        x, y = self.first_batch()
        self.model.eval()
        try:
            with torch.random.fork_rng(devices=[]):
                return layer.spread_of_gradient(lambda: self.loss(self.model(x), y))
        except (BadStep, RunStopped):
            return None
        finally:
            self.model.train()

    def _devices_clocks(self) -> list[Any]:
        return [link_to(d).clock for d in livemetrics.devices_of(self.opaques)]

    def _advance(self) -> None:
        self.schedule.step()
        self.step += 1

    def _check_loss(self, loss: Any) -> None:
        if not isinstance(loss, Tensor) or loss.ndim:
            raise BadInput(
                f"the loss must be a tensor of one number, not {getattr(loss, 'shape', type(loss).__name__)}"
            )
        if not torch.isfinite(loss):
            raise BadInput(
                f"the loss is {loss.item()} at step {self.step + 1}: training diverged. Lower train.optimizer.lr, or"
                " look at the data"
            )

    def _end_of_epoch(self) -> dict[str, Any]:
        with self._forgotten_on_error():
            found = self.evaluate(self.evaluated)
            planned = self._planned_anew()
        self._unsettled = True
        self.evaluation = found
        self.epoch += 1
        self.improved = self._is_best(found[self.score_name])
        if self.improved:
            self.best = found[self.score_name]
        loss, metric, seen = self.sums
        self.sums = [0.0, 0.0, 0.0]
        row: dict[str, Any] = {"step": self.step, "epoch": self.epoch, **self._spent()}
        if seen:
            row |= {"loss": loss / seen, f"train_{self.config.train.metric}": metric / seen}
        return {**row, **found, **planned, **livemetrics.gains(self.opaques, self._warned), "bad_steps": self.bad_steps}

    def _planned_anew(self) -> dict[str, Any]:
        """Look at layers with `plan: auto` again, where steps are still to come; a row of what was found."""
        if not self.config.method.replan or self.epoch + 1 >= self.config.train.epochs:
            return {}
        x, y = self.first_batch()
        try:
            found = replan_model(self.model, x, lambda outputs: self.loss(outputs, y[: len(outputs)]))
        except BadStep as error:  # lost on the way: the plan stands for another epoch
            return {"look_lost": str(error)}
        if not found:
            return {}
        why = "; ".join(f"{name}: {review.why}" for name, review in found.items() if review.why)
        return {
            "replanned": sum(review.replanned for review in found.values()),
            **({"replanned_why": why} if why else {}),
            **{f"predicted_error/{name}": review.error for name, review in found.items()},
        }

    def _is_best(self, score: float) -> bool:
        if math.isnan(score):
            return False
        goal = self.config.train.best or ("lowest" if self.config.train.metric == "mse" else "highest")
        return self.best is None or (score < self.best if goal == "lowest" else score > self.best)

    def _spent(self) -> dict[str, Any]:
        total = self.ledger.total
        return {
            "queries": total.queries,
            "stage_evaluations": total.stage_evaluations,
            "writes": total.writes,
            "device_seconds": total.device_seconds,
            "wall_seconds": self.seconds,
            **livemetrics.monitors(self.opaques),
        }

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Loss and metric on the test set."""
        model.eval()
        try:
            with self._forgotten_on_error():
                parts = map(self.data.inputs, self.data.x_test.split(EVALUATION_BATCH))
                outputs = torch.cat([self._answers(model, x) for x in parts])
                y = self.data.y_test
                return {"test_loss": float(self.loss(outputs, y)), self.score_name: self.metric(outputs, y)}
        finally:
            model.train()

    def _answers(self, model: nn.Module, x: Tensor) -> Tensor:
        while True:
            try:
                return model(x)
            except BadStep:  # there is no next batch to go on with: ask again, as often as the module allows
                continue

    # --- stopping and going on ---------------------------------------------------------------------------------

    @property
    def can_be_saved(self) -> bool:
        """False from an update's begin until its row was reported: some parameters may have changed and others not."""
        return not self._unsettled

    @property
    def score_name(self) -> str:
        return f"test_{self.config.train.metric}"

    @property
    def score(self) -> float | None:
        """The test metric when last evaluated."""
        return self.evaluation.get(self.score_name)

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "epoch": self.epoch,
            "model": self.evaluated.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "ledger": self.ledger.state_dict(),
            "sums": list(self.sums),
            "best": self.best,
            "bad_steps": self.bad_steps,
            "seconds": self.seconds,
            "evaluation": dict(self.evaluation),
            "clocks": list(self._clocks),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.evaluated.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.ledger.load_state_dict(state["ledger"])
        self.step, self.epoch = state["step"], state["epoch"]
        self.sums, self.best = list(state["sums"]), state["best"]
        self.bad_steps, self.seconds = state["bad_steps"], state["seconds"]
        self.evaluation = dict(state["evaluation"])
        for device, clock in zip(livemetrics.devices_of(self.opaques), state.get("clocks", []), strict=False):
            link_to(device).clock = clock
        self._clocks = self._devices_clocks()


def _put_back(statistics: list[tuple[Tensor, Tensor]]) -> None:
    """What running statistics of host layers were before a step that is forgotten."""
    for buffer, before in statistics:
        buffer.copy_(before)
