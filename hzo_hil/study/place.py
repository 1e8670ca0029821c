"""Where the run that is under way may leave files of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_folder: ContextVar[Path | None] = ContextVar("hzo_hil_study_run_folder", default=None)


def run_folder() -> Path | None:
    """The folder of the study's run that this code is part of; None outside a study."""
    return _folder.get()


@contextmanager
def at(folder: Path) -> Iterator[None]:
    before = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(before)
