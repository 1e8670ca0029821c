"""A whole run from a configuration: training in the loop, the references it is compared with, and its folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hzo_hil.build import build_model, opaques, open_devices, twin_model
from hzo_hil.config import WHERE_SECTIONS, Config
from hzo_hil.data import load
from hzo_hil.devices.api import Device
from hzo_hil.devices.errors import BudgetSpent, ConfigError, RunStopped
from hzo_hil.ledger import Budget, Ledger, recording
from hzo_hil.link import link_to
from hzo_hil.progress import Progress
from hzo_hil.records import RunFolder, TensorBoardLog, differences, draw_curves, what_hash
from hzo_hil.training import Tensors, Training

Say = Callable[[str], None]


def _stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(
    config: Config, *, resume: bool = False, other_device: bool = False, force: bool = False, quiet: bool = False,
    say: Say = _stderr,
) -> dict[str, Any]:  # fmt: skip
    """Train, compare, write the run folder and return its summary. Stops early only by `RunStopped` or an error."""
    if config.where.threads:
        torch.set_num_threads(config.where.threads)
    data = load_data(config)
    devices = open_devices(config)
    model = build_model(config, devices).to(config.where.host)
    _check_fit(config, model, data)
    folder, resumed = _folder(config, resume, force)
    with folder:
        try:
            _keep_device(folder, devices, resumed, other_device)
            return Run(config, folder, data, devices, model, quiet, say).go(resumed)
        except BaseException as error:
            if folder.status == "running":
                stopped = isinstance(error, (RunStopped, KeyboardInterrupt))
                folder.mark("stopped" if stopped else "failed")
            if isinstance(error, (RunStopped, KeyboardInterrupt)):
                say(f"stopped; go on with: hzo-hil train {folder.path / 'config.yaml'} --resume --run-dir {folder.path}")
            raise
        finally:
            for device in devices.values():
                link_to(device).close()


class Run:
    """The phases of one run: `in_loop`, then each reference, each with a checkpoint of its own."""

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

    def go(self, resumed: bool) -> dict[str, Any]:
        start = time.perf_counter()
        ledger = Ledger(Budget(**self.config.budget.model_dump()))
        training = Training(self.config, self.model, self.data, ledger)
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
                self.say("TensorBoard is not installed: its events are not written (pip install 'hzo-hil[tensorboard]')")
        try:
            with recording(ledger):
                self._train(training, "in_loop", "last", board)
        except BudgetSpent as error:
            stopped = str(error)
            self.say(f"budget: {error}")
        finally:
            if board is not None:
                board.close()
        rows = {"in_loop": self._row(training)}
        if stopped is None:
            rows |= self._references(resumed)
        return self._finish(training, rows, stopped, time.perf_counter() - start)

    def _train(self, training: Training, phase: str, checkpoint: str, board: TensorBoardLog | None) -> None:
        def save() -> None:
            self.folder.save_checkpoint(training.state(), checkpoint)
            if phase == "in_loop" and training.best == training.evaluation.get(f"test_{self.config.train.metric}"):
                self.folder.save_checkpoint(training.state(), "best")

        with Progress(phase, training, self.quiet) as progress:

            def report(row: Mapping[str, Any]) -> None:
                progress.show(row)
                if phase == "in_loop":
                    self.folder.log(row)
                    if board is not None:
                        board.log(row)

            try:
                training.run(report, save)
            except (RunStopped, KeyboardInterrupt):
                if training.can_be_saved:
                    self.folder.save_checkpoint(training.state(), checkpoint)
                raise

    # --- references --------------------------------------------------------------------------------------------

    def _references(self, resumed: bool) -> dict[str, dict[str, Any]]:
        wanted = self.config.references
        rows: dict[str, dict[str, Any]] = {}
        if "ideal" in wanted or "deployed" in wanted:
            chip = build_model(self.config, self.devices).to(self.config.where.host)
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
        if "physics_aware" in wanted:
            model = build_model(self.config, self.devices, credit="twin").to(self.config.where.host)
            rows["physics_aware"] = self._row(self._reference(model, "physics_aware", resumed))
        return rows

    def _reference(self, model: nn.Module, phase: str, resumed: bool) -> Training:
        ledger = Ledger()
        training = Training(self.config, model, self.data, ledger)
        if resumed and self.folder.has_checkpoint(phase):
            training.load_state(self.folder.load_checkpoint(phase))
        with recording(ledger):
            self._train(training, phase, phase, None)
        return training

    # --- results -----------------------------------------------------------------------------------------------

    def _row(self, training: Training) -> dict[str, Any]:
        score = training.evaluation.get(f"test_{self.config.train.metric}")
        return {"score": score, **_spent(training.ledger), "wall_seconds": training.seconds}

    def _finish(self, training: Training, rows: dict[str, Any], stopped: str | None, wall: float) -> dict[str, Any]:
        total = training.ledger.total
        summary: dict[str, Any] = {
            "accuracy": {name: row["score"] for name, row in rows.items()},
            "metric": self.config.train.metric,
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
        self.folder.finish(summary, "stopped" if stopped else "finished")
        if self.config.where.picture and draw_curves(self.folder.path) is None:
            self.say("no picture of the learning curves was drawn: matplotlib is not installed (pip install 'hzo-hil[plots]')")
        return summary


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
        return Tensors.of(dataset, config.where.host)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"where.host {config.where.host!r} cannot be used: {error}") from error


def _check_fit(config: Config, model: nn.Module, data: Tensors) -> None:
    """Find out that data and network do not fit before any device time is spent: run shapes through the host's parts."""
    first = opaques(model)[0]
    children = list(model.children())
    x = data.x_train[:2]
    for child in children:
        if child is first:
            width = first.network.width(0)
            if x.ndim < 2 or x.shape[-1] != width:
                raise ConfigError(
                    f"network: layer {first.name!r} takes [..., {width}], and gets {list(x.shape[1:])} per sample from data"
                    f" {config.data.name!r} and the layers before it. Put a host layer in between, or data.flatten: true"
                )
            return
        if any(True for _ in opaques(child)):
            return
        try:
            with torch.no_grad():
                x = child(x)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ConfigError(f"network: {child} does not take data of shape {list(x.shape[1:])} per sample: {error}") from error


