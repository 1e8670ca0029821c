"""What every test shares: one thread a process, repeatable property tests, a clean Python to run code in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

# Before numpy or torch load: parallel test workers would otherwise fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts a job in the background makes it ignore Ctrl-C, and so would every process tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

settings.register_profile(
    "repeatable", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("searching", parent=settings.get_profile("repeatable"), derandomize=False, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

PythonRunner = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def run_python() -> PythonRunner:
    """`run_python(code, *options, without=(), cwd=ROOT, timeout=120)`: code in a new Python lacking some modules.

    The result has `returncode`, `stdout` and `stderr`.
    """

    def run(
        code: str, *options: str, without: Sequence[str] = (), cwd: Path = ROOT, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        block = f"import sys\nfor name in {list(without)!r}: sys.modules[name] = None\n"
        command = [sys.executable, *options, "-c", block + code]
        return subprocess.run(
            command, cwd=cwd, timeout=timeout, capture_output=True, text=True, encoding="utf-8", check=False
        )

    return run
