"""Runs on a Dask cluster: a scheduler that is there, one started on this machine, or one whose workers SLURM starts.

Dask hands out, hears heartbeats and begins again what a dead worker had; a worker that hangs is restarted through its
nanny. All workers must see the study's folder at the same path and have this version of the package.
"""

from __future__ import annotations

import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hzo_hil import __version__
from hzo_hil.devices.errors import BadInput, HzoError
from hzo_hil.study.executors import Lost, Result
from hzo_hil.study.processes import THREAD_VARIABLES, thread_variables
from hzo_hil.study.studyfile import ExecutorSection
from hzo_hil.study.table import needed
from hzo_hil.study.work import Ability, Task, ability, under_way, work

CONNECT_S = 5.0
RESTART_S = 30.0
ASK_S = 1.0
"""Between two looks at the workers."""


class Cluster:
    def __init__(self, section: ExecutorSection, study: Path, target: str, say: Callable[[str], None]) -> None:
        _load_dask()
        self._section = section
        self._study = study
        self._target = target
        self._say = say
        self._futures: dict[Future[Result], Any] = {}
        self._seen: dict[str, tuple[float, float]] = {}
        self._asked = 0.0
        self._restarting: set[str] = set()
        self._workers: dict[str, Any] = {}
        self._cluster = _cluster_of(section)
        try:
            self._client = _client_of(self._cluster, section)
            self._ask()
            self._check_workers(list(self._workers))
        except BaseException:
            self._close_cluster()
            raise
        say(f"Dask: {len(self._workers)} workers, dashboard {self._client.dashboard_link}")

    @property
    def slots(self) -> int:
        """One run a worker: its threads are for the run."""
        return len(self._workers)

    def submit(self, task: Task) -> Future[Result]:
        outer: Future[Result] = Future()
        key = f"hzo-{task.run[:16]}-{task.attempt}-{time.time_ns()}"
        inner = self._client.submit(work, task, key=key, pure=False)
        self._futures[outer] = inner
        inner.add_done_callback(lambda done: self._pass_on(done, outer))
        return outer

    def _pass_on(self, inner: Any, outer: Future[Result]) -> None:
        if self._futures.pop(outer, None) is None:  # ended, and already said so
            return
        try:
            result = inner.result()
        except Exception as error:  # noqa: BLE001 - Dask hands over what happened on the worker
            outer.set_exception(_in_words(error))
        else:
            outer.set_result(result)

    def end(self, future: Future[Result], why: str) -> None:
        inner = self._futures.pop(future, None)
        if inner is None:
            return
        workers = [w for w, keys in self._client.processing().items() if inner.key in keys]
        inner.cancel(force=True)
        future.set_exception(Lost(why))
        self._restart(workers)

    def look(self) -> None:
        """End the runs of workers whose heartbeat has stopped, and check the ability of new ones."""
        if time.monotonic() - self._asked < ASK_S:
            return
        before = set(self._workers)
        self._ask()
        self._check_workers([w for w in self._workers if w not in before])
        now = time.monotonic()
        for address, worker in list(self._workers.items()):
            seen, since = self._seen.get(address, (None, now))
            if worker["last_seen"] != seen:
                self._seen[address] = (worker["last_seen"], now)
            elif now - since > self._section.heartbeat_s:
                self._seen[address] = (worker["last_seen"], now)
                self._hung(address)

    def _hung(self, address: str) -> None:
        why = f"worker {address} has sent no heartbeat for {self._section.heartbeat_s:g} s"
        keys = set(self._client.processing().get(address, ()))
        held = [outer for outer, inner in list(self._futures.items()) if inner.key in keys]
        self._say(f"{why}: it is restarted")
        for outer in held:
            self.end(outer, why)
        if not held:
            self._restart([address])

    def _restart(self, addresses: list[str]) -> None:
        """Have nannies kill and start workers, without waiting. A worker without one is left to the scheduler."""
        for address in addresses:
            if self._workers.get(address, {}).get("nanny"):
                self._restarting.add(address)
                del self._workers[address]
                threading.Thread(target=self._restart_one, args=(address,), daemon=True).start()

    def _restart_one(self, address: str) -> None:
        with suppress(OSError, ValueError, RuntimeError, KeyError, TimeoutError):  # it is gone already, or we are
            self._client.restart_workers([address], timeout=RESTART_S, raise_for_error=False)
        self._restarting.discard(address)

    def interrupt(self) -> bool:
        """Workers of a cluster of our own end with it; others are restarted, so that they do nothing more for us."""
        if self._cluster is None:
            for future in list(self._futures):
                self.end(future, "the study was stopped")
        return False

    def close(self) -> None:
        self._futures.clear()
        self._client.close(timeout=CONNECT_S)
        self._close_cluster()

    def _close_cluster(self) -> None:
        if self._cluster is not None:
            self._cluster.close()

    # --- workers -----------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        self._asked = time.monotonic()
        try:
            found = self._client.scheduler_info(n_workers=-1)["workers"]
        except (OSError, TimeoutError) as error:
            raise HzoError(f"the Dask scheduler is lost ({error}): results are kept, go on with --resume") from error
        self._workers = {a: w for a, w in found.items() if a not in self._restarting}

    def _check_workers(self, addresses: list[str]) -> None:
        """Raise BadInput for workers that cannot do the study's runs; restart those that still do an earlier one's."""
        if not addresses:
            return
        file = str(self._study / "study.json")
        found = self._client.run(ability, file, self._target, workers=addresses, on_error="return")
        wrong = [f"{address}: {why}" for address, had in found.items() if (why := _unable(had, file))]
        if wrong:
            raise BadInput("workers cannot do this study:\n  " + "\n  ".join(wrong))
        runs = self._client.run(under_way, workers=addresses, on_error="ignore")
        ours = {future.key for future in self._futures.values()}
        if not ours:  # nobody else holds this study's lock: what they do was handed out by a process that is dead
            self._restart([a for a, run in runs.items() if run and Path(run).is_relative_to(self._study)])


