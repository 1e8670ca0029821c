"""The run folder: everything a run leaves behind, in a layout with a version, safe against a crash at any moment.

    run.json            format version, when created, status, hash of what is run, version of hzo_hil
    config.yaml         the resolved configuration
    environment.json    Python, platform, package versions, threads, commit, command line
    device.json         the device's snapshot
    metrics.jsonl       one JSON object a line: `step`, and of `epoch`, `queries`, `loss`, `train_accuracy`,
                        `test_loss`, `test_accuracy`, ... what was measured; names ending in `_seconds` are a
                        clock's
    checkpoints/        last.pt, best.pt (see checkpoints.py)
    summary.json        the outcome
    curves.png          the learning curves (see picture.py)
    .lock               held by the process that writes (see holding.py)

Nothing in it depends on where it lies, so that the folder can be copied and resumed elsewhere. This module knows
neither the configuration's meaning nor the trainer.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import hzo_hil
from hzo_hil import checkpoints
from hzo_hil.compare import differences, what_hash
from hzo_hil.devices.errors import BadInput
from hzo_hil.environment import environment
from hzo_hil.holding import Hold
from hzo_hil.metricsfile import CLOCK_FIELDS, MetricsFile, is_clock_field, read_metrics, without_clock
from hzo_hil.picture import draw_curves
from hzo_hil.runfiles import RunFolderError, explained, plain, read_json, write_bytes, write_json
from hzo_hil.runplace import fresh_folder, given_folder, move_aside
from hzo_hil.tensorboard import TensorBoardLog

__all__ = [
    "CLOCK_FIELDS",
    "FORMAT",
    "RunFolder",
    "RunFolderError",
    "TensorBoardLog",
    "differences",
    "draw_curves",
    "is_clock_field",
    "read_metrics",
    "what_hash",
    "without_clock",
    "write_json",
]

FORMAT = 1
Status = Literal["running", "finished", "stopped", "failed"]
STATUSES = ("running", "finished", "stopped", "failed")


class RunFolder:
    """One run on the disk. Make one with `create` (a new run) or `open` (to resume or evaluate)."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path = path
        self.about = about
        self._metrics = MetricsFile(path / "metrics.jsonl")
        self._hold: Hold | None = None

    @classmethod
    def create(
        cls,
        path: str | Path | None,
        config: Mapping[str, Any],
        *,
        force: bool = False,
        where_fields: Collection[str] = (),
    ) -> RunFolder:
        """Begin a run and hold its folder. `path` of None is `runs/<name>-<date>-<time>-<hash>`, `name` being that of
        the configuration.

        A folder that is not empty is refused; with `force` an earlier run in it is moved to `earlier-<n>` inside it and
        other files are left alone. Sections named in `where_fields` stay out of the hash. Raises RunFolderError.
        """
        what = what_hash(config, where_fields)
        if path is None:
            folder = fresh_folder(Path("runs"), str(config.get("name") or "run"), what)
        else:
            folder = given_folder(Path(path), force)
        about = {
            "format": FORMAT,
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "status": "running",
            "what_hash": what,
            "hzo_hil": hzo_hil.__version__,
        }
        run = cls(folder, about)
        run.hold()
        try:
            move_aside(folder)
            with explained(folder, "make the folder checkpoints"):
                (folder / "checkpoints").mkdir(exist_ok=True)
            run._write_config(config)
            write_json(folder / "environment.json", environment())
            write_json(folder / "run.json", about)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open an existing run, also one whose process was killed. Raises RunFolderError for anything else."""
        path = Path(path)
        if not (path / "run.json").is_file():
            what = "has no run.json" if path.is_dir() else "is not there"
            raise RunFolderError(
                f"{path} is not a run folder: it {what}. Give the folder that the run printed as run_dir"
            )
        about = read_json(path / "run.json")
        version = about.get("format") if isinstance(about, dict) else None
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise RunFolderError(f"{path / 'run.json'} has no format version: it was not written by hzo-hil")
        if version > FORMAT:
            raise RunFolderError(
                f"run folder {path} has format {version} (made by hzo-hil {about.get('hzo_hil', '?')}); this is hzo-hil"
                f" {hzo_hil.__version__}, which reads formats up to {FORMAT}. Install that version or a newer one"
            )
        return cls(path, about)

    def hold(self) -> None:
        """Keep other processes from writing here until `close`. Raises RunFolderError where one of them does."""
        if self._hold is None:
            self._hold = Hold(self.path, "training")

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration as it was at the start."""
        import yaml

        file = self.path / "config.yaml"
        with explained(self.path, "read config.yaml"):
            text = file.read_text(encoding="utf-8")
        try:
            config = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RunFolderError(f"{file} is damaged: {error}") from error
        if not isinstance(config, dict):
            raise RunFolderError(f"{file} is damaged: it holds no fields")
        return config

    @property
    def status(self) -> str:
        """ "running" also after a kill: nothing was left to say otherwise."""
        return str(self.about.get("status"))

    def mark(self, status: Status) -> None:
        """Write down what has become of the run."""
        if status not in STATUSES:
            raise BadInput(f"run status {status!r} is none of {', '.join(STATUSES)}")
        self.about = {**self.about, "status": status}
        write_json(self.path / "run.json", self.about)

    def write_device(self, snapshot: Mapping[str, Any]) -> None:
        """Keep the device's snapshot as device.json."""
        write_json(self.path / "device.json", snapshot)

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row to the metrics. Give every row its `step`, or resuming cannot tell which rows to repeat."""
        self._metrics.log(row)

    def metrics(self) -> list[dict[str, Any]]:
        """The complete rows logged so far, oldest first."""
        return read_metrics(self.path / "metrics.jsonl")

    def truncate_metrics(self, step: int) -> int:
        """Drop the rows beyond `step`, the checkpoint's, before resuming. Returns how many."""
        return self._metrics.truncate(step)

    def save_checkpoint(self, state: Mapping[str, Any], name: str = "last") -> Path:
        """Save a state of tensors, numbers, strings, lists and dicts (see `checkpoints.save_checkpoint`)."""
        return checkpoints.save_checkpoint(self.path / "checkpoints", state, name)

    def load_checkpoint(self, name: str = "last") -> dict[str, Any]:
        """The newest complete state, on the CPU (see `checkpoints.load_checkpoint`)."""
        return checkpoints.load_checkpoint(self.path / "checkpoints", name)

    def has_checkpoint(self, name: str = "last") -> bool:
        return checkpoints.has_checkpoint(self.path / "checkpoints", name)

    def finish(self, summary: Mapping[str, Any], status: Status = "finished") -> None:
        """Write the summary, then the status, and close the metrics."""
        write_json(self.path / "summary.json", summary)
        self.mark(status)
        self.close()

    def close(self) -> None:
        self._metrics.close()
        if self._hold is not None:
            self._hold.release()
            self._hold = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_config(self, config: Mapping[str, Any]) -> None:
        import yaml

        text = yaml.safe_dump(plain(config, finite=False), sort_keys=False, allow_unicode=True)
        with explained(self.path, "write config.yaml"):
            write_bytes(self.path / "config.yaml", text.encode("utf-8"))
