"""The Python of docs/drivers.md runs as it stands, in order; its commands and files exist; its links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "drivers.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_the_python_blocks_run_in_order(tmp_path):
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks("python")), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, encoding="utf-8", timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bench-1: PASSED" in done.stdout


def test_its_test_file_runs_beside_the_module_it_names(tmp_path):
    python = blocks("python")
    (tmp_path / "my_lab.py").write_text("\n".join(python[:2]), encoding="utf-8")
    scope: dict[str, str] = {}
    exec(next(b for b in python if "TEST_FILE" in b), scope)
    (tmp_path / "test_lab.py").write_text(scope["TEST_FILE"], encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]), "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_lab.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout


def test_its_configuration_is_one():
    from hzo_hil.devicesections import DeviceSection

    for block in blocks("yaml"):
        for fields in yaml.safe_load(block)["devices"].values():
            DeviceSection.model_validate(fields)


def test_its_links_and_files_exist():
    for link in re.findall(r"\]\(([\w./-]+\.md)\)", PAGE):
        assert (ROOT / "docs" / link).is_file(), link
    for path in re.findall(r"`(devices/[\w./]+|vectors/\w+/)`", PAGE):
        assert (ROOT / path).exists() or (ROOT / "docs" / path).exists(), path


@pytest.mark.parametrize(
    "command", sorted({line for b in blocks("bash") for line in b.splitlines() if "hzo-hil" in line})
)
def test_its_commands_are_known(command):
    import click

    from hzo_hil.cli import app

    words = command.split()[1:]
    found: click.Command = app
    while isinstance(found, click.Group):
        assert words[0] in found.commands, f"no command {command!r}"
        found = found.commands[words.pop(0)]
    options = {o for p in found.params for o in p.opts}
    assert {w for w in words if w.startswith("--")} <= options
