"""A Dask cluster that loses workers loses no run and does none twice; one that cannot do the study is refused."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from hzo_hil.study.runfolder import read_result
from tests.study.conftest import Lab, doing, environment, events, values, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="stops and kills processes"),
]


class Dask:
    """A scheduler and workers, each a process of its own."""

    def __init__(self, path: Path) -> None:
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        self.path = path
        self.processes = [self.start("scheduler", "--host", self.address, "--no-dashboard")]

    def start(self, *arguments: str, **more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "distributed.cli.dask_" + arguments[0].replace("-", "_"), *arguments[1:]]
        return subprocess.Popen(
            command, cwd=self.path, env={**environment(), **more}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def workers(self, number: int, **more: str) -> None:
        options = ["--nworkers", str(number), "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1"]
        path = os.pathsep.join([str(self.path), environment()["PYTHONPATH"]])
        self.processes.append(self.start("worker", self.address, *options, **{"PYTHONPATH": path, **more}))
        self.wait_for_workers(number)

    def wait_for_workers(self, number: int) -> None:
        from distributed import Client

        with Client(self.address, timeout="30s", set_as_default=False) as client:
            client.wait_for_workers(number, timeout=60)

    def close(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def dask(tmp_path: Path) -> Iterator[Dask]:
    cluster = Dask(tmp_path)
    yield cluster
    cluster.close()


def test_three_workers_one_killed_and_one_hung(lab: Lab, dask: Dask) -> None:
    axes = {"x": {"field": "options.x", "values": [0.1 * n for n in range(8)]}, "seed": [0, 1, 2]}
    file = lab.study(axes=axes, config={"pause_s": 0.7}, executor={"heartbeat_s": 4})
    assert lab.run(file, "--study-dir", "left_alone", "--workers", 2, "--set", "pause_s=0.7").returncode == 0
    (lab.path / "log").unlink()
    dask.workers(3)
    process = lab.start(file, "--study-dir", "disturbed", "--scheduler", dask.address, "--json")
    folder = lab.path / "disturbed"
    wait_for(lambda: sum(events(folder, "done").values()) >= 2)
    wait_for(lambda: len(doing(folder)) == 3)
    killed, hung, _ = doing(folder)
    os.kill(hung, signal.SIGSTOP)
    os.kill(killed, signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["done"] == 24
    assert "no heartbeat" in err
    assert values(folder) == values(lab.path / "left_alone")
    assert set(events(folder, "done").values()) == {1}
    assert max(lab.times_run.values()) == 1
    attempts = [read_result(p)["by"] for p in folder.glob("runs/*")]
    assert len(set(attempts)) >= 3


def test_a_resumed_study_stops_what_workers_of_its_dead_process_still_do(lab: Lab, dask: Dask) -> None:
    file = lab.study(config={"pause_s": 3.0}, axes={"seed": [0, 1, 2, 3]})
    dask.workers(2)
    process = lab.start(file, "--scheduler", dask.address)
    folder = lab.path / "studies/study"
    wait_for(lambda: len(doing(folder)) == 2)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    last = lab.run(file, "--resume", "--scheduler", dask.address)
    assert last.returncode == 0, last.stderr
    assert sorted(lab.times_run.values()) == [1, 1, 1, 1]


def test_no_scheduler_is_said_within_seconds(lab: Lab, hzo) -> None:
    started = time.monotonic()
    result = hzo("study", lab.study(), "--scheduler", "tcp://127.0.0.1:1")
    assert result.status == 2
    assert "no Dask scheduler answers at tcp://127.0.0.1:1" in result.err
    assert "dask scheduler" in result.err
    assert time.monotonic() - started < 20


def test_workers_with_another_version_are_refused_before_any_run(lab: Lab, dask: Dask, hzo, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "hzo_hil").mkdir(parents=True)
    root = environment()["PYTHONPATH"]
    (other / "hzo_hil" / "__init__.py").write_text(
        f"__path__.append({root + '/hzo_hil'!r}); __path__.append({root!r})\n"
        "__version__ = '0.0.9'\nfrom importlib import import_module\n"
    )
    dask.workers(1, PYTHONPATH=os.pathsep.join([str(other), str(tmp_path)]))
    result = hzo("study", lab.study(), "--scheduler", dask.address)
    assert result.status == 2
    assert "0.0.9" in result.err
    assert "install the same" in result.err
    assert not lab.times_run


def test_workers_without_the_package_are_refused(lab: Lab, dask: Dask, hzo, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    (empty / "hzo_hil").mkdir(parents=True)
    (empty / "hzo_hil" / "__init__.py").write_text("raise ModuleNotFoundError('No module named hzo_hil')\n")
    dask.workers(1, PYTHONPATH=str(empty))
    result = hzo("study", lab.study(), "--scheduler", dask.address)
    assert result.status == 2
    assert "installed there" in result.err


def test_a_cluster_on_this_machine(lab: Lab, hzo) -> None:
    file = lab.study("threads", executor={"dask": True, "workers": 2, "threads": 2}, axes={"seed": [0, 1, 2, 3]})
    result = hzo("study", file, "--json")
    assert result.status == 0, result.err
    assert {row["n"] for row in values(lab.path / "studies/study")} == {2}
    assert "dashboard" in result.err


def test_workers_that_slurm_starts(lab: Lab, hzo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sbatch is a stand-in that starts the job script here: no SLURM is behind it."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sbatch").write_text(
        f'#!/bin/sh\ncp "$1" {tmp_path}/job.sh\nsetsid sh {tmp_path}/job.sh >{tmp_path}/job.log 2>&1 &\n'
        "echo $! >" + f'{tmp_path}/job.pid\necho "Submitted batch job 7"\n'
    )
    (tools / "scancel").write_text(f"#!/bin/sh\nkill -- -$(cat {tmp_path}/job.pid) 2>/dev/null\nexit 0\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tools), os.environ["PATH"]]))
    slurm = {"jobs": 1, "cores": 2, "memory": "1GB", "queue": "short", "interface": "lo"}
    result = hzo("study", lab.study(executor={"slurm": slurm}), "--json")
    assert result.status == 0, result.err
    assert result.json["done"] == 3
    script = (tmp_path / "job.sh").read_text(encoding="utf-8")
    assert "#SBATCH -p short" in script
    assert "export OMP_NUM_THREADS=1" in script


def test_slurm_that_is_not_there(lab: Lab, hzo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    result = hzo("study", lab.study(executor={"slurm": {"jobs": 1, "memory": "1GB", "interface": "lo"}}))
    assert result.status == 2
    assert "sbatch" in result.err
