"""The loop of a study: hand out runs, hear what became of them, hand out again what was lost.

Knows no executor by name and writes no table. Runs on the same real device wait for each other.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from hzo_hil.study.addresses import addresses
from hzo_hil.study.executors import Executor, Lost, Result
from hzo_hil.study.runfolder import begin, settle, tell
from hzo_hil.study.work import Task, described

TICK_S = 0.5
STOP_S = 15.0
"""How long runs under way have to keep what they reached when a study is stopped."""


class Watcher(Protocol):
    """Who is shown what happens."""

    def started(self, slot: int, task: Task) -> None: ...
    def ended(self, slot: int, task: Task, result: Mapping[str, Any] | None) -> None: ...
    def tick(self) -> None: ...
    def say(self, text: str) -> None: ...


@dataclass
class _UnderWay:
    task: Task
    slot: int
    devices: frozenset[str]
    since: float = field(default_factory=time.monotonic)


class Conductor:
    def __init__(self, executor: Executor, watcher: Watcher, retries: int = 2, timeout_s: float | None = None) -> None:
        self._executor = executor
        self._watcher = watcher
        self._retries = retries
        self._timeout_s = timeout_s
        self._under_way: dict[Future[Result], _UnderWay] = {}

    def conduct(self, tasks: Iterable[Task]) -> None:
        """Every task once, whatever becomes of workers. Ctrl-C stops runs with what they reached, and raises."""
        waiting = list(tasks)[::-1]  # the next one last
        try:
            while waiting or self._under_way:
                self._hand_out(waiting)
                self._hear(waiting)
        except BaseException:
            self._stop()
            raise

    def _hand_out(self, waiting: list[Task]) -> None:
        place = len(waiting)
        while place and len(self._under_way) < self._executor.slots:
            place -= 1
            devices = addresses(waiting[place].config)
            if not any(devices & other.devices for other in self._under_way.values()):
                self._submit(waiting.pop(place), devices)

    def _submit(self, task: Task, devices: frozenset[str]) -> None:
        taken = {other.slot for other in self._under_way.values()}
        slot = next(n for n in range(len(taken) + 1) if n not in taken)
        self._under_way[self._executor.submit(task)] = _UnderWay(task, slot, devices)
        self._watcher.started(slot, task)

    def _hear(self, waiting: list[Task]) -> None:
        if not self._under_way:  # no worker yet
            time.sleep(TICK_S)
        done, _ = wait(self._under_way, timeout=TICK_S, return_when=FIRST_COMPLETED)
        for future in done:
            ended = self._under_way.pop(future)
            try:
                result = future.result()
            except Lost as error:
                self._lost(ended, error, waiting)
            else:
                self._watcher.ended(ended.slot, ended.task, result)
        for future, ended in self._under_way.items():
            if self._timeout_s is not None and time.monotonic() - ended.since > self._timeout_s:
                self._executor.end(future, f"it took longer than timeout_s ({self._timeout_s:g} s)")
        self._executor.look()
        self._watcher.tick()

    def _lost(self, ended: _UnderWay, error: Lost, waiting: list[Task]) -> None:
        task = ended.task
        folder = Path(task.folder)
        begin(folder, task.config)
        tell(folder, "lost", attempt=task.attempt, error=str(error))
        if task.attempt <= self._retries:
            self._watcher.say(f"run {task.run[:12]} was lost ({error}) and is begun again")
            self._watcher.ended(ended.slot, task, None)
            waiting.append(replace(task, attempt=task.attempt + 1))
            return
        why = Lost(f"lost {task.attempt} times, the last time because {error}")
        result = {
            "run": task.run, "status": "failed", "metrics": {}, "axes": task.axes, "attempt": task.attempt,
            **described(why), "version": task.version,
        }  # fmt: skip
        self._watcher.ended(ended.slot, task, settle(folder, result))

    def _stop(self) -> None:
        until = time.monotonic() + (STOP_S if self._executor.interrupt() else 0.0)
        while self._under_way and time.monotonic() < until:
            done, _ = wait(self._under_way, timeout=0.1, return_when=FIRST_COMPLETED)
            for future in done:
                self._under_way.pop(future)
