"""Runs in processes of this machine, each of which does many runs one after the other.

Every slot is a process pool of one, so that a process that dies takes no other run with it and is known.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress

from hzo_hil.interrupts import once
from hzo_hil.study.executors import Lost, Result
from hzo_hil.study.work import Task, work

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Processes:
    def __init__(self, workers: int, threads: int) -> None:
        self.slots = workers
        self._threads = threads
        self._free = [self._new() for _ in range(workers)]
        self._used: dict[Future[Result], _Slot] = {}

    def submit(self, task: Task) -> Future[Result]:
        slot = self._free.pop()
        outer: Future[Result] = Future()
        try:
            inner = slot.pool.submit(_work, task)
        except BrokenProcessPool:  # it died while it had nothing to do
            slot.pool.shutdown(wait=False)
            slot = self._new()
            inner = slot.pool.submit(_work, task)
        slot.ended = None
        self._used[outer] = slot
        inner.add_done_callback(lambda done: self._pass_on(done, outer))
        return outer

    def _pass_on(self, inner: Future[Result], outer: Future[Result]) -> None:
        slot = self._used.pop(outer)
        error = inner.exception() if not inner.cancelled() else Lost("it was cancelled")
        if isinstance(error, BrokenProcessPool):
            error = Lost(slot.ended or "its process died (killed, out of memory, or a crash in native code)")
            slot.pool.shutdown(wait=False)
            slot = self._new()
        self._free.append(slot)
        if error is not None:
            outer.set_exception(error)
        else:
            outer.set_result(inner.result())

    def end(self, future: Future[Result], why: str) -> None:
        slot = self._used.get(future)
        if slot is not None:
            slot.ended = why
            slot.kill()

    def look(self) -> None:
        """A process that dies is noticed by its pool."""

    def interrupt(self) -> bool:
        for slot in list(self._used.values()):
            slot.interrupt()
        return True

    def close(self) -> None:
        for slot in [*self._free, *self._used.values()]:
            slot.kill()
            slot.pool.shutdown(wait=False, cancel_futures=True)

    def _new(self) -> _Slot:
        return _Slot(self._threads)


class _Slot:
    """One process."""

    def __init__(self, threads: int) -> None:
        self.ended: str | None = None
        """Why its process was killed, where it was on purpose."""
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(1, mp_context=context, initializer=_prepare)
        with thread_variables(threads):  # a process reads it once, when its libraries load
            self._pid = self.pool.submit(os.getpid)

    def kill(self) -> None:
        for process in multiprocessing.active_children():
            if process.pid == self._number():
                process.kill()

    def interrupt(self) -> None:
        number = self._number()
        if os.name == "posix" and number is not None:
            with suppress(OSError):
                os.kill(number, signal.SIGINT)

    def _number(self) -> int | None:
        """Its process id, once it has started."""
        known = self._pid.done() and not self._pid.cancelled() and self._pid.exception() is None
        return self._pid.result() if known else None


@contextmanager
def thread_variables(threads: int) -> Iterator[None]:
    """Processes started meanwhile have libraries with so many threads."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# --- in the process --------------------------------------------------------------------------------------------


def _prepare() -> None:
    """Ctrl-C concerns a run, not the process between two; and the process dies with the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(task: Task) -> Result:
    signal.signal(signal.SIGINT, once)
    try:
        return work(task)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
