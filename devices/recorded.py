"""Record a session with a device and replay it without: a lab session becomes a regression test.

`Recorder` wraps any device and writes down every call and answer. `Replay` is a device that answers from such a file,
in the recorded order or by what is asked. Neither computes anything, and neither knows what the numbers mean.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hzo_hil.devices import manifest
from hzo_hil.devices.api import Array, Device, Health, Pipelined, Query, Reply, Segment
from hzo_hil.devices.errors import BadReply, DataError
from hzo_hil.devices.recording_file import MAGIC, packed, records, whole_size
from hzo_hil.devices.replayed import Replay
from hzo_hil.devices.wrapper import Wrapper

__all__ = ["Recorder", "Replay"]

log = logging.getLogger("hzo_hil.recorded")


class Recorder(Wrapper):
    """`device`, with everything that passes written to `path`. Pipelined if the device is.

    Each record is handed to the operating system as it happens, so a crash of this process loses none that is
    complete. An existing file is refused, unless `append` goes on with it: then a half record at its end is cut off
    and the device must be the one recorded. Queries are recorded when asked, answers when they come.
    """

    def __new__(cls, device: Device, path: str | Path, append: bool = False) -> Recorder:
        return super().__new__(_PipelinedRecorder if isinstance(device, Pipelined) else cls)

    def __init__(self, device: Device, path: str | Path, append: bool = False) -> None:
        super().__init__(device)
        self.path = Path(path)
        self._file: BinaryIO | None = None
        self._asked = 0
        self._append = append
        if self.path.exists() and not append:
            raise DataError(f"{self.path} exists: record to another file, or append=True to go on with it")
        for name in ("park", "maintain"):
            if callable(getattr(device, name, None)):
                setattr(self, name, partial(self._do, name))

    def open(self) -> None:
        self.device.open()
        self._ready()

    def run(self, segment: Segment, inputs: Array, **options: Any) -> Reply:
        number = self._record_query(
            Query(segment, inputs, options.get("taps", ()), options.get("repeats", 1), options.get("keys"))
        )
        try:
            reply = self.device.run(segment, inputs, **options)
        except BaseException as error:
            self._record_answer(number, error)
            raise
        self._record_answer(number, reply)
        return reply

    def write(
        self, stage: int, parameters: Mapping[str, Array], where: Mapping[str, Array] | None = None, **options: Any
    ) -> None:
        arrays = {f"value:{name}": np.asarray(v) for name, v in parameters.items()}
        arrays |= {f"where:{name}": np.asarray(v) for name, v in (where or {}).items()}
        head = {"kind": "write", "stage": stage, "whole": where is None, "key": _plain(options.get("key"))}
        with self._outcome(head, arrays):
            self.device.write(stage, parameters, where=where, **options)

    def read(self, stage: int) -> Mapping[str, Array]:
        arrays: dict[str, Array] = {}
        with self._outcome({"kind": "read", "stage": stage}, arrays):
            values = self.device.read(stage)
            arrays.update({f"value:{name}": np.asarray(v) for name, v in values.items()})
        return values

    def snapshot(self) -> Mapping[str, Any]:
        found = self.device.snapshot()
        self._write({"kind": "snapshot", "value": _plain(found)})
        return found

    def health(self) -> Health:
        found = self.device.health()
        self._write({"kind": "health", "ok": found.ok, "detail": found.detail})
        return found

    def close(self) -> None:
        try:
            self.device.close()
        finally:
            if self._file is not None:
                self._file.close()
                # Opened again, the session goes on in the same file.
                self._file, self._append = None, True

    def _do(self, name: str) -> None:
        with self._outcome({"kind": name}, {}):
            getattr(self.device, name)()

    def _outcome(self, head: dict[str, Any], arrays: dict[str, Array]) -> _Outcome:
        return _Outcome(self, head, arrays)

    def _record_query(self, query: Query) -> int:
        self._ready()  # a file that goes on says where the numbers go on
        number, self._asked = self._asked, self._asked + 1
        head = {
            "kind": "query",
            "number": number,
            "segment": [query.segment.lo, query.segment.hi],
            "taps": [int(t) for t in query.taps],
            "repeats": int(query.repeats),
        }
        arrays = {"inputs": np.asarray(query.inputs)}
        for name in ("keys", "samples"):
            if (values := getattr(query, name, None)) is not None:
                arrays[name] = np.asarray(values)
        self._write(head, arrays)
        return number

    def _record_answer(self, number: int, result: Any) -> None:
        head: dict[str, Any] = {"kind": "answer", "number": number}
        if isinstance(result, BaseException):
            self._write(head | {"error": [type(result).__name__, str(result)]})
            return
        taps: Mapping[int, Any] = getattr(result, "taps", {})
        arrays = {"outputs": np.asarray(getattr(result, "outputs", result))}
        arrays |= {f"tap:{int(b)}": np.asarray(v) for b, v in taps.items()}
        if any(a.dtype.kind not in "fiubc" for a in arrays.values()):
            # The asker gets what the driver gave; only numbers can be kept.
            self._write(
                head | {"error": [BadReply.__name__, f"the driver answered {type(result).__name__}, no numbers"]}
            )
            return
        monitors = {str(k): float(v) for k, v in getattr(result, "monitors", {}).items()}
        self._write(head | {"monitors": monitors, "seconds": float(getattr(result, "seconds", 0.0))}, arrays)

    def _write(self, head: Mapping[str, Any], arrays: Mapping[str, Array] | None = None) -> None:
        file = self._ready()
        file.write(packed(head, arrays or {}))
        file.flush()

    def _ready(self) -> BinaryIO:
        if self._file is None:
            device = {
                "kind": "device",
                "capabilities": manifest.to_json(self.capabilities),
                "window": int(self.device.window) if isinstance(self.device, Pipelined) else 0,
                "can": [n for n in ("park", "maintain") if hasattr(self, n)],
            }
            goes_on = self._append and self.path.exists() and self.path.stat().st_size > 0
            if goes_on:
                self._go_on(device)
            # "x" and not "w": between the check in the constructor and now somebody else may have made the file.
            self._file = self.path.open("ab" if self._append else "xb")
            if not goes_on:
                self._file.write(MAGIC + packed(device, {}))
                self._file.flush()
        return self._file

    def _go_on(self, device: Mapping[str, Any]) -> None:
        """Cut a half record off the end, and number queries after those that are there."""
        whole, size = whole_size(self.path), self.path.stat().st_size
        heads = [r.head for r, _ in records(self.path, cut=True)]
        if heads and heads[0].get("capabilities") != device["capabilities"]:
            recorded = heads[0].get("capabilities", {}).get("identity")
            raise DataError(
                f"recording {self.path} is of device {recorded!r} and this is {self.capabilities.identity!r}, or it"
                f" describes"
                " itself otherwise now: record to a new file"
            )
        self._asked = 1 + max((int(h["number"]) for h in heads if h.get("kind") == "query"), default=-1)
        if whole < size:
            log.warning(
                "recording %s: %d bytes of an incomplete record at its end were cut off", self.path, size - whole
            )
            with self.path.open("r+b") as file:
                file.truncate(whole)


class _PipelinedRecorder(Recorder):
    """Of a device with several queries in flight: also when each answer came is recorded."""

    device: Any

    def __init__(self, device: Device, path: str | Path, append: bool = False) -> None:
        super().__init__(device, path, append)
        self._numbers: dict[int, int] = {}

    @property
    def window(self) -> int:
        return int(self.device.window)

    def submit(self, query: Query) -> int:
        number = self._record_query(query)
        try:
            ticket = int(self.device.submit(query))
        except BaseException as error:
            self._record_answer(number, error)
            raise
        self._numbers[ticket] = number
        return ticket

    def poll(self, timeout: float) -> list[tuple[int, Reply | Exception]]:
        found: list[tuple[int, Reply | Exception]] = self.device.poll(timeout)
        for ticket, result in found:
            if (number := self._numbers.pop(ticket, None)) is not None:
                self._record_answer(number, result)
        return found

    def cancel(self) -> None:
        self.device.cancel()
        self._numbers.clear()
        self._write({"kind": "cancel"})


class _Outcome:
    """Records one call when it is over, with the error if it raised."""

    def __init__(self, recorder: Recorder, head: dict[str, Any], arrays: dict[str, Array]) -> None:
        self.recorder, self.head, self.arrays = recorder, head, arrays

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self.head["error"] = [type(error).__name__, str(error)]
        self.recorder._write(self.head, self.arrays)


def _plain(value: Any) -> Any:
    """As JSON can keep it; what it cannot becomes its text."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
