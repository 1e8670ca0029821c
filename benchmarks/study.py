"""What a study costs beside its runs: overhead per run of each executor, bookkeeping of 10,000 runs, speed-up.

The same function of a configuration is called bare, in local processes and on a Dask cluster of this machine, in one
run of this script. Times per run are taken between events that the runs wrote, so that starting workers is in none of
them; it is printed apart. Bookkeeping: 10,000 runs that do nothing, so that all of the time is the study's own; its
share is stated of runs of one second. Peak memory is that of the process that conducts. Speed-up: runs that keep a core
busy, by two workers against by one.

`--quick`: 300 runs of bookkeeping, fewer runs of everything. `--bookkeeping`: that alone.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from _rows import Rows, arguments

os.environ.setdefault("OMP_NUM_THREADS", "1")

import psutil

from hzo_hil.study.planning import Study, plan_study
from hzo_hil.study.running import run_study
from hzo_hil.study.studyfile import StudySection

SECOND = 1.0


def nothing(config: dict[str, int]) -> dict[str, float]:
    return {"y": float(config["seed"])}


def busy(config: dict[str, int]) -> dict[str, float]:
    """Keeps one core busy for a fixed amount of arithmetic."""
    total = 0
    for n in range(config["work"]):
        total += n * n
    return {"y": float(total % 7)}


def study(function: str, runs: int, executor: dict[str, object], **config: int) -> Study:
    section = StudySection.model_validate(
        {"name": "bench", "target": f"study:{function}", "config": {"seed": 0, **config}, "executor": executor,
         "axes": {"seed": list(range(runs))}, "limit": runs}
    )  # fmt: skip
    return plan_study(section)


class Times:
    """When a study began, and when its runs started and were done."""

    def __init__(self, planned: Study) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.began = time.time()
            found = run_study(planned, Path(folder) / "study", quiet=True)
            self.ended = time.time()
            assert found["done"] == len(planned.runs), found
            files = [*(Path(folder) / "study").rglob("*.jsonl")]
            events = [json.loads(line) for file in files for line in file.read_text().splitlines()]
            self.bytes = sum(f.stat().st_size for f in (Path(folder) / "study").rglob("*") if f.is_file())
        self.started = sorted(e["time"] for e in events if e["event"] == "started")
        self.done = sorted(e["time"] for e in events if e["event"] == "done")

    def per_run(self, settled: int) -> float:
        """Seconds between two runs' ends, from the `settled`-th on: by then all workers are there."""
        return (self.done[-1] - self.done[settled]) / (len(self.done) - 1 - settled)

    @property
    def span(self) -> float:
        return self.done[-1] - self.started[0]


def overhead(rows: Rows, name: str, executor: dict[str, object], bare_s: float, runs: int) -> None:
    times = Times(study("nothing", runs, executor))
    each = 2 * times.per_run(runs // 3)  # of one worker of two
    rows.row(f"{name}: until the first run starts", times.started[0] - times.began, "s")
    rows.row(
        f"{name}: overhead per run", each - bare_s, "s", against="the bare function", bare=bare_s,
        share_of_a_second=each / (SECOND + each), runs=runs,
    )  # fmt: skip


def bookkeeping(rows: Rows, runs: int) -> None:
    """All of a study of runs that do nothing, from its plan to its table, beside as many runs of one second."""
    started, cpu = time.perf_counter(), time.process_time()
    planned = study("nothing", runs, {"workers": 2})
    planning = time.perf_counter() - started
    times = Times(planned)
    whole = planning + times.ended - times.began
    rows.row(
        f"bookkeeping of {runs:,} runs, 2 workers", whole / runs, "s per run", planning_s=planning, whole_s=whole,
        conducting_core_s=time.process_time() - cpu, folder_bytes=times.bytes,
    )  # fmt: skip
    share = whole / (runs * SECOND / 2 + whole)
    rows.row(f"share of the time of {runs:,} runs of 1 s on 2 workers", share, "fraction", target="<= 0.05")
    rows.row("peak memory of the conducting process", _peak() / 2**20, "MiB", target="<= 1024")


def _peak() -> int:
    """Bytes."""
    try:
        import resource
    except ImportError:  # Windows
        return int(psutil.Process().memory_info().peak_wset)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def speed_up(rows: Rows, name: str, executor: dict[str, object], runs: int, work: int, repeats: int) -> None:
    ratios = []
    for _ in range(repeats):
        one, two = (Times(study("busy", runs, {**executor, "workers": n}, work=work)).span for n in (1, 2))
        ratios.append(one / two)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else -1.0
    rows.row(
        f"{name}: speed-up of two workers", two, "s", against="one worker", ratio=statistics.median(ratios),
        target=">= 1.8", all=ratios, runs=runs, load_average=load,
    )  # fmt: skip


def main() -> None:
    given = arguments(__doc__, bookkeeping="only the bookkeeping of many runs")
    quick = given.quick
    rows = Rows()
    rows.environment()
    here = str(Path(__file__).resolve().parent)  # workers import this file as `study`
    os.environ["PYTHONPATH"] = os.pathsep.join([here, str(Path(here).parent), os.environ.get("PYTHONPATH", "")])
    if here not in sys.path:
        sys.path.insert(0, here)
    config = {"seed": 1}
    started = time.perf_counter()
    for _ in range(10_000):
        nothing(config)
    bare = (time.perf_counter() - started) / 10_000
    bookkeeping(rows, 300 if quick else 10_000)
    if not given.bookkeeping:
        runs = 100 if quick else 500
        places: dict[str, dict[str, object]] = {"processes": {}, "Dask on this machine": {"dask": True}}
        for name, executor in places.items():
            overhead(rows, name, {**executor, "workers": 2}, bare, runs)
            speed_up(rows, name, executor, 6 if quick else 12, 4_000_000 if quick else 20_000_000, 1 if quick else 5)
    rows.exit()


if __name__ == "__main__":
    main()
