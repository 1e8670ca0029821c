"""What the firmware says of itself, where it is made from, and that another network can be made the same way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from hzo_hil.devices.manifest import from_json, to_json
from tests.firmware.arithmetic import Network
from tests.firmware.conftest import FIRMWARE, listening, make, needs
from tests.firmware.line import OK, Line

ROOT = FIRMWARE.parents[1]


def test_the_files_are_what_the_description_makes(describe: ModuleType) -> None:
    for name, content in (("network.h", describe.header()), ("network.c", describe.source())):
        assert (FIRMWARE / name).read_text(encoding="utf-8") == content, f"run {FIRMWARE / 'describe.py'}"


def test_a_host_reads_it(describe: ModuleType, description: dict[str, Any]) -> None:
    capabilities = from_json(description)
    assert capabilities == describe.capabilities()
    assert to_json(capabilities) == {k: v for k, v in description.items() if k != "wire"}
    assert [s.linear for s in capabilities.stages] == [False, True]
    for stage in capabilities.stages:
        weight, bias = stage.parameters
        assert weight.levels is not None and bias.levels is not None
        assert (len(weight.levels), len(bias.levels)) == (255, 257)
        assert weight.shape == (stage.out_width, stage.in_width)


def test_the_wire_part_covers_the_memory_without_gaps(describe: ModuleType, description: dict[str, Any]) -> None:
    size = {"i1": 1, "i2": 2}
    at = 0
    for stage, places in zip(description["stages"], description["wire"]["parameters"], strict=True):
        for spec, place in zip(stage["parameters"], places, strict=True):
            assert place["address"] == at
            at += int(np.prod(spec["shape"])) * size[place["dtype"]]
            codes = np.array(spec["levels"]) / place["scale"]
            assert (codes == np.round(codes)).all()
    assert f"#define DEVICE_PARAMETER_BYTES {at}\n" in describe.header()
    rows, widest = description["wire"]["rows"], 2 * max(describe.WIDTHS)
    assert rows * widest + 12 <= describe.MTU < (rows + 1) * widest + 12


def test_the_json_form_is_the_same(description: dict[str, Any]) -> None:
    done = subprocess.run(
        [sys.executable, str(FIRMWARE / "describe.py"), "--json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(done.stdout) == description


def test_another_network_from_another_list(tmp_path: Path) -> None:
    """A copy of the folder, three stages, every non-linearity: made, built, and right bit for bit."""
    needs("make", "gcc")
    if sys.platform == "win32":
        pytest.skip("the host build of the firmware uses POSIX sockets")
    copy = tmp_path / "firmware"
    shutil.copytree(FIRMWARE, copy, ignore=shutil.ignore_patterns("build", "__pycache__"))
    stages = [("a", 3, 5, "hard_tanh"), ("b", 5, 6, "relu"), ("c", 6, 2, "hard_tanh")]
    script = copy / "describe.py"
    before = script.read_text(encoding="utf-8")
    line = next(text for text in before.splitlines() if text.startswith("STAGES = "))
    script.write_text(before.replace(line, f"STAGES = {tuple(stages)!r}"), encoding="utf-8")
    subprocess.run([sys.executable, str(script)], check=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)})
    make("host", tmp_path / "build", folder=copy)

    rng = np.random.default_rng(0)
    made = [
        (kind, rng.integers(-127, 128, (n_out, n_in)).astype("i1"), rng.integers(-128, 129, n_out).astype("<i2"))
        for _, n_in, n_out, kind in stages
    ]
    network = Network(made, noise=32)
    segments = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    with listening(tmp_path / "build" / "firmware", noise=32) as port, Line(port) as board:
        board.hello()
        manifest = b"".join(board.read(0, 500, at) for at in range(0, 20000, 500))
        described = json.loads(manifest)
        assert [tuple(s) for s in described["wire"]["segments"]] == segments
        assert from_json(described).identity == "firmware-3-5-6-2"
        assert board.write(0, b"".join(w.tobytes() + b.tobytes() for _, w, b in made)).status == OK
        for number, (lo, hi) in enumerate(segments, start=1):
            rows = rng.integers(-6000, 6000, (7, made[lo][1].shape[1]))
            answer = board.run(number, number - 1, rows.astype("<i2").tobytes(), 2)
            got = np.frombuffer(answer.data, "<i2").reshape(7, -1)
            np.testing.assert_array_equal(got, network.run(number, lo, hi, rows, 2)[0])
            if (lo, hi) != (0, 2) and hi != 2:
                assert np.abs(got).max() <= 4096
