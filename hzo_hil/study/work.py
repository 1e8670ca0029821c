"""One run of a study, in the process that does it: begin, run, settle. The same for every executor.

It is idempotent: a run whose result stands is not done again, whoever asks. Loads neither torch nor numpy itself.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hzo_hil import __version__
from hzo_hil.devices.errors import BadInput
from hzo_hil.study import place
from hzo_hil.study.runfolder import begin, read_result, settle, tell
from hzo_hil.study.target import target_of

LONGEST_ERROR = 2000

_one_at_a_time = threading.Lock()
"""A process trains one network at a time: ledgers and random states of libraries are the process's own."""
_doing: list[str] = []
"""The folder of the run that this process does."""


class OtherVersion(BadInput):
    """A worker has another version of this package."""


@dataclass(frozen=True)
class Task:
    """A run as it is handed to a worker: plain data. `folder` is absolute, the same path for every worker."""

    run: str
    axes: dict[str, Any]
    config: dict[str, Any]
    target: str
    folder: str
    threads: int
    version: str = __version__
    attempt: int = 1


def work(task: Task) -> dict[str, Any]:
    """Do the run and return its result; an error of the thing studied is a result, too. Raises OtherVersion."""
    if task.version != __version__:
        raise OtherVersion(f"worker {worker()} has hzo-hil {__version__}, the study {task.version}: install the same")
    with _one_at_a_time:
        _doing[:] = [task.folder]
        try:
            return _work(task)
        finally:
            _doing.clear()


def under_way() -> str | None:
    """The folder of the run that this process does."""
    return _doing[0] if _doing else None


@dataclass(frozen=True)
class Ability:
    """What a worker says of itself before it is given a run."""

    version: str
    sees_study: bool
    target_error: str | None


def ability(file: str, target: str) -> Ability:
    """Whether this process has the file that a study wrote, and can import what it studies."""
    try:
        target_of(target)
    except BadInput as error:
        return Ability(__version__, Path(file).is_file(), str(error))
    return Ability(__version__, Path(file).is_file(), None)


def worker() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _work(task: Task) -> dict[str, Any]:
    folder = Path(task.folder)
    standing = _standing(folder)
    if standing is not None:
        return standing
    begin(folder, task.config)
    who = {"by": worker(), "attempt": task.attempt}
    tell(folder, "started", **who)
    started = time.perf_counter()
    try:
        with place.at(folder), _captured(folder / "output.txt"):
            outcome: dict[str, Any] = {
                "status": "done",
                "metrics": target_of(task.target).numbers(_configured(task)),
            }
    except KeyboardInterrupt:
        tell(folder, "interrupted", **who)
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the thing studied does is this run's outcome
        outcome = {"status": "failed", "metrics": {}, **described(error)}
    result = {
        "run": task.run, **outcome, "axes": task.axes, "seconds": time.perf_counter() - started, **who,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "version": __version__,
    }  # fmt: skip
    standing = settle(folder, result)
    tell(folder, standing["status"], **who, **{k: result[k] for k in ("error", "error_type") if k in result})
    return standing


def described(error: BaseException) -> dict[str, str]:
    """An error as a result holds it."""
    return {"error": (str(error) or repr(error))[:LONGEST_ERROR], "error_type": type(error).__name__}


def _standing(folder: Path) -> dict[str, Any] | None:
    try:
        result = read_result(folder)
    except ValueError:
        return None
    return result if result is not None and result["status"] == "done" else None


def _configured(task: Task) -> dict[str, Any]:
    """The configuration with the threads of a run, where it has a place for them."""
    where = task.config.get("where")
    if not isinstance(where, dict) or "threads" not in where:
        return task.config
    return {**task.config, "where": {**where, "threads": task.threads}}


@contextmanager
def _captured(file: Path) -> Iterator[None]:
    """What the run prints goes into a file: the process does nothing else meanwhile."""
    with file.open("a", encoding="utf-8", errors="replace") as out, redirect_stdout(out), redirect_stderr(out):
        try:
            yield
        finally:
            sys.stdout.flush()
            empty = not out.tell()
    if empty:
        file.unlink(missing_ok=True)
