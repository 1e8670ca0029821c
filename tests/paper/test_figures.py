"""The short form of the paper's figures and theorems: each script runs whole, and leaves a result and what it drew."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PAPER = Path(__file__).resolve().parents[2] / "benchmarks" / "paper"
ITEMS = ("fig1", "fig4", "fig5", "theorems", "cosine")


def smoke(item: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PAPER / f"{item}.py"), "--smoke", "--out", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("item", ITEMS)
def test_each_item_writes_its_result_and_its_figure(item: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ended = smoke(item, tmp_path)
    assert ended.returncode == 0, ended.stderr
    result = json.loads((tmp_path / f"{item}.json").read_text(encoding="utf-8"))
    printed = [json.loads(line) for line in ended.stdout.splitlines()]
    assert result["rows"] == printed and result["smoke"] and result["parts"]
    assert (tmp_path / f"{item}.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / f"{item}.partial.json").exists()


def test_nothing_is_judged_by_a_smoke(tmp_path: Path) -> None:
    """Its sizes mean nothing, so no row of it claims to have met a target."""
    rows = [json.loads(line) for line in smoke("theorems", tmp_path).stdout.splitlines()]
    assert not any("ok" in row for row in rows)
