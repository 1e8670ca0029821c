"""Damaged frames and garbage into the firmware under sanitizers: the short form of `make fuzz; build/fuzz 10000000`."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.firmware.conftest import make, needs

FRAMES = 300_000


def test_no_bytes_break_the_parser(tmp_path: Path) -> None:
    needs("make", "gcc")
    make("fuzz", tmp_path)
    for seed in ("1", "2"):
        done = subprocess.run(
            [str(tmp_path / "fuzz"), str(FRAMES // 2), seed], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        counts = {int(k): int(v) for k, v in re.findall(r"status (\d): (\d+)", done.stdout)}
        # It got past the checksum to every refusal there is (5 is a fault, which this device never has).
        assert all(counts[k] > 0 for k in (0, 1, 2, 3, 4, 6, 7)), done.stdout
        run, bad = (int(re.search(rf"(\d+) {word}", done.stdout)[1]) for word in ("run", "bad"))  # type: ignore[index]
        assert run > FRAMES // 100
        assert bad > FRAMES // 10
