"""Millions of mutated messages and frames into every parser: each must refuse or answer, within its limits, and go on.

Rows say how many each took and how much memory it came to need. Python's run in processes of their own, each with an
address space limited to 2 GiB (so that an allocation a sender asked for is a crash) and an alarm that ends a hang; the
firmware's is built with address and undefined-behaviour sanitizers. `--quick`: 20,000 each instead of 10 million.
`--only NAME`, several times: one parser.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time

from _rows import ROOT, Rows

FULL, SHORT = 10_000_000, 20_000
PARTS = 20
"""Each parser's messages are given in so many turns with seeds of their own."""

PYTHON = {
    "HZO/1 decode": ("tests.wire.fuzz_hzo1", "decode"),
    "HZO/1 host": ("tests.wire.fuzz_hzo1", "host"),
    "HZO/1 device": ("tests.wire.fuzz_hzo1", "served"),
    "HZO/1 server": ("tests.wire.fuzz_hzo1", "server"),
    "HZO-S/1 frames": ("tests.wire.fuzz_hzos", "splitter"),
    "HZO-S/1 device": ("tests.wire.fuzz_hzos", "served"),
    "HZO-S/1 host": ("tests.wire.fuzz_hzos", "host"),
}
FIRMWARE = "HZO-S/1 firmware"

FEED = """
import resource, signal, sys
from {module} import fuzz
from hzo_hil.devices import server  # loaded before the limit
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for seed in range({parts}):
    signal.alarm(900)
    fuzz({count}, seed, ({parser!r},))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="20,000 each")
    parser.add_argument("--only", action="append", choices=[*PYTHON, FIRMWARE], help="one parser; may be repeated")
    given = parser.parse_args()
    count = SHORT if given.quick else FULL
    rows = Rows()
    for name in given.only or [*PYTHON, FIRMWARE]:
        start = time.perf_counter()
        failure, detail = firmware(count) if name == FIRMWARE else python(*PYTHON[name], count)
        seconds = time.perf_counter() - start
        rows.row(
            name, 0 if failure else count, "mutated inputs survived", target=f">= {count}", seconds=seconds, **detail
        )
        if failure:
            print(failure, file=sys.stderr)
    rows.environment()
    rows.exit()


def python(module: str, parser: str, count: int) -> tuple[str, dict[str, object]]:
    code = FEED.format(module=module, parser=parser, count=count // PARTS, parts=PARTS)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return done.stderr or f"ended by signal {-done.returncode}", {}
    return "", {"grew_by_kib": int(done.stdout)}


def firmware(count: int) -> tuple[str, dict[str, object]]:
    source = ROOT / "devices" / "firmware"
    with tempfile.TemporaryDirectory() as folder:
        made = subprocess.run(
            ["make", "-C", str(source), f"BUILD={folder}", "fuzz"], capture_output=True, text=True, check=False
        )
        if made.returncode:
            return made.stderr, {}
        done = subprocess.run([f"{folder}/fuzz", str(count), "1"], capture_output=True, text=True, check=False)
    return ("" if not done.returncode else done.stderr), {"sanitizers": "address, undefined"}


if __name__ == "__main__":
    main()
