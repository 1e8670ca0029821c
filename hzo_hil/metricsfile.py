"""The live metrics of a run: one JSON object a line, which survives the death of the process at any moment.

It does not know what is measured, only that a row may carry a whole-number `step`.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from hzo_hil.runfiles import explained, to_json

# Fields that a clock decides; all else is the same again when a run is repeated.
CLOCK_FIELDS = frozenset({"time", "queries_per_second"})
CLOCK_ENDING = "_seconds"


def is_clock_field(name: str) -> bool:
    return name in CLOCK_FIELDS or name.endswith(CLOCK_ENDING)


def without_clock(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row without what a clock decided, for comparing two runs."""
    return {name: value for name, value in row.items() if not is_clock_field(name)}


class MetricsFile:
    """Rows appended to one file. Each is handed to the system whole, so that `kill -9` loses none before it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: BinaryIO | None = None

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row. A row that does not fit on the disk leaves no part behind; raises RunFolderError."""
        line = (to_json(row) + "\n").encode("utf-8")
        with explained(self.path.parent, f"write {self.path.name}"):
            file = self._opened()
            end = os.fstat(file.fileno()).st_size
            try:
                _write_all(file, line)
            except BaseException:
                file.truncate(end)
                raise

    def truncate(self, step: int) -> int:
        """Drop the first row whose `step` is above `step`, all after it, and a torn last line. Returns rows dropped."""
        self.close()
        if not self.path.exists():
            return 0
        with explained(self.path.parent, f"read {self.path.name}"):
            lines = self.path.read_bytes().splitlines(keepends=True)
        keep = _rows_until(lines, step)
        with explained(self.path.parent, f"shorten {self.path.name}"):
            os.truncate(self.path, sum(map(len, lines[:keep])))
        return sum(_row(line) is not None for line in lines[keep:])

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _opened(self) -> BinaryIO:
        if self._file is None:
            if self.path.exists():
                _drop_torn_line(self.path)
            self._file = self.path.open("ab", buffering=0)
        assert self._file is not None
        return self._file


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The complete rows of a metrics file (or of a run folder), oldest first; none where there is no file.

    A torn last line is left out; a damaged line before it too, with a warning.
    """
    path = Path(path)
    path = path / "metrics.jsonl" if path.is_dir() else path
    if not path.exists():
        return []
    with explained(path.parent, f"read {path.name}"):
        lines = path.read_bytes().splitlines(keepends=True)
    rows = [_row(line) for line in lines]
    damaged = [number for number, row in enumerate(rows[:-1], start=1) if row is None]
    if damaged:
        warnings.warn(
            f"{path}: {len(damaged)} damaged lines were left out, the first is line {damaged[0]}", stacklevel=2
        )
    return [row for row in rows if row is not None]


def _write_all(file: BinaryIO, line: bytes) -> None:
    left = memoryview(line)
    while left:
        left = left[file.write(left) :]


def _row(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line.decode("utf-8"))
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _rows_until(lines: list[bytes], step: int) -> int:
    """How many lines come before the first row beyond `step`; a torn last line never counts."""
    for number, line in enumerate(lines):
        row = _row(line)
        beyond = row is not None and isinstance(row.get("step"), int) and row["step"] > step
        if beyond or (row is None and number == len(lines) - 1):
            return number
    return len(lines)


def _drop_torn_line(path: Path) -> None:
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)
