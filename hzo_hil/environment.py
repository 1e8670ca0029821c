"""What a run was made with: versions, threads, the commit and the command line. Never the environment variables."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "scipy", "pydantic", "pyzmq", "pyserial")
SECRET = re.compile(r"(?i)(key|token|secret|passw)")
CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
GIT_TIMEOUT_S = 5.0


def environment() -> dict[str, Any]:
    """A JSON-ready description of this process and machine."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "threads": _threads(),
        "git": git_commit(Path.cwd()),
        "command": hide_secrets(sys.argv),
    }


def git_commit(folder: Path) -> dict[str, Any] | None:
    """The commit checked out in `folder` and whether files differ from it; None outside a repository or without git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": None if changed is None else bool(changed)}


def hide_secrets(arguments: list[str]) -> list[str]:
    """The command line with the values of options named like keys, tokens or passwords replaced by ***."""
    shown: list[str] = []
    hide_next = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if hide_next and not argument.startswith("-"):
            shown.append("***")
        elif equals and SECRET.search(name):
            shown.append(f"{name}=***")
        else:
            shown.append(CREDENTIALS.sub("***@", argument))
        hide_next = argument.startswith("-") and not equals and bool(SECRET.search(argument))
    return shown


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=GIT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _threads() -> int | None:
    torch = sys.modules.get("torch")  # asked only where the run uses it
    return None if torch is None else int(torch.get_num_threads())
