"""The short form of `benchmarks/faults.py`: real processes killed, stopped and cut off while a network is trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs ptys and SIGSTOP")
def test_every_disturbed_run_ends_as_the_undisturbed_one() -> None:
    done = subprocess.run(
        [sys.executable, "faults.py", "--quick"],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    missed = [r["case"] for r in rows if not r.get("ok", True)]
    assert done.returncode == 0 and not missed, (missed, done.stderr[-2000:])
    assert sum("ok" in r for r in rows) == 7
