"""The device while it is measured: writes once, asks in blocks, keeps the time and counts; puts back what it found.

Knows no simulator.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.devices.api import Device
from hzo_hil.devices.conformance.bench import batch_limit
from hzo_hil.devices.conformance.values import steps
from hzo_hil.devices.errors import BadReply
from hzo_hil.fit.response import WRITE_KEY
from hzo_hil.fit.rows import Floats, Questions, Rows
from hzo_hil.fit.target import Target
from hzo_hil.ledger import Account, Ledger

Array = NDArray[Any]
PURPOSE = "calibration"


class Asking:
    """`ledger` counts everything asked, under the purpose calibration."""

    def __init__(self, device: Device, target: Target, seed: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.caps = device.capabilities
        self.ledger = Ledger()
        self._device, self._target = device, target
        self._clock, self._began = clock, clock()
        self._worked_s = 0.0
        self._key = np.uint64((seed % 2**31) << 32)
        self._found: Mapping[str, Array] | None = None

    # --- time ------------------------------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """Device time: the declared cost of the work so far where time is virtual, else this computer's clock."""
        return self._worked_s if self.caps.virtual_time else self._clock() - self._began

    def wait_until(self, seconds: float) -> None:
        while (left := seconds - self.seconds) > 0 and not self.caps.virtual_time:
            time.sleep(min(left, 0.2))

    # --- writing ---------------------------------------------------------------------------------------------------

    def write(self) -> None:
        stage = self._target.stage
        if not self._target.values:
            return
        with suppress(Exception):  # a stage that was never written may refuse to be read
            self._found = {n: np.array(v) for n, v in self._device.read(stage).items()}
        self._write(dict(self._target.values), WRITE_KEY)

    def restore(self) -> None:
        """Put back what the stage held before, where it could be read."""
        if self._found:
            with suppress(Exception):
                self._write({n: np.asarray(v, dtype=np.float64) for n, v in self._found.items()}, WRITE_KEY)

    def _write(self, wanted: dict[str, Array], key: int) -> None:
        stage = self._target.stage
        options: dict[str, Any] = {"key": key} if self.caps.keyed else {}
        for step in steps(self.caps.stages[stage], self._found, wanted):
            values = {n: v.astype(self.caps.dtype) for n, v in step.items()}
            self._device.write(stage, values, **options)
            self._worked_s += self.caps.settling_s
            self.ledger.charge(PURPOSE, Account(writes=1, device_seconds=self.caps.settling_s))
            if self.caps.settling_s and not self.caps.virtual_time:
                time.sleep(self.caps.settling_s)

    # --- asking ----------------------------------------------------------------------------------------------------

    def ask(self, questions: Questions) -> Rows:
        """In as few calls as the device allows. Raises BadReply for answers that are no numbers."""
        target, spec = self._target, questions
        inputs = (target.patterns[spec.pattern] * spec.drive[:, None]).astype(self.caps.dtype)
        size = batch_limit(self.caps, target.segment)
        answers, seconds = [], []
        for start in range(0, len(inputs), size):
            found, times = self._call(np.ascontiguousarray(inputs[start : start + size]))
            answers.append(found)
            seconds.append(times)
        response, power = target.response, np.abs(spec.drive[:, None]) ** target.degree
        scatter = response.linear[spec.pattern] * power + response.quadratic[spec.pattern] * power**2
        return Rows(
            spec.drive, spec.pattern, spec.block, spec.held, np.concatenate(answers), np.concatenate(seconds),
            response.pull[spec.pattern], np.maximum(scatter, 0),
        )  # fmt: skip

    def _call(self, inputs: Array) -> tuple[Floats, Floats]:
        segment = self._target.segment
        options: dict[str, Any] = {}
        if self.caps.keyed:
            options["keys"] = self._key + np.arange(len(inputs), dtype=np.uint64)
            self._key += np.uint64(len(inputs))
        begun = self.seconds
        reply = self._device.run(segment, inputs, **options)
        cost = len(inputs) * len(segment) * self.caps.query_s
        self._worked_s += cost
        took = self.seconds - begun
        worked = min(float(getattr(reply, "seconds", 0.0)) or took, took)
        spent = self.caps.latency_s + cost if self.caps.virtual_time else worked
        self.ledger.charge(PURPOSE, Account(len(inputs), len(inputs) * len(segment), 1, device_seconds=spent))
        answers = np.asarray(reply.outputs, dtype=np.float64)
        wanted = (len(inputs), self.caps.width(segment.hi))
        if answers.shape != wanted or not np.isfinite(answers).all():
            raise BadReply(
                f"device {self.caps.identity!r}, stage {segment.lo}: {len(inputs)} rows were answered by"
                f" {list(answers.shape)} with {np.count_nonzero(~np.isfinite(answers))} values NaN or infinite, not by"
                f" numbers {list(wanted)}: `hzo-hil device check` tells what is wrong with it"
            )
        part = np.arange(len(inputs)) / len(inputs)
        # On a wire the device works some time between the question and its answer.
        work = took if self.caps.virtual_time else worked
        return answers, begun + (took - work) / 2 + part * work
