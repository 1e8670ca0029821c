"""A lab's own test file, in pytest as the lab runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hzo_hil.devices.conformance import NAMES

ROOT = Path(__file__).resolve().parent.parent.parent
FILE = """
import pytest
from hzo_hil.devices.fake import FakeDevice, Script
from hzo_hil.devices.conformance.as_pytest import *

@pytest.fixture
def device_source():
    return lambda: {source}

@pytest.fixture
def device_check_options():
    return {{"quick": True}}
"""


def run(tmp_path: Path, source: str) -> str:
    (tmp_path / "test_bench.py").write_text(FILE.format(source=source), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "test_bench.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", timeout=120, check=False
    )
    return done.stdout


def test_a_sound_device_gives_one_test_a_check(tmp_path):
    said = run(tmp_path, "FakeDevice.mlp([3, 2])")
    assert "failed" not in said
    passed, skipped = (int(said.rsplit(f" {w}", 1)[0].split()[-1]) for w in ("passed", "skipped"))
    assert passed + skipped == len(NAMES)
    assert "capability taps is not declared" in said


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("FakeDevice.mlp([3, 2], script=Script(always_nan=True))", "narrow low/high of the boundary"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_broken_device_fails_with_what_to_change(tmp_path, source, text):
    said = run(tmp_path, source)
    assert "failed" in said
    assert text in said
