"""The laboratory's study and its page, a browser, and the report command."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hzo_hil import cli
from tests.report.lab import STUDY, do_study


@pytest.fixture(scope="session")
def lab_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """81 runs: 3 phase noises, 3 converters, 3 methods, 3 seeds; one of them fails. Not to be changed."""
    return do_study(tmp_path_factory.mktemp("lab"), STUDY)


@pytest.fixture
def own_study(lab_study: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(lab_study, tmp_path / "study"))


@pytest.fixture(scope="session")
def lab_page(lab_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the study."""
    out = tmp_path_factory.mktemp("report") / "report"
    assert cli.run(["report", str(lab_study), "--out", str(out)]) == 0
    return out / "index.html"


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`report(path, "--json")`: exit status, what it printed, what it said on standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.run(["report", *map(str, arguments)])
        found = capsys.readouterr()
        assert "Traceback" not in found.err
        return status, found.out, found.err

    return call


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window. CI installs it; where it is missing these tests cannot be run."""
    program = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
    if program is None:
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def tiny_run() -> Callable[[Path], Path]:
    """`tiny_run(path)`: a second of real training on iris."""

    def make(path: Path) -> Path:
        raw: dict[str, Any] = {
            "name": "tiny",
            "seed": 3,
            "data": {"name": "iris", "limit_train": 40},
            "devices": {"chip": {"kind": "emulator", "options": {"widths": [4, 6, 3]}, "latency_s": 0.001}},
            "network": [{"opaque": "chip"}],
            "method": {"eps": 1e-2},
            "train": {"epochs": 3, "batch_size": 10},
            "where": {"picture": False, "threads": 1},
        }
        path.parent.mkdir(exist_ok=True)
        config = path.parent / "config.yaml"
        config.write_text(yaml.safe_dump(raw), encoding="utf-8")
        assert cli.run(["train", str(config), "--run-dir", str(path), "--quiet"]) == 0
        return path

    return make
