"""The wheel, an editable install and a bare checkout each give the same package; importing it is light."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]
FOLDERS = {"hzo_hil": "hzo_hil", "devices": "hzo_hil/devices", "simulators": "hzo_hil/simulators"}
HEAVY = ["torch", "zmq", "serial", "cobs", "matplotlib", "tensorboard", "click", "tqdm", "yaml", "pydantic"]
LEFT_OUT = {"__pycache__", ".mypy_cache", ".ruff_cache", ".import_linter_cache"}

# Says where each package would be imported from. No library is on the path: only places are asked for.
PLACES = """
import importlib.util, json, sys
names = {names!r}
print(json.dumps({{name: importlib.util.find_spec(name).origin for name in names}}))
"""


def tree_files() -> dict[str, Path]:
    """What the checkout holds of the package, by its place in a wheel."""
    found = {}
    for folder, place in FOLDERS.items():
        for path in (ROOT / folder).rglob("*"):
            parts = path.relative_to(ROOT / folder).parts
            if path.is_file() and not LEFT_OUT.intersection(parts):
                found["/".join([place, *parts])] = path
    return found


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources: building leaves files beside them."""
    copy = tmp_path_factory.mktemp("checkout")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for name in ["pyproject.toml", "README.md", "LICENSE", "NOTICE", "MANIFEST.in", ".ci/backend.py"]:
        (copy / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that CI made, else one made here."""
    if given := os.environ.get("HZO_WHEEL"):
        return Path(given)
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, checkout)
    return next(folder.glob("*.whl"))


def places(run_python, start: str, cwd: Path) -> dict[str, str]:
    done = run_python(start + PLACES.format(names=PACKAGES), "-I", "-S", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def expected_places(root: Path, mapped: bool) -> dict[str, str]:
    """Where each package's __init__ lies below `root`; `mapped` when devices/ and simulators/ are top folders."""
    folders = {name: name.replace(".", "/") for name in PACKAGES}
    if mapped:
        top = re.compile("^hzo_hil/(devices|simulators)")
        folders = {name: top.sub(r"\1", folder) for name, folder in folders.items()}
    return {name: str(root / folder / "__init__.py") for name, folder in folders.items()}


@pytest.mark.slow
def test_the_wheel_holds_what_the_tree_holds(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    tree = {name: path.read_bytes() for name, path in tree_files().items()}
    assert sorted(held) == sorted(tree)
    assert [name for name in tree if held[name] != tree[name]] == []


@pytest.mark.slow
def test_the_wheel_names_its_licence_its_command_and_its_needs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        texts = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist() if ".dist-info/" in name}
    metadata = texts["METADATA"].decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert texts["licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert "hzo-hil = hzo_hil.cli:main" in texts["entry_points.txt"].decode()
    needs = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert len(needs) == 11, "an install stays light: plots, TensorBoard and tests are extras"


@pytest.mark.slow
def test_an_installed_wheel_imports(wheel, tmp_path, run_python):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    start = f"sys.path.insert(0, {str(tmp_path)!r})\n"
    assert places(run_python, start, tmp_path) == expected_places(tmp_path, mapped=False)


@pytest.mark.slow
def test_an_editable_install_imports(checkout, tmp_path, run_python):
    target = tmp_path / "site"
    pip("install", "--no-deps", "--no-build-isolation", "--target", target, "--editable", checkout)
    start = f"import site; site.addsitedir({str(target)!r})\n"
    assert places(run_python, start, tmp_path) == expected_places(checkout, mapped=True)


def test_a_bare_checkout_imports(run_python):
    start = f"sys.path.insert(0, {str(ROOT)!r})\n"
    assert places(run_python, start, ROOT) == expected_places(ROOT, mapped=True)


def test_every_package_of_the_tree_is_listed():
    held = {name.rpartition("/")[0].replace("/", ".") for name in tree_files() if name.endswith(".py")}
    assert held == set(PACKAGES), "a package missing in pyproject.toml's list is missing from the wheel"


@pytest.mark.parametrize("name", ["devices", "simulators"])
def test_a_bare_name_is_refused_in_words(run_python, name):
    done = run_python(f"import {name}", cwd=ROOT)
    assert done.returncode == 1
    assert f"import this package as hzo_hil.{name}" in done.stderr


def test_importing_the_package_needs_no_library(run_python):
    done = run_python("import hzo_hil; print(hzo_hil.__version__)", without=[*HEAVY, "numpy", "scipy"])
    assert (done.returncode, done.stdout.strip()) == (0, PROJECT["project"]["version"]), done.stderr


def test_the_device_side_runs_without_torch(run_python):
    code = "\n".join(
        [
            "import numpy as np",
            "from hzo_hil.devices.api import Segment",
            "from hzo_hil.devices.fake import FakeDevice",
            "device = FakeDevice.mlp([3, 2])",
            "print(device.run(Segment(0, 1), np.zeros((4, 3), np.float32)).outputs.shape)",
        ]
    )
    done = run_python(code, without=HEAVY)
    assert (done.returncode, done.stdout.strip()) == (0, "(4, 2)"), done.stderr


def test_constraints_pin_exactly_and_cover_every_need():
    # QCoDeS is tested in an environment of its own, with pins of its own.
    files = [ROOT / "constraints.txt", ROOT / ".ci" / "qcodes.txt"]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert not [version for version in pins.values() if "+" in version or "/" in version]
    groups = [PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"].values()]
    names = {need.split(">=")[0] for group in groups for need in group if not need.startswith("hzo-hil")}
    assert {name.lower() for name in names} <= {name.lower() for name in pins}
