"""A whole run from a configuration: training in the loop, the references it is compared with, and its folder."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from hzo_hil.build import build_model, opaques, open_devices, trained_model, twin_model
from hzo_hil.config import Config
from hzo_hil.data import load
from hzo_hil.devices.api import Device
from hzo_hil.devices.errors import BudgetSpent, ConfigError, RunStopped
from hzo_hil.ledger import Budget, Ledger, recording
from hzo_hil.link import link_to
from hzo_hil.modelcalibration import balanced, planned
from hzo_hil.noiseless import noiseless_layer
from hzo_hil.precheck import check_fit
from hzo_hil.progress import Progress
from hzo_hil.records import RunFolder, RunFolderError, TensorBoardLog, draw_curves, write_json
from hzo_hil.resuming import keep_device, take_folder
from hzo_hil.stepcost import check_budget
from hzo_hil.tensors import Tensors
from hzo_hil.training import Training

Say = Callable[[str], None]


def _stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(
    config: Config, *, resume: bool = False, other_device: bool = False, force: bool = False, quiet: bool = False,
    say: Say = _stderr,
) -> dict[str, Any]:  # fmt: skip
    """Train, compare, write the run folder, return its summary. A spent budget is a normal end; other stops raise."""
    if config.where.threads:
        torch.set_num_threads(config.where.threads)
    data = load_data(config)
    devices = open_devices(config)
    try:
        model = on_host(build_model(config, devices), config)
        check_fit(config, model, data)
        if not resume:
            check_budget(config, model, len(data.x_train))
        if config.train.cosine_every:
            for layer in opaques(model):
                noiseless_layer(layer)  # says now where there is no such copy
        with take_folder(config, resume, force) as folder:
            try:
                for name, health in keep_device(folder, devices, resume, other_device).items():
                    if not health.ok:
                        say(f"device {name} is not well: {health.detail}")
                    elif not quiet and health.detail:
                        say(f"device {name}: {health.detail}")
                if resume:
                    folder.mark("running")
                return Run(config, folder, data, devices, model, quiet, say).go(resume)
            except BaseException as error:
                _leave(folder, error, say)
                raise
    finally:
        for device in devices.values():
            link_to(device).close()


def _leave(folder: RunFolder, error: BaseException, say: Say) -> None:
    """Write down how the run ended, and say how to go on with it."""
    stopped = isinstance(error, (RunStopped, KeyboardInterrupt))
    with suppress(RunFolderError):  # a full disk is what the error is about
        if folder.status == "running":
            folder.mark("stopped" if stopped else "failed")
    if folder.has_checkpoint("last"):
        config, place = (f'"{p}"' if " " in str(p) else str(p) for p in (folder.path / "config.yaml", folder.path))
        say(f"what was reached is kept; go on with: hzo-hil train {config} --resume --run-dir {place}")


class Run:
    """The phases of one run: `in_loop` (or `deployed`, where nothing is trained in the loop), then each reference, each
    with a checkpoint of its own.
    """

    def __init__(
        self, config: Config, folder: RunFolder, data: Tensors, devices: Mapping[str, Device], model: nn.Module,
        quiet: bool, say: Say,
    ) -> None:  # fmt: skip
        self.config = config
        self.folder = folder
        self.data = data
        self.devices = devices
        self.model = model
        self.quiet = quiet
        self.say = say
        self.phase = "deployed" if config.method.credit == "deployed" else "in_loop"
        self.gradient_error: dict[str, dict[str, float | None]] = {}

    def go(self, resumed: bool) -> dict[str, Any]:
        start = time.perf_counter()
        ledger = Ledger(Budget(**self.config.budget.model_dump()))
        training = Training(self.config, trained_model(self.config, self.model), self.data, ledger, self.model)
        stopped = None
        board = None
        if resumed and self.folder.has_checkpoint("last"):
            training.load_state(self.folder.load_checkpoint("last"))
        if resumed:
            self.folder.truncate_metrics(training.step)
            self.say(f"resumed at step {training.step} of {training.total_steps}")
        if self.config.where.tensorboard:
            board = TensorBoardLog.open(self.folder.path, training.step if resumed else None)
            if board is None:
                self.say(
                    "TensorBoard is not installed: its events are not written (pip install 'hzo-hil[tensorboard]')"
                )
        try:
            with recording(ledger):
                self._plan(training)
                self._train(training, self.phase, "last", board)
                self._check_prediction(training)
        except BudgetSpent as error:
            stopped = str(error)
            self.say(f"stopped: {error}")
        finally:
            if board is not None:
                board.close()
        if stopped is not None:
            training.evaluation = self._evaluated(training, ledger)
        rows = {self.phase: self._row(training)}
        if stopped is None:
            rows |= self._references(resumed)
        return self._finish(training, rows, stopped, time.perf_counter() - start)

    # --- the planner -------------------------------------------------------------------------------------------

    def _plan(self, training: Training) -> None:
        """Calibrate and plan where the planner is asked to and no checkpoint says what it found."""
        for text in balanced(training.model, training.first_batch):
            self.say(text)
        for text in planned(training.model, training.first_batch, training.loss):
            self.say(text)
        self._keep_calibrations(training)

    def _keep_calibrations(self, training: Training) -> None:
        layers = {o.name: o.calibration for o in training.opaques if o.auto is not None and o.calibration is not None}
        if layers:
            write_json(self.folder.path / "calibration.json", {n: json.loads(c.as_json()) for n, c in layers.items()})

    def _check_prediction(self, training: Training) -> None:
        """What noise leaves in a gradient now, from two estimates, beside what was predicted when last planned."""
        self.gradient_error = {
            o.name: {
                "predicted": o.outcome.prediction.error,
                "predicted_noise": (o.outcome.prediction.noise + o.outcome.prediction.forward) ** 0.5,
                "measured_noise": training.noise_of_gradient(o),
            }
            for o in training.opaques
            if o.outcome is not None
        }

    def _train(self, training: Training, phase: str, checkpoint: str, board: TensorBoardLog | None) -> None:
        def save() -> None:
            # The best first: if this is interrupted, the epoch is repeated and finds it again.
            if phase == self.phase and training.improved:
                self.folder.save_checkpoint(training.state(), "best")
                training.improved = False
            self.folder.save_checkpoint(training.state(), checkpoint)

        with Progress(phase, training, self.quiet) as progress:

            def report(row: Mapping[str, Any]) -> None:
                progress.show(row)
                if phase == self.phase:
                    self.folder.log(row)
                    if row.get("replanned"):
                        self.say(f"planned anew after epoch {row['epoch']}: {row['replanned_why']}")
                        self._keep_calibrations(training)
                    if board is not None:
                        board.log(row)

            try:
                training.run(report, save)
            except RunFolderError:
                raise
            except BaseException:  # whatever it was: nothing that was reached is lost
                if training.can_be_saved:
                    self.folder.save_checkpoint(training.state(), checkpoint)
                raise

    def _evaluated(self, training: Training, ledger: Ledger) -> dict[str, float]:
        """Where a budget ended training between two evaluations: the score of what was reached."""
        with recording(ledger):
            return training.evaluate(self.model)

    # --- references --------------------------------------------------------------------------------------------

    def _references(self, resumed: bool) -> dict[str, dict[str, Any]]:
        wanted = self.config.references
        rows: dict[str, dict[str, Any]] = {}
        # First what trains on the device: resumed, it finds there what it left.
        if "physics_aware" in wanted:
            model = on_host(build_model(self.config, self.devices, credit="twin"), self.config)
            rows["physics_aware"] = self._row(self._reference(model, "physics_aware", resumed))
        if "ideal" in wanted or "deployed" in wanted:
            chip = on_host(build_model(self.config, self.devices), self.config)
            training = self._reference(twin_model(chip), "ideal", resumed)
            if "deployed" in wanted:
                ledger = Ledger()
                start = time.perf_counter()
                with recording(ledger):
                    score = training.evaluate(chip)
                spent = {**self._row(training), **_spent(ledger), "wall_seconds": time.perf_counter() - start}
                rows["deployed"] = {**spent, "score": score[f"test_{self.config.train.metric}"]}
            if "ideal" in wanted:
                rows["ideal"] = self._row(training)
        return rows

    def _reference(self, model: nn.Module, phase: str, resumed: bool) -> Training:
        ledger = Ledger()
        training = Training(self.config, model, self.data, ledger)
        if resumed and self.folder.has_checkpoint(phase):
            training.load_state(self.folder.load_checkpoint(phase))
        with recording(ledger):
            balanced(model, training.first_batch)
            self._train(training, phase, phase, None)
        return training

    # --- results -----------------------------------------------------------------------------------------------

    def _row(self, training: Training) -> dict[str, Any]:
        return {"score": training.score, **_spent(training.ledger), "wall_seconds": training.seconds}

    def _finish(self, training: Training, rows: dict[str, Any], stopped: str | None, wall: float) -> dict[str, Any]:
        total = training.ledger.total
        summary: dict[str, Any] = {
            "accuracy": {name: row["score"] for name, row in rows.items()},
            "metric": self.config.train.metric,
            "score": training.score,
            "best": training.best,
            "queries": total.queries,
            "stage_evaluations": total.stage_evaluations,
            "device_seconds": total.device_seconds,
            "wall_seconds": wall,
            "seed": self.config.seed,
            "run_dir": str(self.folder.path),
            "steps": training.step,
            "bad_steps": training.bad_steps,
            "stopped": stopped,
            "rows": rows,
            "ledger": training.ledger.as_dict(),
        }
        if self.gradient_error:
            summary["gradient_error"] = self.gradient_error
        self.folder.finish(summary, "stopped" if stopped else "finished")
        if self.config.where.picture and draw_curves(self.folder.path) is None:
            self.say(f"no picture of the learning curves was drawn: {_why_no_picture()}")
        return summary


def _why_no_picture() -> str:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return "matplotlib is not installed (pip install 'hzo-hil[plots]')"
    return "nothing was measured yet"


def _spent(ledger: Ledger) -> dict[str, Any]:
    total = ledger.total
    return {"queries": total.queries, "writes": total.writes, "device_seconds": total.device_seconds}


def load_data(config: Config) -> Tensors:
    d = config.data
    dataset = load(
        d.name, data_dir=config.where.data_dir, path=d.path, flatten=d.flatten, limit_train=d.limit_train,
        limit_test=d.limit_test, **d.options,
    )  # fmt: skip
    try:
        return Tensors.of(dataset, config.where.host, d.standardise)
    except (RuntimeError, AssertionError) as error:
        raise _no_host(config, error) from error


def on_host(model: nn.Module, config: Config) -> nn.Module:
    try:
        return model.to(config.where.host)
    except (RuntimeError, AssertionError) as error:
        raise _no_host(config, error) from error


def _no_host(config: Config, error: Exception) -> ConfigError:
    reason = (str(error).splitlines() or [""])[0]
    return ConfigError(
        f"where.host {config.where.host!r} cannot be used: {reason}. Use cpu, or cuda where torch finds a GPU"
    )
