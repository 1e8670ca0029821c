"""A server in a process of its own, to be killed and stopped: `python -m tests.remote.zmq_parts URL LOG [a=b ...]`.

The log gets one line for each run ("boot name") and one for each parking.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from hzo_hil.devices.api import Reply
from tests.wire.hzo1_parts import WIDTH, Counting

ROOT = Path(__file__).resolve().parents[2]


class Logged(Counting):
    def __init__(self, file: Path, run_s: float = 0.0) -> None:
        super().__init__(longest_call_s=0.5)
        self.file, self.run_s, self.boot = file, run_s, os.getpid()

    def run(self, segment: Any, inputs: Any) -> Reply:
        self._note("".join(f"{self.boot} {name:g}\n" for name in inputs[:, 0]))
        time.sleep(self.run_s)
        return Reply(inputs @ self.w)

    def park(self) -> None:
        self._note("parked\n")
        self.w = np.zeros((WIDTH, WIDTH), np.float32)

    def _note(self, text: str) -> None:
        with self.file.open("a", encoding="utf-8") as out:
            out.write(text)


class Served:
    """A server process. `kill` as -9 does, `restart` on the same port."""

    def __init__(self, folder: Path, url: str = "tcp://127.0.0.1:0", **options: Any) -> None:
        self.log = folder / "runs.txt"
        self.options = options
        self.process, self.url = self._start(url)

    def _start(self, url: str) -> tuple[Any, str]:
        command = [sys.executable, "-m", "tests.remote.zmq_parts", url, str(self.log)]
        process = subprocess.Popen(
            [*command, *(f"{k}={v}" for k, v in self.options.items())], cwd=ROOT, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def restart(self) -> None:
        self.process, url = self._start(self.url)
        assert url == self.url

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def runs(self) -> Counter[str]:
        return Counter(line for line in self.text().splitlines() if line != "parked")

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *error: Any) -> None:
        if self.process.poll() is None:
            if hasattr(signal, "SIGCONT"):
                self.signal(signal.SIGCONT)
            self.kill()


def main() -> None:
    from hzo_hil.devices.server import Server

    url, log, *rest = sys.argv[1:]
    options = dict(r.split("=", 1) for r in rest)
    logging.basicConfig(level=logging.INFO)
    run_s = float(options.pop("run_s", 0.0))
    park = float(options.pop("park_after_s", 30.0))
    paths: Any = {k: Path(v) for k, v in options.items()}
    server = Server(Logged(Path(log), run_s), url, park_after_s=park, **paths)
    print(server.url, flush=True)
    server.serve()


if __name__ == "__main__":
    main()
