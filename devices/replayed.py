"""A device that answers from a recording (see `recorded`). It computes nothing and forgets nothing.

Strict: the same calls in the same order, to the bit. By key: any order, each query answered by what was recorded for
the same content under the same parameters.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hzo_hil.devices import errors, manifest
from hzo_hil.devices.api import Array, Capabilities, Health, Query, Reply, Segment
from hzo_hil.devices.errors import BadInput, DataError, DeviceError
from hzo_hil.devices.recording_file import Record, records, unpacked

CALLS = ("query", "write", "read", "park", "maintain", "cancel")
Key = bytes


class Replay:
    """The device of the recording at `path`; pipelined if that was.

    `match="strict"`: every query, write, read, park and maintain must be the recorded one at its place; the first
    that is not raises BadInput with both. (`snapshot` and `health` are answered in their own order at any time.)
    `match="key"`: a query is answered by what was recorded for the same segment, inputs, taps, repeats, noise keys
    and parameters last written to its stages; several answers to one key are used in the order recorded, recorded
    errors included. `cut` accepts a recording that ends within a record. Raises DataError for a file that is no whole
    recording.
    """

    def __new__(cls, path: str | Path, match: Literal["strict", "key"] = "strict", cut: bool = False) -> Replay:
        head = next((r.head for r, _ in records(Path(path), cut=cut)), {})
        return super().__new__(_PipelinedReplay if head.get("window") else cls)

    def __init__(self, path: str | Path, match: Literal["strict", "key"] = "strict", cut: bool = False) -> None:
        if match not in ("strict", "key"):
            raise BadInput(f"a replay matches 'strict' or by 'key', not {match!r}")
        self.path = Path(path)
        self.match = match
        self._calls: list[Record] = []
        self._answers: dict[int, tuple[int, Record]] = {}
        self._by_key: dict[Key, deque[int]] = {}
        self._asked_by_key: dict[Key, int] = {}
        self._others: dict[str, deque[Record]] = {"snapshot": deque(), "health": deque()}
        self._reads: dict[int, deque[Record]] = {}
        self._written: dict[int, Key] = {}
        self._values: dict[int, dict[str, Array]] = {}
        self._at = 0
        device = self._load(cut)
        self._capabilities = manifest.from_json(device.get("capabilities"))
        self.window = max(1, int(device.get("window", 0)))
        for name in device.get("can", ()):
            if name in ("park", "maintain"):
                setattr(self, name, partial(self._do, name))

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def finished(self) -> bool:
        """Whether every recorded query was asked (and, strictly, every other recorded call made)."""
        if self.match == "key":
            return not any(self._by_key.values())
        return self._at >= len(self._calls)

    def open(self) -> None:
        """Nothing to open: the file was checked when the replay was made."""

    def run(
        self, segment: Segment, inputs: Array, taps: Sequence[int] = (), repeats: int = 1, keys: Array | None = None
    ) -> Reply:
        return self._answer(self._find(Query(segment, inputs, taps, repeats, keys)))

    def write(
        self, stage: int, parameters: Mapping[str, Array], where: Mapping[str, Array] | None = None, key: Any = None
    ) -> None:
        arrays = {f"value:{name}": np.asarray(v) for name, v in parameters.items()}
        record = self._take("write", {"stage": stage}, arrays)
        if record is not None:
            _raise_recorded(record.head)
        self._written[stage] = _digest(arrays)
        self._values[stage] = {name: np.array(v) for name, v in parameters.items()}

    def read(self, stage: int) -> Mapping[str, Array]:
        record = self._take("read", {"stage": stage}, {})
        if record is None:
            if stage in self._values:
                return {name: v.copy() for name, v in self._values[stage].items()}
            waiting = self._reads.get(stage)
            if not waiting:
                raise BadInput(f"{self._name}: stage {stage} was never read while it was recorded, nor written since")
            record = waiting[0]
        _raise_recorded(record.head)
        return {name.removeprefix("value:"): v for name, v in self._arrays(record).items()}

    def snapshot(self) -> Mapping[str, Any]:
        record = self._other("snapshot")
        return {"identity": self.capabilities.identity, "replay": str(self.path)} if record is None else record["value"]

    def health(self) -> Health:
        record = self._other("health")
        return Health(True, f"replay of {self.path}") if record is None else Health(record["ok"], record["detail"])

    def close(self) -> None:
        """Nothing to close. The place in the recording is kept."""

    # --- the recording -------------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return f"replay of {self._capabilities.identity!r} ({self.path})"

    def _load(self, cut: bool) -> Mapping[str, Any]:
        """Read the whole file once: its order, its answers, the key of each query."""
        device: Mapping[str, Any] = {}
        written: dict[int, Key] = {}
        for number, (record, raw) in enumerate(records(self.path, cut=cut)):
            head, kind = record.head, record.head.get("kind")
            if (kind == "device") != (number == 0):
                raise DataError(f"recording {self.path}: record {number} is {kind!r}; the device comes first, and once")
            if kind == "device":
                device = head
            elif kind == "answer":
                self._answers[int(head["number"])] = (number, record)
            elif kind in self._others:
                self._others[kind].append(record)
            elif kind in CALLS:
                self._calls.append(record)
                arrays = unpacked(record, raw, self.path)
                if kind == "query":
                    key = _query_key(Segment(*head["segment"]), head["taps"], head["repeats"], arrays, written)
                    self._by_key.setdefault(key, deque()).append(int(head["number"]))
                elif kind == "write" and "error" not in head:
                    written[int(head["stage"])] = _digest({k: v for k, v in arrays.items() if k.startswith("value:")})
                elif kind == "read":
                    self._reads.setdefault(int(head["stage"]), deque()).append(record)
        if not device:
            raise DataError(f"recording {self.path} is empty: the recorder was never opened")
        return device

    def _arrays(self, record: Record) -> dict[str, Array]:
        with self.path.open("rb") as file:
            file.seek(record.place)
            return unpacked(record, file.read(record.size), self.path)

    def _other(self, kind: str) -> Mapping[str, Any] | None:
        """The next snapshot or health; the last one again when there are no more."""
        waiting = self._others[kind]
        return None if not waiting else (waiting.popleft() if len(waiting) > 1 else waiting[0]).head

    # --- finding -------------------------------------------------------------------------------------------------

    def _find(self, query: Query) -> int:
        """The number of the recorded query that answers this one."""
        arrays = {"inputs": np.asarray(query.inputs)}
        for name in ("keys", "samples"):
            if (values := getattr(query, name, None)) is not None:
                arrays[name] = np.asarray(values)
        segment, taps, repeats = query.segment, [int(t) for t in query.taps], int(query.repeats)
        record = self._take("query", {"segment": [segment.lo, segment.hi], "taps": taps, "repeats": repeats}, arrays)
        if record is not None:
            return int(record.head["number"])
        key = _query_key(segment, taps, repeats, arrays, self._written)
        asked = self._asked_by_key[key] = self._asked_by_key.get(key, 0) + 1
        waiting = self._by_key.get(key)
        if waiting:
            return waiting.popleft()
        what = _described("query", {"segment": [segment.lo, segment.hi], "taps": taps, "repeats": repeats}, arrays)
        if waiting is None:
            raise BadInput(
                f"{self._name}: {what} was never asked under these parameters while it was recorded. Other inputs,"
                f" seeds,"
                " settings or versions ask other queries: record again, or go back to what was recorded"
            )
        raise BadInput(
            f"{self._name}: {what} was asked {asked} times, recorded {asked - 1} times. Record a longer session"
        )

    def _take(self, kind: str, asked: Mapping[str, Any], arrays: Mapping[str, Array]) -> Record | None:
        """Strictly: the next recorded call, which must be this one. By key: None."""
        if self.match == "key":
            return None
        what = _described(kind, asked, arrays)
        if self._at >= len(self._calls):
            raise BadInput(
                f"{self._name}: {what} was asked after the last of {self._at} recorded calls. Record a longer session"
            )
        record = self._calls[self._at]
        recorded = self._arrays(record)
        differs = record.head["kind"] != kind or any(record.head.get(k) != v for k, v in asked.items())
        found = "" if differs else _difference(arrays, recorded)
        if differs or found:
            raise BadInput(
                f"{self._name}: call {self._at} asks {what}; recorded at this place:"
                f" {_described(str(record.head['kind']), record.head, recorded)}{found}. Another seed, setting or"
                f" version"
                " asks otherwise; where only the order differs, match='key'"
            )
        self._at += 1
        return record

    def _answer(self, number: int) -> Reply:
        if number not in self._answers:
            raise DeviceError(f"{self._name}: query {number} was asked, and the recording ends before its answer")
        record = self._answers[number][1]
        _raise_recorded(record.head)
        arrays = self._arrays(record)
        taps = {int(n.removeprefix("tap:")): v for n, v in arrays.items() if n.startswith("tap:")}
        return Reply(
            arrays["outputs"], taps, dict(record.head.get("monitors", {})), float(record.head.get("seconds", 0.0))
        )

    def _do(self, name: str) -> None:
        record = self._take(name, {}, {})
        if record is not None:
            _raise_recorded(record.head)


class _PipelinedReplay(Replay):
    """Answers come in the order in which they came when recorded."""

    def __init__(self, path: str | Path, match: Literal["strict", "key"] = "strict", cut: bool = False) -> None:
        super().__init__(path, match, cut)
        self._flying: dict[int, int] = {}
        self._next = 0

    def submit(self, query: Query) -> int:
        number = self._find(query)
        ticket, self._next = self._next, self._next + 1
        self._flying[ticket] = number
        return ticket

    def poll(self, timeout: float) -> list[tuple[int, Reply | Exception]]:
        """The answer that came first among those outstanding; without any, nothing, at once."""
        answered = [(self._answers[n][0], t) for t, n in self._flying.items() if n in self._answers]
        if not answered:
            return []
        ticket = min(answered)[1]
        try:
            return [(ticket, self._answer(self._flying.pop(ticket)))]
        except Exception as error:  # noqa: BLE001 - a recorded error is the answer
            return [(ticket, error)]

    def cancel(self) -> None:
        self._flying.clear()
        if self.match == "strict" and self._at < len(self._calls) and self._calls[self._at].head["kind"] == "cancel":
            self._at += 1


def _raise_recorded(head: Mapping[str, Any]) -> None:
    if "error" not in head:
        return
    name, text = head["error"]
    kind = getattr(errors, str(name), None)
    if isinstance(kind, type) and issubclass(kind, errors.HzoError):
        raise kind(text)
    raise DeviceError(f"{name}: {text} (recorded)")


def _digest(arrays: Mapping[str, Array]) -> Key:
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        values = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {values.dtype.str} {values.shape};".encode())
        found.update(values.tobytes())
    return found.digest()


def _query_key(
    segment: Segment, taps: Sequence[int], repeats: int, arrays: Mapping[str, Array], written: Mapping[int, Key]
) -> Key:
    """Which queries count as the same. `samples` only spread rows over a pool: they are no content."""
    content = {k: v for k, v in arrays.items() if k in ("inputs", "keys")}
    held = b"".join(written.get(s, bytes(16)) for s in range(segment.lo, segment.hi))
    head = f"{segment.lo} {segment.hi} {list(taps)} {repeats};".encode()
    return hashlib.blake2b(head + _digest(content) + held, digest_size=16).digest()


def _described(kind: str, head: Mapping[str, Any], arrays: Mapping[str, Array]) -> str:
    if kind == "query":
        lo, hi = head["segment"]
        extra = f", taps {head['taps']}" if head["taps"] else ""
        extra += f", {head['repeats']} repeats" if head["repeats"] != 1 else ""
        inputs = arrays["inputs"]
        return f"a query of stages {lo + 1}..{hi} with inputs {inputs.dtype} {list(inputs.shape)}{extra}"
    if kind in ("write", "read"):
        names = sorted(n.removeprefix("value:") for n in arrays if n.startswith("value:"))
        return f"a {kind} of stage {head['stage']}" + (f" ({', '.join(names)})" if kind == "write" else "")
    return f"a {kind}"


def _difference(asked: Mapping[str, Array], recorded: Mapping[str, Array]) -> str:
    """In words, the first difference between what is asked and what was; "" where there is none."""
    for name in sorted(asked):
        if name == "samples":
            continue
        if name not in recorded:
            return f", without {name}"
        a, b = np.asarray(asked[name]), recorded[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            return f", whose {name} are {b.dtype} {list(b.shape)} and not {a.dtype} {list(a.shape)}"
        if a.tobytes() != b.tobytes():
            apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
            return (
                f", whose {name} differ in {np.count_nonzero(a != b)} of {a.size} values, by {apart.max():.3g} at most"
            )
    if missing := sorted({"keys"} & (set(recorded) - set(asked))):
        return f", with {', '.join(missing)}"
    return ""