def _unable(had: Ability | BaseException, file: str) -> str | None:
    if isinstance(had, ImportError):
        return f"hzo-hil is not installed there ({had}): install {__version__}"
    if isinstance(had, OSError):  # it went away
        return None
    if isinstance(had, BaseException):
        return f"it could not be asked ({type(had).__name__}: {had}): is hzo-hil {__version__} installed there?"
    if had.version != __version__:
        return f"it has hzo-hil {had.version}, and this is {__version__}: install the same"
    if not had.sees_study:
        return f"it does not see {file}: put the study on a file system that all workers share (--study-dir)"
    return had.target_error


def _in_words(error: Exception) -> HzoError:
    from asyncio import CancelledError

    from distributed import KilledWorker
    from distributed.comm.core import CommClosedError

    if isinstance(error, KilledWorker | CommClosedError | CancelledError):
        return Lost(f"its worker died: {error}")
    if isinstance(error, HzoError):
        return error
    return HzoError(f"a worker could not begin a run: {type(error).__name__}: {error}")


def _load_dask() -> None:
    """Import Dask with a log of errors only: what happens to runs is said by the study."""
    dask = needed("dask", "cluster")
    if "distributed" not in sys.modules:
        dask.config.set({"logging": {"distributed": "error", "bokeh": "error", "tornado": "critical"}})
    needed("distributed", "cluster")


# --- clusters --------------------------------------------------------------------------------------------------


def _cluster_of(section: ExecutorSection) -> Any:
    """A cluster of our own, or None where there is a scheduler already."""
    if section.scheduler is not None:
        return None
    import dask

    with (
        thread_variables(section.threads),
        dask.config.set({"distributed.scheduler.allowed-failures": section.retries}),
    ):
        if section.slurm is not None:
            return _slurm(section)
        from distributed import LocalCluster

        with _deaf_to_ctrl_c():
            return LocalCluster(
                n_workers=section.workers, threads_per_worker=1, processes=True, host="127.0.0.1",
                dashboard_address="127.0.0.1:0", silence_logs="ERROR",
            )  # fmt: skip


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes started meanwhile leave Ctrl-C to the one that conducts, and end with the cluster."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _slurm(section: ExecutorSection) -> Any:
    """Workers as jobs of SLURM. Raises BadInput where it takes the options for wrong ones, or is not there."""
    from dask_jobqueue.slurm import SLURMCluster

    if shutil.which("sbatch") is None:
        raise BadInput("executor.slurm: no sbatch on this machine; run the study on a login node of the cluster")
    options = dict(section.slurm or {})
    jobs = options.pop("jobs", 1)
    cores = options.get("cores", section.threads)
    exports = [f"export {name}={section.threads}" for name in THREAD_VARIABLES]
    given = {
        "cores": cores, "processes": max(1, cores // section.threads), "memory": "4GB", **options,
        "job_script_prologue": [*exports, *options.get("job_script_prologue", [])],
    }  # fmt: skip
    try:
        cluster = SLURMCluster(**given)
    except (TypeError, ValueError) as error:
        raise BadInput(f"executor.slurm: {error}") from error
    cluster.scale(jobs=jobs)
    return cluster


def _client_of(cluster: Any, section: ExecutorSection) -> Any:
    from distributed import Client

    if cluster is not None:
        return Client(cluster, set_as_default=False)  # what else this process does with Dask is its own
    try:
        return Client(section.scheduler, timeout=f"{CONNECT_S:g}s", set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise BadInput(
            f"no Dask scheduler answers at {section.scheduler} within {CONNECT_S:g} s ({type(error).__name__}:"
            f" {str(error).splitlines()[0] if str(error) else 'no answer'}). Start one with `dask scheduler`, and"
            f" workers with `dask worker {section.scheduler} --nthreads 1`; or leave --scheduler out"
        ) from error
