"""Where a new run goes: a fresh folder, or one the user names, never over what is already there."""

from __future__ import annotations

import re
import time
from pathlib import Path

from hzo_hil.holding import LOCK
from hzo_hil.runfiles import RunFolderError, explained, replace

PARTS = (
    "run.json",
    "config.yaml",
    "environment.json",
    "device.json",
    "metrics.jsonl",
    "checkpoints",
    "summary.json",
    "curves.png",
    "tensorboard",
)


def fresh_folder(parent: Path, name: str, what: str) -> Path:
    """Make `<parent>/<name>-<date>-<time>-<hash>`, with a number added where another run began in this second."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "run"
    base = f"{safe}-{time.strftime('%Y%m%d-%H%M%S')}-{what[:8]}"
    with explained(parent, "make a folder in it"):
        parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            folder = parent / (base if number == 1 else f"{base}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:  # another run began in this second
                number += 1
            else:
                return folder


def given_folder(folder: Path, force: bool) -> Path:
    """Make the folder, or take it if it is empty or, with `force`, whatever it holds."""
    with explained(folder, "make the folder"):
        folder.mkdir(parents=True, exist_ok=True)
        present = sorted(entry.name for entry in folder.iterdir() if entry.name != LOCK)
    if present and not force:
        _refuse(folder, present)
    return folder


def _refuse(folder: Path, present: list[str]) -> None:
    if "run.json" in present:
        raise RunFolderError(
            f"run folder {folder} holds a run already. Go on with it (--resume), or choose another with --run-dir"
        )
    raise RunFolderError(
        f"run folder {folder} is not empty ({', '.join(present[:3])}{', ...' if len(present) > 3 else ''}) and holds no"
        " run that could be resumed. Choose another folder with --run-dir"
    )


def move_aside(folder: Path) -> None:
    """Put an earlier run's files into a folder of their own; run.json goes first, so that no half run can be opened."""
    parts = [folder / part for part in PARTS if (folder / part).exists()]
    if not parts:
        return
    number = 1
    while (folder / f"earlier-{number}").exists():
        number += 1
    with explained(folder, f"move the earlier run to earlier-{number}"):
        aside = folder / f"earlier-{number}"
        aside.mkdir()
        for part in parts:
            replace(part, aside / part.name)
