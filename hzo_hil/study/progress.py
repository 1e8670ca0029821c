"""What a study shows while it runs, on standard error: a line a worker, totals, time left.

Without a terminal: a plain line now and then. Quiet where nobody watches.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from hzo_hil.study.work import Task

LINES = 16
"""Workers beyond these are not shown, only counted."""
EVERY_S = 10.0
"""Between two plain lines."""


class Progress:
    def __init__(self, total: int, done: int, quiet: bool) -> None:
        self._total = total
        self._before = done
        self._done = done
        self._failed = 0
        self._quiet = quiet
        self._began = time.monotonic()
        self._said = 0.0
        self._running: dict[int, tuple[Task, float]] = {}
        self._bar: Any = None
        self._lines: dict[int, Any] = {}
        if not quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc="study", unit="run", dynamic_ncols=True)

    # --- what is told ------------------------------------------------------------------------------------------

    def started(self, slot: int, task: Task) -> None:
        self._running[slot] = (task, time.monotonic())
        self._show(slot)

    def ended(self, slot: int, task: Task, result: Mapping[str, Any] | None) -> None:
        """`result` of None: the run was lost and is not over."""
        self._running.pop(slot, None)
        if result is not None:
            self._done += 1
            if result["status"] == "failed":
                self._failed += 1
                self.say(f"failed: {named(task)}: {result.get('error_type')}: {first_line(result.get('error', ''))}")
        if self._bar is not None:
            self._bar.set_postfix({"failed": self._failed} if self._failed else {}, refresh=False)
            self._bar.update(self._done - self._bar.n)
        self._show(slot)

    def tick(self) -> None:
        for slot in list(self._running):
            self._show(slot)
        if self._bar is not None:
            self._bar.refresh()
        elif not self._quiet and time.monotonic() - self._said > EVERY_S:
            self._said = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        for line in self._lines.values():
            line.close()
        if self._bar is not None:
            self._bar.close()

    # --- how ---------------------------------------------------------------------------------------------------

    def _show(self, slot: int) -> None:
        if self._bar is None or slot >= LINES:
            return
        if slot not in self._lines:
            from tqdm import tqdm

            self._lines[slot] = tqdm(bar_format="{desc}", position=slot + 1, leave=False, dynamic_ncols=True)
        task, since = self._running.get(slot, (None, 0.0))
        doing = "idle" if task is None else f"{time.monotonic() - since:5.0f} s  {named(task)}"
        self._lines[slot].set_description_str(f"  worker {slot + 1}: {doing}")

    def _line(self) -> str:
        left = self._seconds_left()
        rest = f", about {duration(left)} left" if left is not None else ""
        failed = f", {self._failed} failed" if self._failed else ""
        return f"study: {self._done} of {self._total} runs, {len(self._running)} under way{failed}{rest}"

    def _seconds_left(self) -> float | None:
        here = self._done - self._before
        passed = time.monotonic() - self._began
        return passed / here * (self._total - self._done) if here else None


def named(task: Task) -> str:
    """A run as people know it."""
    return f"{task.run[:8]} " + " ".join(f"{name}={_short(level)}" for name, level in task.axes.items())


def _short(level: Any) -> str:
    return f"{level:.4g}" if isinstance(level, float) else str(level)


def first_line(text: str) -> str:
    return (text.splitlines() or [""])[0][:200]


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
