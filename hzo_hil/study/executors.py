"""What runs tasks: the contract that local processes and a cluster share.

`slots` tasks are under way at most. A future gives the result of `work`, or raises Lost where its worker died.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, Protocol

from hzo_hil.devices.errors import DeviceError
from hzo_hil.study.work import Task

Result = dict[str, Any]


class Lost(DeviceError):
    """The worker of a run died or hung; the run can be begun again."""


class Executor(Protocol):
    @property
    def slots(self) -> int:
        """How many tasks can be under way now."""
        ...

    def submit(self, task: Task) -> Future[Result]: ...

    def end(self, future: Future[Result], why: str) -> None:
        """Stop the worker of a run that hangs; its future raises Lost."""
        ...

    def look(self) -> None:
        """Called every now and then: find workers that hang."""
        ...

    def interrupt(self) -> bool:
        """Ask every run under way to stop and keep what it reached; whether that is worth waiting for."""
        ...

    def close(self) -> None:
        """Let all workers go, at once."""
        ...
