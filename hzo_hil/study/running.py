"""A whole study: from its plan to its table, new or resumed, on the executor that its file names."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hzo_hil.study.conducting import Conductor
from hzo_hil.study.executors import Executor
from hzo_hil.study.folder import Found, StudyFolder
from hzo_hil.study.planning import Study
from hzo_hil.study.progress import Progress
from hzo_hil.study.runfolder import State
from hzo_hil.study.studyfile import ExecutorSection
from hzo_hil.study.table import needed, write_parquet
from hzo_hil.study.work import Task


def run_study(study: Study, path: Path, *, resume: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Do every run that has no result yet, and compact the table. Returns counts.

    Runs that fail are recorded and stop nothing. Raises BadInput for a folder that holds something else, a scheduler
    that is not there, workers of another version; KeyboardInterrupt after Ctrl-C, with all results kept.
    """
    for module in ("pandas", "pyarrow"):  # before any run
        needed(module)
    started = time.perf_counter()
    folder = StudyFolder.take(path, study, resume)
    with folder.locked():
        folder.describe(study)
        found = folder.look(set_aside=True)
        for line in found.aside:
            say(line)
        tasks = [task for task in _tasks(study, folder) if found.states[task.run] is not State.DONE]
        try:
            if tasks:
                _conduct(study, folder, tasks, found, quiet)
        finally:
            write_parquet(folder)
        return {**counts(folder, folder.look()), "aside": found.aside, "seconds": time.perf_counter() - started}


def _conduct(study: Study, folder: StudyFolder, tasks: list[Task], found: Found, quiet: bool) -> None:
    section = study.section.executor
    with _executor(section, folder, study.section.target) as executor:
        progress = Progress(len(study.runs), found.count(State.DONE), quiet)
        try:
            Conductor(executor, progress, section.retries, section.timeout_s).conduct(tasks)
        finally:
            progress.close()


@contextmanager
def _executor(section: ExecutorSection, folder: StudyFolder, target: str) -> Iterator[Executor]:
    executor: Executor
    if section.scheduler is not None or section.dask or section.slurm is not None:
        from hzo_hil.study.cluster import Cluster

        executor = Cluster(section, folder.path, target, say)
    else:
        from hzo_hil.study.processes import Processes

        executor = Processes(workers_of(section), section.threads)
    try:
        yield executor
    finally:
        executor.close()


def workers_of(section: ExecutorSection) -> int:
    return section.workers or max(1, _cores() // section.threads)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tasks(study: Study, folder: StudyFolder) -> list[Task]:
    target, threads = study.section.target, study.section.executor.threads
    return [Task(p.run, p.axes, p.config, target, str(folder.run(p.run)), threads) for p in study.runs]


def counts(folder: StudyFolder, found: Found) -> dict[str, Any]:
    """How many runs there are of each state."""
    return {
        "study_dir": str(folder.path),
        "runs": len(found.states),
        "done": found.count(State.DONE),
        "failed": found.count(State.FAILED),
        "begun": found.count(State.BEGUN),
        "missing": found.count(State.MISSING),
        "corrupt": found.count(State.CORRUPT),
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
