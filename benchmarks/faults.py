"""A training run that is disturbed must end with the parameters of one that is not, bit for bit (noise off).

Server killed with -9 and restarted; messages dropped, doubled, delayed, overtaken; bytes of a serial line changed,
lost, invented; a pool of three that loses two; and how long it takes to notice a device that hangs. Each row says
whether the parameters are equal and how many queries ran twice within one boot of the device, of all that it logged. A
last case kills the host and reads in the device's log when it was parked. `--quick`: fewer kills and steps. POSIX only
(pty, SIGSTOP).
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import _one_thread  # noqa: F401
import torch
from _cable import Cable
from _fault_ends import DEVICE, Process, served_twice
from _rows import ROOT, Rows, arguments

import hzo_hil
from hzo_hil.devices.api import Device
from hzo_hil.link import link_to
from hzo_hil.updates.delta import DeltaRule


def train(device: Device, steps: int, each: Callable[[int], None] = lambda _: None) -> list[torch.Tensor]:
    """Parameters after some steps of a regression on a two-stage network."""
    torch.manual_seed(0)
    stages = [hzo_hil.Stage(device, 0, leaf=DeltaRule("tanh")), hzo_hil.Stage(device, 1, leaf=DeltaRule("identity"))]
    model = hzo_hil.Opaque(stages, tree="chain", eps=0.01, seed=1)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    goal = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Tanh())
    try:
        for step in range(steps):
            each(step)
            x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
            optimiser.zero_grad()
            ((model(x) - goal(x).detach()) ** 2).mean().backward()
            optimiser.step()
        return [p.detach().clone() for p in model.parameters()]
    finally:
        link_to(device).close()


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Campaign:
    def __init__(self, rows: Rows, folder: Path, steps: int, kills: int) -> None:
        self.rows, self.folder, self.steps, self.kills = rows, folder, steps, kills
        self.undisturbed = train(hzo_hil.open_device(DEVICE), steps)

    def judge(self, case: str, found: list[torch.Tensor], logs: list[Path], start: float, **more: Any) -> None:
        ran, boots, twice = (sum(v) for v in zip(*map(served_twice, logs), strict=True))
        right = int(same(found, self.undisturbed)) if twice == 0 else 0
        self.rows.row(
            case, right, "equal parameters, no query run twice in a boot", target="== 1", queries_run=ran, boots=boots,
            run_twice=twice, seconds=time.perf_counter() - start, **more,
        )  # fmt: skip

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    # --- cases -------------------------------------------------------------------------------------------------

    def killed(self) -> None:
        log, bind = self.log("killed"), f"tcp://127.0.0.1:{_free_port()}"
        server = Process("serve", str(log), bind)
        when = {round((k + 0.5) * self.steps / self.kills) for k in range(self.kills)}
        threads = []

        def strike(delay: float) -> None:
            time.sleep(delay)  # somewhere inside the step
            server.kill()
            server.start()

        def each(step: int) -> None:
            if step in when:
                threads.append(threading.Thread(target=strike, args=(0.003 * (step % 7),)))
                threads[-1].start()
            if step - 1 in when:
                threads[-1].join()

        start = time.perf_counter()
        device = hzo_hil.open_device({"url": f"zmq+{bind}", "options": {"ping_s": 0.2}})
        found = train(device, self.steps, each)
        server.kill()
        self.judge(f"server killed {len(threads)} times", found, [log], start, **_counters(device))

    def lossy(self) -> None:
        log = self.log("lossy")
        server = Process("serve", str(log), "tcp://127.0.0.1:0")
        way = Process("chaos", server.url, "0.05", "1")
        start = time.perf_counter()
        try:
            device = hzo_hil.open_device({"url": way.url, "options": {"ping_s": 0.2}})
            found = train(device, self.steps)
        finally:
            server.kill()
            way.kill()
        self.judge("5 % each of messages lost, doubled, delayed, overtaken", found, [log], start, **_counters(device))

    def serial(self) -> None:
        log = self.log("serial")
        with Cable(noise=1e-3, seed=2) as cable:
            server = Process("serve", str(log), f"serial://{cable.device}")
            start = time.perf_counter()
            try:
                device = hzo_hil.open_device(f"serial://{cable.host}")
                found = train(device, max(2, self.steps // 20))
            finally:
                server.kill()
        kept, self.undisturbed = self.undisturbed, train(hzo_hil.open_device(DEVICE), max(2, self.steps // 20))
        self.judge("1e-3 of serial bytes changed, lost or invented", found, [log], start, **_counters(device))
        self.undisturbed = kept

    def pool(self) -> None:
        logs = [self.log(f"pool{k}") for k in range(3)]
        servers = [Process("serve", str(log), "tcp://127.0.0.1:0") for log in logs]
        members = [{"url": s.url, "options": {"ping_s": 0.2}} for s in servers]
        gone = {self.steps // 3: servers[0], 2 * self.steps // 3: servers[2]}
        start = time.perf_counter()
        device = hzo_hil.open_device({"members": members})
        try:
            found = train(device, self.steps, lambda step: gone[step].kill() if step in gone else None)
        finally:
            for server in servers:
                server.kill()
        self.judge("an identical pool of 3 loses 2", found, logs, start)

    def hung(self) -> None:
        server = Process("serve", str(self.log("hung")), "tcp://127.0.0.1:0")
        heard: list[float] = []

        class Listen(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                heard.append(time.monotonic())

        logging.getLogger("hzo_hil.link").addHandler(Listen())
        frozen: list[float] = []

        def each(step: int) -> None:
            if step == 3:
                os.kill(server.process.pid, signal.SIGSTOP)
                frozen.append(time.monotonic())
                threading.Timer(6.0, os.kill, (server.process.pid, signal.SIGCONT)).start()

        start = time.perf_counter()
        device = hzo_hil.open_device({"url": server.url, "options": {"ping_s": 0.2}})
        found = train(device, self.steps, each)
        server.kill()
        self.judge("device stopped for 6 s", found, [self.log("hung")], start, **_counters(device))
        longest = DEVICE["longest_call_s"]
        self.rows.row(
            "noticed that a device hangs, beyond its longest call", heard[0] - frozen[0] - longest, "s", target="<= 2"
        )

    def host_killed(self) -> None:
        log = self.log("host_killed")
        server = Process("serve", str(log), "tcp://127.0.0.1:0")
        script = (
            f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'benchmarks')!r}]; import hzo_hil, faults;"
            f" faults.train(hzo_hil.open_device({server.url!r}), 10**6, lambda s: print(s, flush=True))"
        )
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as host:
            assert host.stdout is not None
            while host.stdout.readline().strip() != "20":
                pass
            host.kill()
        killed, parked = time.monotonic(), None
        while parked is None and time.monotonic() - killed < 20:
            time.sleep(0.1)
            for line in log.read_text(encoding="utf-8").splitlines():
                if " parked " in line:
                    parked = float(line.split()[2]) - killed
        server.kill()
        self.rows.row(
            "host killed: parked, by the device's own log (park_after_s 3)", parked or 99.0, "s", target="<= 3.5"
        )


def _counters(device: Any) -> dict[str, int]:
    return {k: v for k, v in device.counters.items() if v}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    given = arguments(__doc__)
    rows = Rows()
    with tempfile.TemporaryDirectory() as folder, suppress(KeyboardInterrupt):
        campaign = Campaign(rows, Path(folder), *((60, 4) if given.quick else (400, 20)))
        for case in ("killed", "lossy", "serial", "pool", "hung", "host_killed"):
            getattr(campaign, case)()
    rows.environment()
    rows.exit()


if __name__ == "__main__":
    logging.getLogger("hzo_hil").setLevel(logging.WARNING)
    main()
