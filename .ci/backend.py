"""Build backend: setuptools, with the kernel library compiled first and the wheel named after its platform.

pip runs this. Where no compiler is found it asks pip for `ziglang`, which brings one; where that fails, too, the wheel
is a plain one and the package falls back to numpy. HZO_HIL_TARGET names another system to build for (`.ci/wheels`).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from setuptools.command.bdist_wheel import get_platform

import build as kernels  # simulators/native/build.py: pyproject puts its folder on the path

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

NATIVE = Path(kernels.__file__).resolve().parent
TARGET = "HZO_HIL_TARGET"
# What a wheel is called that holds the library for a target; the numbers are the oldest system it runs on.
PLATFORMS = {
    "x86_64-linux-gnu.2.17": "manylinux2014_x86_64",
    "aarch64-linux-gnu.2.17": "manylinux2014_aarch64",
    "x86_64-windows-gnu": "win_amd64",
    "x86_64-macos.11.0": "macosx_11_0_x86_64",
    "aarch64-macos.11.0": "macosx_11_0_arm64",
}


def get_requires_for_build_wheel(settings: Any = None) -> list[str]:
    """What pip must install before the build."""
    other = bool(os.environ.get(TARGET))
    compiler = [] if kernels.find_compiler() and not other else ["ziglang>=0.13"]
    return [*build_meta.get_requires_for_build_wheel(settings), *compiler]


get_requires_for_build_editable = get_requires_for_build_wheel


def build_wheel(folder: str, settings: Any = None, metadata: str | None = None) -> str:
    target = os.environ.get(TARGET, "")
    if target and target not in PLATFORMS:
        raise SystemExit(f"{TARGET}={target!r} is unknown: known are {', '.join(PLATFORMS)}")
    settings = dict(settings or {})
    if _compile(target):
        options = settings.get("--build-option", [])
        options = [options] if isinstance(options, str) else list(options)
        platform = PLATFORMS[target] if target else get_platform(None)
        settings["--build-option"] = [*options, f"--plat-name={platform}"]
    return build_meta.build_wheel(folder, settings, metadata)


def build_editable(folder: str, settings: Any = None, metadata: str | None = None) -> str:
    _compile("")
    return build_meta.build_editable(folder, settings, metadata)


def _compile(target: str) -> bool:
    """Whether there is a library now; a compiler that complains does not stop an install."""
    try:
        made = kernels.build(NATIVE, target)
    except RuntimeError as complaint:
        print(f"hzo-hil: the kernels were not built, the numpy route will be used\n{complaint}", file=sys.stderr)
        made = None
    return made is not None
