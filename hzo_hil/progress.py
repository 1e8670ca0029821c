"""One line that says how training goes, on standard error; quiet where nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from hzo_hil.training import Training


class Progress:
    """A bar over steps with loss, score, queries per second and time left. Without a terminal: a line an epoch."""

    def __init__(self, phase: str, training: Training, quiet: bool) -> None:
        self.phase = phase
        self.training = training
        self.quiet = quiet
        self.metric = training.config.train.metric
        self._bar: Any = None
        self._shown: dict[str, str] = {}
        self._from_queries = training.ledger.total.queries
        self._from_seconds = training.seconds

    def __enter__(self) -> Progress:
        if not self.quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=self.training.total_steps,
                initial=self.training.step,
                desc=self.phase,
                unit="step",
                dynamic_ncols=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, row: Mapping[str, Any]) -> None:
        test = row.get(f"test_{self.metric}")
        if "loss" in row:
            self._shown["loss"] = f"{row['loss']:.4g}"
        if test is not None:
            self._shown[f"test {self.metric}"] = f"{test:.4g}"
        seconds = self.training.seconds - self._from_seconds
        if seconds > 0 and row.get("queries", 0) > self._from_queries:
            self._shown["queries/s"] = f"{(row['queries'] - self._from_queries) / seconds:,.0f}"
        if self._bar is not None:
            self._bar.set_postfix(self._shown, refresh=False)
            self._bar.update(self.training.step - self._bar.n)
        elif test is not None and not self.quiet:
            parts = ", ".join(f"{k} {v}" for k, v in self._shown.items())
            total = self.training.config.train.epochs
            print(f"{self.phase}: epoch {row['epoch']}/{total}, {parts}", file=sys.stderr, flush=True)
