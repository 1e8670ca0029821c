"""Every example runs as a user runs it, on less work, and says what it should."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


def output_of(name: str) -> str:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "HZO_EXAMPLE_QUICK": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
    }
    ended = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=200,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_own_loop_learns_digits_on_the_chip():
    found = re.fullmatch(r"test accuracy (0\.\d+) after 1 epochs and ([\d,]+) queries\n", output_of("own_loop.py"))
    assert found is not None
    assert float(found[1]) > 0.3  # guessing: 0.1
    assert int(found[2].replace(",", "")) > 10_000


def test_partly_on_chip_learns_on_both_sides():
    pattern = r"test accuracy (0\.\d+); ([\d,]+) of ([\d,]+) parameters on the chip\n"
    found = re.fullmatch(pattern, output_of("partly_on_chip.py"))
    assert found is not None
    assert float(found[1]) > 0.3
    on_chip, total = (int(n.replace(",", "")) for n in found.groups()[1:])
    assert on_chip == 3 * (32 * 32 + 32)
    assert total == on_chip + (64 * 32 + 32) + (32 * 10 + 10)


def test_my_instrument_is_trained_by_probing_its_parameters():
    found = re.fullmatch(
        r"mean squared error ([\d.]+) at first, ([\d.]+) after 5 steps; (\d+) writes\n", output_of("my_instrument.py")
    )
    assert found is not None
    assert float(found[2]) < float(found[1])
    assert int(found[3]) == 5 * (1 + 2 * 6)


def test_no_taps_asks_stage_by_stage():
    lines = output_of("no_taps.py").splitlines()
    assert len(lines) == 7
    forward = {tuple(line.split()[:2]): int(line.split()[2].replace(",", "")) for line in lines[1:]}
    # Four meshes with three activations between them: seven stages, each asked of eight samples.
    assert {t: forward[t, "chain"] for t in ("True", "False")} == {"True": 8, "False": 7 * 8}


def test_bench_function_trains_a_callable():
    found = re.fullmatch(
        r"mean squared error ([\d.]+) at first, ([\d.]+) after 10 steps\n", output_of("bench_function.py")
    )
    assert found is not None
    assert float(found[2]) < 0.7 * float(found[1])


def test_record_replay_reaches_the_same_parameters_and_finds_the_first_difference():
    lines = output_of("record_replay.py").splitlines()
    assert len(lines) == 4 and lines[0].startswith("recorded ")
    assert lines[1:3] == ["replayed: same parameters to the bit: True", "another session in the lab: False"]
    assert re.match(
        r"with another learning rate: call \d+ asks a write of stage 0 .* differ in 6 of 6 values", lines[3]
    )


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.name)
def test_every_example_says_what_it_is_for(path):
    assert path.read_text(encoding="utf-8").startswith('"""')
