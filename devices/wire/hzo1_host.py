"""HZO/1 as the host speaks it: one session's numbers, parameter versions and answers. Sans-IO.

parameter versions       the device's (`_base`)       the next run carries (`_version`)
new session              0                            0
WRITE v acknowledged     v                            v
device lost them         0                            a version no device has: STALE until the next WRITE
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hzo_hil.devices import manifest
from hzo_hil.devices.api import Query, Reply
from hzo_hil.devices.errors import BadInput, BadReply, Busy, DeviceError, DeviceRebooted, HzoError, WireError
from hzo_hil.devices.wire import messages as m
from hzo_hil.devices.wire.conversation import Buffer, Event, Request, Welcome, flat_changes

Array = NDArray[Any]


class Hzo1Host:
    """One session. See `Conversation` for what the calls promise."""

    probes = True

    def __init__(self, session: int | None = None, limits: m.Limits = m.LIMITS) -> None:
        self.session = session if session is not None else secrets.randbits(63) + 1
        self.limits = limits
        self.place = "the device"
        self.credit = 1
        self._boot = ""
        self._greeting = False
        self._seq = 0
        self._base = 0
        self._version = 0
        self._last_version = 0
        self._pending: dict[int, tuple[str, int, Any]] = {}  # seq -> (kind, job, what it asked for)
        self._run_metas: dict[tuple[int, int, tuple[int, ...], int], bytes] = {}

    # --- asking ------------------------------------------------------------------------------------------------

    def hello(self, takeover: bool, run_id: str, ping_s: float) -> Request:
        content = {"protocol": list(m.PROTOCOL), "run_id": run_id, "takeover": takeover, "ping_s": ping_s}
        self._greeting = True
        # The device need not remember answers to what lies before the oldest unanswered request.
        answered = next(iter(self._pending), self._seq + 1) - 1
        return Request(-1, -1, m.encode(m.HELLO, self.session, answered, meta=m.pack_json(content)), 128)

    def run(self, job: int, query: Query) -> list[Request]:
        segment = query.segment
        key = (segment.lo, segment.hi, tuple(query.taps), query.repeats)
        meta = self._run_metas.get(key) or self._run_meta(key)
        arrays = [m.sendable(query.inputs, "inputs")]
        if query.keys is not None:
            arrays.append(m.sendable(np.asarray(query.keys, np.uint64), "keys"))
        return [self._request(m.RUN, "run", job, meta, arrays, (0, 1)[: len(arrays)], self._version, query.taps)]

    def _run_meta(self, key: tuple[int, int, tuple[int, ...], int]) -> bytes:
        lo, hi, taps, repeats = key
        content: dict[str, Any] = {"lo": lo, "hi": hi}
        if taps:
            content["taps"] = list(taps)
        if repeats != 1:
            content["repeats"] = repeats
        meta = self._run_metas[key] = m.pack_json(content)
        return meta

    def write(
        self,
        job: int,
        stage: int,
        values: Mapping[str, Array],
        where: Mapping[str, Array] | None = None,
        key: int | None = None,
    ) -> list[Request]:
        if not 0 <= stage < 1 << 16 or stage != int(stage):
            raise BadInput(f"{self.place}: stages are numbered 0, 1, ..., not {stage!r}")
        if not self._base:
            where = None  # what the rest holds is not known
        content: dict[str, Any] = {"names": list(values), "base": self._base}
        if key is not None:
            content["key"] = int(key)
        arrays: list[Array] = []
        for name, array in values.items():
            sent = m.sendable(array, f"parameter {name!r}")
            arrays += [sent] if where is None else flat_changes(sent, where.get(name, np.arange(sent.size)))
        if where is not None:
            content["where"] = True
        version = max(self._last_version, self._version) + 1
        roles = (stage,) * len(arrays)
        # Kept until it is answered, as is whatever it points at: a copy, for the caller goes on training.
        arrays = [np.array(a) for a in arrays]
        request = self._request(m.WRITE, "write", job, m.pack_json(content), arrays, roles, version, version)
        self._last_version = self._version = version
        return [request]

    def read(self, job: int, what: Literal["parameters", "snapshot", "health"], stage: int = 0) -> list[Request]:
        return [self._request(m.READ, "read", job, m.pack_json({"what": what, "stage": stage}), asked=what)]

    def do(self, job: int, action: Literal["park", "maintain"]) -> list[Request]:
        return [self._request(m.DO, "do", job, m.pack_json({"do": action}), asked=action)]

    def ping(self) -> Request:
        return Request(-1, -1, m.encode(m.PING, self.session, 0), 32)

    def bye(self) -> Request | None:
        return Request(-1, -1, m.encode(m.BYE, self.session, 0), 32)

    def _request(
        self,
        kind: int,
        word: str,
        job: int,
        meta: bytes,
        arrays: Sequence[Array] = (),
        roles: Sequence[int] = (),
        version: int = 0,
        asked: Any = None,
    ) -> Request:
        size, limits = 128, self.limits
        for array in arrays:
            size += array.nbytes
        if size > limits.array or size > limits.total or len(arrays) + 3 > limits.frames or len(meta) > limits.meta:
            raise BadInput(
                f"{self.place}: a {word} of {size} bytes in {len(arrays)} arrays, at most {limits.array} bytes in"
                f" {limits.frames - 3} arrays go into one message. Send smaller batches (max_batch)"
            )
        seq, pending = self._seq + 1, self._pending
        unsettled = seq - next(iter(pending), seq) + 1
        frames = m.encode(kind, self.session, seq, meta, arrays, roles, version, unsettled)
        self._seq = seq
        pending[seq] = (word, job, asked)
        return Request(seq, job, frames, size)

    # --- hearing -----------------------------------------------------------------------------------------------

    def receive(self, frames: Sequence[Buffer]) -> list[Event]:
        try:
            message = m.decode(frames, self.limits)
        except m.OtherVersion as error:
            return [Event("refused", result=self._other_version(str(error)))]
        if message.session != self.session and not (message.kind == m.ERROR and self._greeting):
            raise WireError(f"{self.place}: an answer for session {message.session:x}, not {self.session:x}")
        if message.credit:
            self.credit = message.credit
        if message.kind == m.RESULT:  # by far the commonest
            return self._result(message)
        return self._rare(message)

    def _rare(self, message: m.Message) -> list[Event]:
        if message.kind == m.PONG:
            return [Event("pong")]
        if message.kind == m.READY:
            if not self._greeting:
                return []  # the answer to a greeting that was sent twice
            return [Event("ready", result=self._welcome(message))]
        if message.kind == m.ACK:
            return self._acknowledged(message)
        if message.kind == m.SNAPSHOT:
            return self._contents(message)
        if message.kind == m.ERROR:
            return self._error(message)
        raise WireError(f"{self.place}: a device does not send messages of type {message.kind}")

    def _result(self, message: m.Message) -> list[Event]:
        seq, meta, arrays = message.seq, message.meta, message.arrays
        word, job, taps = self._pending.get(seq, _NOBODY)
        if job < 0:
            return []
        if word != "run" or len(arrays) != 1 + len(taps):
            raise WireError(f"{self.place}: a result that answers a {word} with {len(arrays)} arrays")
        found = dict(zip(message.roles[1:], map(_own, arrays[1:]), strict=True)) if taps else {}
        spent, monitors = _told(meta)
        del self._pending[seq]
        return [Event("answer", seq, job, Reply(_own(arrays[0]), found, monitors, spent))]

    def _acknowledged(self, message: m.Message) -> list[Event]:
        word, job, asked = self._pending.get(message.seq, ("", -1, None))
        if word not in ("write", "do"):
            return []
        if word == "write":
            self._base = asked
        elif asked == "park":
            self.forget()
        del self._pending[message.seq]
        return [Event("answer", message.seq, job)]

    def _contents(self, message: m.Message) -> list[Event]:
        word, job, asked = self._pending.get(message.seq, ("", -1, None))
        if word != "read":
            return []
        options = message.options()
        if asked == "parameters":
            names = options.get("names", [])
            if not isinstance(names, list) or len(names) != len(message.arrays):
                raise WireError(f"{self.place}: {len(message.arrays)} parameters came under the names {names!r}")
            found: Mapping[str, Any] = {str(n): _own(a) for n, a in zip(names, message.arrays, strict=True)}
        else:
            found = dict(options)
        del self._pending[message.seq]
        return [Event("answer", message.seq, job, found)]

    def _error(self, message: m.Message) -> list[Event]:
        options = message.options()
        code, text = str(options.get("code", "")), str(options.get("text", ""))
        if code == "VERSION":
            return [Event("refused", result=self._other_version(text))]
        if code == "BUSY" and message.session == self.session:
            return [Event("refused", result=Busy(f"{self.place}: {text}"))]
        if code == "SESSION" and message.session == self.session:
            return [Event("stranger")]
        if message.session != self.session:
            return []
        word, job, _ = self._pending.pop(message.seq, ("", -1, None))
        if not word:
            return []
        if code == "STALE" or (word == "write" and code == "DEVICE"):
            self.forget()
        elif word == "write":
            self._version = self._base if self._base else self._version  # refused whole: nothing has changed
        return [Event("answer", message.seq, job, self._fault(code, text))]

    def _fault(self, code: str, text: str) -> HzoError:
        if code == "STALE":
            return DeviceRebooted(f"{self.place}: {text}. Everything must be written again")
        kind = {"INPUT": BadInput, "SIZE": BadInput, "REPLY": BadReply}.get(code, DeviceError)
        return kind(f"{self.place}: {text}")

    def _other_version(self, text: str) -> DeviceError:
        return DeviceError(f"{self.place}: {text}. Install the same major version of hzo-hil on both sides")

    def _welcome(self, message: m.Message) -> Welcome:
        options = message.options()
        boot, features = options.get("boot"), options.get("features", [])
        if not isinstance(boot, str) or not boot or len(boot) > 16 or set(boot.lower()) - set("0123456789abcdef"):
            raise WireError(f"{self.place}: a boot id is 1 to 16 hexadecimal digits, not {boot!r}")
        if not isinstance(features, list):
            raise WireError(f"{self.place}: features are a list, not {features!r}")
        capabilities = manifest.from_json(options.get("capabilities"))
        resumed = options.get("resumed") is True and boot == self._boot
        self._boot, self._greeting = boot, False
        if not resumed:
            self.forget()
            self._pending.clear()
        longest = m.seconds(options, "longest_call_s", capabilities.longest_call_s, 1e-3, 86400.0)
        return Welcome(
            capabilities, int(boot, 16), resumed, self.credit, frozenset(map(str, features)), longest, dict(options)
        )

    # --- forgetting --------------------------------------------------------------------------------------------

    def drop(self, jobs: Sequence[int]) -> None:
        gone = set(jobs)
        for seq in [s for s, (_, job, _) in self._pending.items() if job in gone]:
            del self._pending[seq]

    def forget(self) -> None:
        self._base = 0
        if self._last_version:
            self._version = self._last_version = self._last_version + 1


_NOBODY: tuple[str, int, Any] = ("", -1, None)


def _own(array: Array) -> Array:
    """An aligned, writable array: what came in as read-only bytes is copied."""
    flags = array.flags
    return array if flags.writeable and flags.aligned else array.copy()


def _told(meta: Buffer) -> tuple[float, dict[str, float]]:
    """(seconds, monitors) of a result. Seconds alone, by far the commonest, are read without a JSON parser."""
    if not len(meta):
        return 0.0, {}
    raw = meta if type(meta) is bytes else bytes(meta)
    if raw.startswith(b'{"seconds":') and len(raw) < 32:
        try:
            return float(raw[11:-1]), {}
        except ValueError:
            pass
    options = m.options_of(raw)
    return _number(options.get("seconds", 0.0)), _numbers(options.get("monitors"))


def _numbers(raw: Any) -> dict[str, float]:
    return {str(k): _number(v) for k, v in raw.items()} if isinstance(raw, dict) else {}


def _number(raw: Any) -> float:
    return float(raw) if type(raw) is float or (type(raw) is int and abs(raw) < 1 << 60) else float("nan")