def _folder(config: Config, resume: bool, force: bool) -> tuple[RunFolder, bool]:
    plain = config.model_dump(mode="json")
    if not resume:
        return RunFolder.create(config.where.run_dir, plain, force=force, where_fields=WHERE_SECTIONS), False
    place = config.where.run_dir or _latest(config)
    folder = RunFolder.open(place)
    if folder.about["what_hash"] != what_hash(plain, WHERE_SECTIONS):
        changed = differences(folder.config, plain, WHERE_SECTIONS)
        raise ConfigError(
            f"{place} was run with another configuration and cannot be resumed with this one:\n  " + "\n  ".join(changed)
            + "\nOnly the section 'where' may change. Start a new run, or resume with the folder's own config.yaml"
        )  # fmt: skip
    folder.mark("running")
    return folder, True


def _latest(config: Config) -> Path:
    what = what_hash(config.model_dump(mode="json"), WHERE_SECTIONS)
    found = []
    for path in Path("runs").glob(f"{config.name}-*/run.json"):
        folder = RunFolder.open(path.parent)
        if folder.about["what_hash"] == what and folder.status != "finished":
            found.append(path.parent)
    if not found:
        raise ConfigError(f"--resume: no unfinished run of this configuration under {Path('runs').resolve()}; give --run-dir")
    return max(found, key=lambda p: p.stat().st_mtime)


def _keep_device(folder: RunFolder, devices: Mapping[str, Device], resumed: bool, other_device: bool) -> None:
    """Write what the devices say of themselves; on resuming they must be the same ones."""
    here = {name: device.capabilities.identity for name, device in devices.items()}
    file = folder.path / "device.json"
    if resumed and file.is_file():
        import json

        before = json.loads(file.read_text(encoding="utf-8")).get("identity", {})
        if before != here and not other_device:
            raise ConfigError(
                f"{folder.path} was trained on {_named(before)} and would go on with {_named(here)}. Its parameters fit the first"
                " device's imperfections; if that is meant, add --other-device"
            )
    snapshots = {name: link_to(d).call(d.snapshot) for name, d in devices.items()}
    folder.write_device({"identity": here, "snapshot": snapshots})


def _named(identities: Mapping[str, str]) -> str:
    return ", ".join(f"{name}: {identity}" for name, identity in identities.items())
