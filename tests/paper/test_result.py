"""The shared writer of `benchmarks/paper`: parts are measured once, whatever stops a run, and never mixed up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _result import Result, begun

from hzo_hil import Opaque
from hzo_hil.devices.adapters.function import FunctionDevice

FULL = {"seeds": 2, "width": 3}
SMOKE = {"seeds": 1}


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def start(*flags: str, **changed: Any) -> Result:
        monkeypatch.setattr(sys, "argv", ["item.py", "--out", str(tmp_path), *flags])
        return begun("item", "An item.\n", FULL | changed, SMOKE)

    return start


def finished(result: Result, folder: Path, status: int = 0) -> dict[str, Any]:
    with pytest.raises(SystemExit) as ended:
        result.finish(lambda figure: figure.subplots().plot([1, 2]))
    assert ended.value.code == status
    return json.loads((folder / "item.json").read_text(encoding="utf-8"))


def test_a_run_that_was_stopped_measures_only_what_is_missing(start: Any, tmp_path: Path) -> None:
    start().part("a/0", lambda: {"value": np.float64(1.5)})
    again = start()
    assert again.part("a/0", lambda: pytest.fail("measured twice")) == {"value": 1.5}
    again.part("a/1", lambda: {"value": float("nan")})
    kept = finished(again, tmp_path)
    assert {name: part["found"]["value"] for name, part in kept["parts"].items()} == {"a/0": 1.5, "a/1": None}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["item.json", "item.png"]


def test_more_seeds_go_on_with_the_parts_of_fewer(start: Any) -> None:
    start("--seeds", "1").part("a/0", lambda: {"value": 1})
    more = start("--seeds", "3")
    assert more.seeds == [0, 1, 2] and list(more.parts) == ["a/0"]


def test_fewer_seeds_leave_the_parts_of_others_out(start: Any, tmp_path: Path) -> None:
    for seed in (0, 1):
        start().part(f"a/{seed}", lambda: {"value": 1})
    fewer = start("--seeds", "1")
    fewer.part("a/0", lambda: pytest.fail("measured twice"))
    assert list(finished(fewer, tmp_path)["parts"]) == ["a/0"]


def test_parts_of_other_settings_are_refused_until_they_are_forgotten(start: Any, capsys: Any) -> None:
    start().part("a/0", lambda: {"value": 1})
    with pytest.raises(SystemExit) as ended:
        start(width=4)
    assert ended.value.code == 2
    assert "width 3 instead of 4" in capsys.readouterr().err
    assert start("--fresh", width=4).parts == {}


def test_damaged_parts_and_seeds_below_one_end_in_words(start: Any, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        start("--seeds", "0")
    assert "--seeds 0: at least 1" in capsys.readouterr().err
    for content, expected in (("{", "item.partial.json is damaged"), ("[]", "holds no parts of a run")):
        (tmp_path / "item.partial.json").write_text(content, encoding="utf-8")
        with pytest.raises(SystemExit):
            start()
        assert expected in capsys.readouterr().err


def test_what_devices_are_asked_in_a_part_is_its_ledger_and_that_of_the_result(start: Any, tmp_path: Path) -> None:
    result = start()
    opaque = Opaque(FunctionDevice(np.tanh, 2, 2))

    def ask() -> dict[str, Any]:
        opaque(torch.zeros(5, 2, requires_grad=True)).sum().backward()
        return {}

    result.part("a/0", ask)
    result.part("a/1", ask)
    kept = finished(result, tmp_path)
    assert {p: a["queries"] for p, a in kept["parts"]["a/0"]["ledger"].items()} == {"forward": 5, "probes": 20}
    assert {p: a["queries"] for p, a in kept["ledger"].items()} == {"forward": 10, "probes": 40}


def test_a_missed_target_is_an_exit_status_but_not_of_a_smoke(start: Any, tmp_path: Path) -> None:
    for flags, status in ((), 1), (("--smoke",), 0):
        result = start(*flags)
        result.row("case", 2.0, "unit", target="<= 1")
        assert finished(result, tmp_path, status)["rows"][-1]["value"] == 2.0


# --- items in groups of parts, measured on different days ------------------------------------------------------------


GROUPS = ("a", "a-more", "e-early", "e-late")


@pytest.fixture
def start_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def start(*flags: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["item.py", "--out", str(tmp_path), *flags])
        return begun("item", "An item.\n", FULL, SMOKE, groups=GROUPS, flags={"--epochs": {"type": int}})

    return start


def test_what_was_measured_on_another_day_stays_in_the_result(start_groups: Any, tmp_path: Path) -> None:
    first = start_groups("--parts", "a")
    assert first.wanted("a/0") and not first.wanted("a-more/0") and not first.wanted("e-early/0")
    first.part("a/0", lambda: {"value": 1, "in_all": {"wall_seconds": 100.0, "ledger": {}}})
    assert finished(first, tmp_path)["wall_seconds"] == 100.0
    later = start_groups("--parts", "e", "--epochs", "3")
    assert later.given.epochs == 3 and later.chosen == ["e-early", "e-late"] and later.wanted("a/0")
    later.part("e-late/0", lambda: {"value": 2})
    assert later.part("a/0", lambda: pytest.fail("measured twice")) == {"value": 1}
    assert set(finished(later, tmp_path)["parts"]) == {"a/0", "e-late/0"}


def test_a_finding_may_be_called_whole(start: Any) -> None:
    """As the cosine of a whole gradient is."""
    assert start().part("a/0", lambda: {"whole": 0.5}) == {"whole": 0.5}


def test_fresh_forgets_the_chosen_groups_alone(start_groups: Any, tmp_path: Path) -> None:
    both = start_groups()
    for name in ("a/0", "e-early/0"):
        both.part(name, lambda: {"value": 1})
    finished(both, tmp_path)
    assert list(start_groups("--parts", "a", "--fresh").parts) == ["e-early/0"]


def test_an_unknown_part_is_answered_with_those_there_are(start_groups: Any, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        start_groups("--parts", "a,f")
    assert ended.value.code == 2
    assert "there is no 'f'; choose of a, a-more, e-early, e-late" in capsys.readouterr().err


ITEM = """
import sys, time
from _result import begun, go
from hzo_hil.devices.errors import BadInput

def main():
    result = begun("item", "An item.", full={"seeds": 1}, smoke={})
    result.part("a/0", lambda: {"value": 1})
    if sys.stdin.readline() != "wait\\n":
        raise BadInput("this is how")
    print("ready", flush=True)
    time.sleep(60)

go(main)
"""


def program(folder: Path) -> subprocess.Popen[str]:
    paper = Path(__file__).resolve().parents[2] / "benchmarks" / "paper"
    return subprocess.Popen(
        [sys.executable, "-c", ITEM, "--out", str(folder)], cwd=paper, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to whole consoles only")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_item_that_is_stopped_says_how_to_go_on(tmp_path: Path, sent: signal.Signals) -> None:
    process = program(tmp_path)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("wait\n")
    process.stdin.flush()
    assert "ready\n" in iter(process.stdout.readline, "")
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + sent
    assert "Traceback" not in err and "the same command goes on" in err
    assert (tmp_path / "item.partial.json").exists()


def test_what_a_user_can_set_right_is_a_line(tmp_path: Path) -> None:
    process = program(tmp_path)
    _, err = process.communicate("no\n", timeout=60)
    assert process.returncode == 2
    assert "Traceback" not in err and err.endswith("this is how\n")
