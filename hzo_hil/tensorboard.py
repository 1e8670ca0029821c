"""Metrics for TensorBoard, where its package is installed. It is a copy: the run folder's own file is the record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TensorBoardLog:
    """Scalars of each row under `<folder>/tensorboard`, against its `step`."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    @classmethod
    def open(cls, folder: str | Path, from_step: int | None = None) -> TensorBoardLog | None:
        """None where TensorBoard is not installed. Rows of an earlier process from `from_step` on are hidden."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        return cls(SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=from_step))

    def log(self, row: Mapping[str, Any]) -> None:
        """Write every number of a row that has a `step`."""
        step = row.get("step")
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                self._writer.add_scalar(name, value, global_step=step)

    def close(self) -> None:
        self._writer.close()
