"""The costs that docs/choose.md states are those that `hzo-hil plan` counts, and what it names exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from hzo_hil.config import load_config
from hzo_hil.preview import preview

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "choose.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `hzo-hil plan ([^`]+)` \| ([\d, |]+) \|$", PAGE, flags=re.MULTILINE)


def test_there_are_rows_to_compare():
    assert len(ROWS) == 11


@pytest.mark.parametrize(("command", "figures"), ROWS, ids=[c for c, _ in ROWS])
def test_a_row_is_what_plan_counts(command, figures):
    words = shlex.split(command)
    assert words[1::2] == ["--set"] * (len(words) // 2)
    found = preview(load_config(ROOT / words[0], words[2::2]))
    (layer,) = found["layers"]
    told = [int(f.replace(",", "")) for f in figures.split("|")]
    step = found["step"]
    assert told == [
        layer["queries_per_sample"], layer["stage_evaluations_per_sample"], layer["queries_per_batch"],
        step["queries"], step["writes"],
    ]  # fmt: skip


def test_the_configurations_it_starts_from_exist():
    table = PAGE.split("## The same in figures")[0]
    named = set(re.findall(r"`([a-z]+_[a-z]+)`", table)) - {"max_batch", "codec_in", "codec_out"}
    assert {"onn_digits", "onn_blind", "emulator_digits"} <= named
    for name in named:
        assert (ROOT / "configs" / f"{name}.yaml").is_file(), name


def test_its_accuracies_are_those_of_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for figure in ("95.1 %", "95.9 %", "84.5 %", "94.8 %", "95.6 %", "21.0 %", "49.4 %", "90.0 %"):
        assert figure in PAGE
        assert figure in readme
