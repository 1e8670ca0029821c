"""Every item of `benchmarks/paper` runs in its short form and leaves a whole result and a figure."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PAPER = Path(__file__).resolve().parents[2] / "benchmarks" / "paper"
ITEMS = sorted(p.stem for p in PAPER.glob("[!_]*.py"))
KEYS = {"item", "command", "smoke", "config", "seeds", "commit", "hardware", "wall_seconds", "ledger", "rows", "parts"}


@pytest.mark.slow
@pytest.mark.parametrize("item", ITEMS)
def test_a_smoke_leaves_a_whole_result_and_a_figure(item: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, f"{item}.py", "--smoke", "--out", str(tmp_path)],
        cwd=PAPER,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{item}.json", f"{item}.png"]
    kept = json.loads((tmp_path / f"{item}.json").read_text(encoding="utf-8"))
    assert set(kept) >= KEYS and kept["smoke"] and kept["parts"]
    assert kept["command"] == f"python benchmarks/paper/{item}.py --smoke --seeds {len(kept['seeds'])}"
    assert [json.loads(line) for line in done.stdout.splitlines()] == kept["rows"]
    assert kept["wall_seconds"] == pytest.approx(sum(p["wall_seconds"] for p in kept["parts"].values()), abs=0.01)
    assert all(math.isfinite(v) for v in numbers(kept["rows"])) and numbers(kept["rows"])


def numbers(value: Any) -> list[float]:
    return list(_numbers(value))


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (int, float)):
        yield float(value)
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _numbers(item)
