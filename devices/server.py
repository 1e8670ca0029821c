"""Serves any device over HZO/1: one thread, everything in order. Knows no training and needs no torch.

It adds what a driver need not know: repeats averaged here, writes of single values merged here, checks of what the
driver answers, parking when the host falls silent.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.devices import manifest
from hzo_hil.devices.api import Device, Reply, Segment
from hzo_hil.devices.errors import BadInput, BadReply, ConfigError, DeviceError, WireError
from hzo_hil.devices.wire import messages as m
from hzo_hil.devices.wire.hzo1_served import Frames, Hzo1Served, Job

Array = NDArray[Any]
SLICE_S = 0.2
COPIED_BYTES = 1 << 14
"""Shorter answers are copied: that is cheaper than to find out whether they must be."""
RUNNERS = 1 << 20
"""Most repeats of a query: more is a mistake."""


def listen(bind: str, keys: Path | None, allow: Path | None, insecure: bool) -> Any:
    """The listener a URL means."""
    scheme = bind.partition("://")[0]
    if scheme == "memory":
        from hzo_hil.devices.transports.memory import MemoryListener

        return MemoryListener(bind)
    if scheme not in ("tcp", "ipc", "zmq+tcp", "zmq+ipc") or "://" not in bind:
        raise ConfigError(
            f"{bind!r} is nothing a server can bind: tcp://127.0.0.1:5555 or ipc:///tmp/name, for example"
        )
    from hzo_hil.devices.transports.zeromq import ZmqListener

    return ZmqListener(bind, keys, allow, insecure)


class Server:
    """Hosts `device` at `bind`. `serve` works until it is stopped; `step` does one round of it.

    `park_after_s`: the device is parked when its host was silent for so long (0: never). `longest_call_s`: instead of
    what the device declares. `allow`: folder of the .pub files of hosts let in (default: `keys`).
    """

    def __init__(
        self,
        device: Device,
        bind: str,
        *,
        keys: Path | None = None,
        allow: Path | None = None,
        insecure: bool = False,
        credit: int = 16,
        park_after_s: float = 30.0,
        longest_call_s: float | None = None,
        log: logging.Logger | None = None,
        clock: Callable[[], float] = time.monotonic,
        boot: int | None = None,
    ) -> None:
        if not 1 <= credit <= 1024:
            raise ConfigError(f"credit is the number of queries in flight, 1 to 1024, not {credit}")
        if not park_after_s >= 0:
            raise ConfigError(f"park_after_s is 0 (never) or a number of seconds, not {park_after_s}")
        self.device = device
        self.log = log if log is not None else logging.getLogger("hzo_hil.server")
        self.capabilities = device.capabilities
        if longest_call_s is not None:
            self.capabilities = dataclasses.replace(self.capabilities, longest_call_s=longest_call_s)
        self.park_after_s = park_after_s
        self.bad_messages = 0
        self.runs = 0
        self._clock = clock
        self._listener = listen(bind, keys, allow, insecure)
        self.url: str = self._listener.url
        features = ["where", "repeats"] + [n for n in ("park", "maintain") if callable(getattr(device, n, None))]
        self._served = Hzo1Served(
            manifest.to_json(dataclasses.replace(self.capabilities, repeats=True)),
            boot if boot is not None else secrets.randbits(63) + 1,
            credit,
            features,
            self.capabilities.longest_call_s,
        )
        self._driver = Driver(device)
        self._opened = False
        self._parked = True

    # --- rounds ------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the device; `step` needs it."""
        if not self._opened:
            self.device.open()
            self._opened = True

    def serve(self, stop: threading.Event | None = None) -> None:
        """Serve until `stop` is set or Ctrl-C is pressed. The device is parked and closed on the way out."""
        try:
            self.open()
            self.log.info("serving %s at %s", self.capabilities.identity, self.url)
            while stop is None or not stop.is_set():
                self.step(SLICE_S)
        except KeyboardInterrupt:
            self.log.info("stopped by Ctrl-C")
        finally:
            self.close()

    def step(self, timeout: float) -> None:
        """Wait at most `timeout` seconds for messages, deal with those there, park if the host has fallen silent."""
        arrived = self._listener.receive(timeout)
        if arrived:
            for peer, frames in arrived:
                self._take(peer, frames)
        else:
            self._watch()

    def close(self) -> None:
        """Park and close the device, free the port."""
        try:
            self._park("the server stops")
        finally:
            self._listener.close()
            if self._opened:
                self._opened = False
                self.device.close()

    def _take(self, peer: bytes, frames: list[Any]) -> None:
        session = self._served.session
        try:
            what = self._served.receive(peer, frames, self._clock())
        except WireError as error:
            self.bad_messages += 1
            if self.bad_messages & (self.bad_messages - 1) == 0:
                self.log.warning("dropped a message (%d so far): %s", self.bad_messages, error)
            return
        if what is None:
            if session is not None and self._served.session is None:
                self._park("the host has said goodbye")
        elif isinstance(what, Job):
            self._listener.send(peer, self._done(what))
            if self._served.session is not None:
                self._served.session.heard = self._clock()  # while the device worked, nobody listened
        else:
            self._listener.send(peer, what)

    def _watch(self) -> None:
        if self.park_after_s and not self._parked and self._served.silence(self._clock()) >= self.park_after_s:
            self._park(f"nothing was heard of the host for {self.park_after_s:g} s")

    def _park(self, why: str) -> None:
        self._served.lost()
        self._driver.forget()
        park = getattr(self.device, "park", None)
        if self._parked or not self._opened:
            return
        self._parked = True
        if not callable(park):
            return
        try:
            park()
            self.log.warning("parked %s: %s", self.capabilities.identity, why)
        except Exception as error:  # noqa: BLE001 - whatever a driver raises, the server goes on
            self.log.error("%s could not be parked (%s): %s", self.capabilities.identity, why, error)

    # --- jobs --------------------------------------------------------------------------------------------------

    def _done(self, job: Job) -> Frames:
        served = self._served
        if job.kind != "read":
            self._parked = False
        try:
            if job.kind == "run":
                self.runs += 1
                return served.answered(job, *self._driver.run(job))
            if job.kind == "write":
                self._driver.write(job)
                return served.answered(job)
            if job.kind == "read":
                return served.answered(job, *self._driver.read(job))
            return self._do(job)
        except (BadInput, WireError) as error:
            return served.refused(job, "INPUT", str(error))
        except Stale as error:
            return served.refused(job, "STALE", str(error))
        except BadReply as error:
            return served.refused(job, "REPLY", str(error))
        except Exception as error:  # noqa: BLE001 - a driver may raise anything; the host is told
            return self._failed(job, error)

    def _failed(self, job: Job, error: Exception) -> Frames:
        text = str(error) if isinstance(error, DeviceError) else f"its driver raised {type(error).__name__}: {error}"
        self.log.warning("%s: %s failed: %s", self.capabilities.identity, job.kind, text)
        reply = self._served.refused(job, "DEVICE", text)
        if job.kind == "write":
            self._served.lost()
            self._driver.forget()
        return reply

    def _do(self, job: Job) -> Frames:
        action = job.options.get("do")
        if action == "park":
            self._park("the host asked for it")
            return self._served.answered(job)
        maintain = getattr(self.device, "maintain", None)
        if action != "maintain" or not callable(maintain):
            raise BadInput(f"this device cannot {action!r}; it can {', '.join(self._served.features)}")
        maintain()
        return self._served.answered(job)


_NO_TAPS: Mapping[int, Array] = {}


class Stale(Exception):
    """A change of values that are not known any more."""


class Driver:
    """The lab's device as jobs need it: arrays checked on the way in and on the way out."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.capabilities = device.capabilities
        self._dtype = np.dtype(self.capabilities.dtype)
        self._widths = [self.capabilities.width(b) for b in range(len(self.capabilities.boundaries))]
        self._last: dict[int, dict[str, Array]] = {}
        self._asked_before: dict[bytes, tuple[Segment, tuple[int, ...], int]] = {}

    def forget(self) -> None:
        self._last.clear()

    # --- run ---------------------------------------------------------------------------------------------------

    def run(self, job: Job) -> tuple[list[Array], list[int], bytes, int]:
        """(arrays, roles, META, flags) of the answer."""
        message = job.message
        asked = self._asked_before.get(message.meta)
        if asked is None:
            if len(self._asked_before) > 1024:
                self._asked_before.clear()
            asked = self._asked_before[bytes(message.meta)] = self._asked(job.options)
        segment, taps, repeats = asked
        inputs = self._inputs(message.arrays, segment.lo)
        keys = self._keys(message.arrays, len(inputs)) if len(message.arrays) > 1 else None
        start = time.perf_counter()
        if repeats == 1 or self.capabilities.repeats:
            reply = self._once(segment, inputs, taps, repeats, keys)
        else:
            reply = self._averaged(segment, inputs, taps, repeats, keys)
        meta = _result_meta(reply.seconds or time.perf_counter() - start, reply.monitors)
        if taps:
            found, roles = [reply.outputs, *(reply.taps[t] for t in taps)], [segment.hi, *taps]
            return found, roles, meta, 0 if all(map(_finite, found)) else m.NON_FINITE
        return [reply.outputs], [segment.hi], meta, 0 if _finite(reply.outputs) else m.NON_FINITE

    def _inputs(self, arrays: list[Array], boundary: int) -> Array:
        """C-contiguous, aligned, writable, of the declared dtype: what a driver may do anything with."""
        width = self._widths[boundary]
        if not arrays or arrays[0].ndim != 2 or arrays[0].shape[1] != width or not len(arrays[0]):
            got = list(arrays[0].shape) if arrays else "nothing"
            raise BadInput(f"inputs at boundary {boundary} are [batch, {width}], {got} came")
        array = arrays[0]
        if array.dtype != self._dtype:
            return np.ascontiguousarray(array, self._dtype)
        flags = array.flags
        return array if flags.aligned and flags.writeable else array.copy()

    def _keys(self, arrays: list[Array], rows: int) -> Array | None:
        keys = arrays[1]
        if keys.shape != (rows,) or keys.dtype != np.uint64:
            raise BadInput(f"noise keys are {rows} uint64, one an input; {keys.dtype} {list(keys.shape)} came")
        return keys.copy() if self.capabilities.keyed else None

    def _asked(self, options: Mapping[str, Any]) -> tuple[Segment, tuple[int, ...], int]:
        c, stages = self.capabilities, len(self.capabilities.stages)
        lo, hi = m.whole(options, "lo", most=stages), m.whole(options, "hi", most=stages)
        repeats = m.whole(options, "repeats", 1, RUNNERS) or 1
        taps = options.get("taps", ())
        if taps and not c.taps:
            raise BadInput("this device reads no inner boundaries within a query (taps)")
        if not isinstance(taps, (list, tuple)) or not all(type(t) is int and lo < t <= hi for t in taps):
            raise BadInput(f"taps are boundaries from {lo + 1} to {hi}, not {taps!r}")
        segment = Segment(lo, hi)
        if not c.boundaries[lo].drive or not c.boundaries[hi].read:
            raise BadInput(f"this device cannot be driven at boundary {lo} and read at boundary {hi}")
        return segment, tuple(taps), repeats

    def _averaged(
        self, segment: Segment, inputs: Array, taps: tuple[int, ...], repeats: int, keys: Array | None
    ) -> Reply:
        rows = np.repeat(inputs, repeats, axis=0)
        if keys is not None:
            keys = np.repeat(keys, repeats) + np.tile(np.arange(repeats, dtype=np.uint64), len(inputs))
        size = self._most_rows(inputs)
        parts = [
            self._once(segment, rows[i : i + size], taps, 1, None if keys is None else keys[i : i + size])
            for i in range(0, len(rows), size)
        ]
        outputs = _mean([p.outputs for p in parts], repeats)
        tapped = {t: _mean([p.taps[t] for p in parts], repeats) for t in taps}
        monitors = {k: v for p in parts for k, v in p.monitors.items()}
        return Reply(outputs, tapped, monitors, sum(p.seconds for p in parts))

    def _most_rows(self, inputs: Array) -> int:
        c = self.capabilities
        most = c.max_batch or 1 << 30
        if c.max_bytes:
            most = min(most, c.max_bytes // max(1, inputs[0].nbytes))
        return max(1, most)

    def _once(self, segment: Segment, inputs: Array, taps: tuple[int, ...], repeats: int, keys: Array | None) -> Reply:
        rows, hi = inputs.shape[0], segment.hi
        if not taps and repeats == 1 and keys is None:
            reply = self.device.run(segment, inputs)
            if type(reply) is Reply:
                outputs = reply.outputs
                if (
                    not _only_ours(outputs, sys.getrefcount(outputs), sys.getrefcount(reply), inputs)
                    or outputs.shape != (rows, self._widths[hi])
                    or outputs.dtype != self._dtype
                ):
                    outputs = self._checked(outputs, rows, hi)
                return Reply(outputs, _NO_TAPS, reply.monitors, reply.seconds)
            return Reply(self._checked(getattr(reply, "outputs", reply), rows, hi))
        options: dict[str, Any] = {}
        if taps:
            options["taps"] = taps
        if repeats != 1:
            options["repeats"] = repeats
        if keys is not None:
            options["keys"] = keys
        reply = self.device.run(segment, inputs, **options)
        outputs = self._checked(getattr(reply, "outputs", reply), rows, hi)
        found: Any = getattr(reply, "taps", {})
        tapped = {t: self._checked(found.get(t), len(inputs), t) for t in taps}
        monitors = getattr(reply, "monitors", {})
        return Reply(outputs, tapped, monitors, float(getattr(reply, "seconds", 0.0)))

    def _checked(self, values: Any, rows: int, boundary: int) -> Array:
        expected = (rows, self._widths[boundary])
        if type(values) is np.ndarray and values.shape == expected and values.dtype == self._dtype:
            # An answer is kept for repeats: a driver that fills the same buffer again must not change it.
            return values.copy()
        ok = isinstance(values, np.ndarray) and values.shape == expected and values.dtype.kind in "fiu"
        if not ok or (values.dtype.kind == "f" and values.dtype.itemsize < self._dtype.itemsize):
            got = f"{values.dtype} {list(values.shape)}" if isinstance(values, np.ndarray) else type(values).__name__
            raise BadReply(
                f"its driver answered {got} to {rows} inputs, read at boundary {boundary}; expected {self._dtype}"
                f" {list(expected)}. Its capabilities and its run() disagree"
            )
        return m.sendable(values, "outputs").copy()

    # --- write, read -------------------------------------------------------------------------------------------

    def write(self, job: Job) -> None:
        stages, arrays, roles = self.capabilities.stages, job.message.arrays, job.message.roles
        names, single = job.options.get("names", []), job.options.get("where") is True
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise BadInput(f"names are a list of parameter names, not {names!r}")
        if len(arrays) != len(names) * (1 + single) or any(r >= len(stages) for r in roles):
            raise BadInput(f"{len(arrays)} arrays for the parameters {names} of stages {sorted(set(roles))}")
        options: dict[str, Any] = {}
        if self.capabilities.keyed:
            options["key"] = m.whole(job.options, "key", 0, (1 << 64) - 1)
        for stage in dict.fromkeys(roles):
            mine = [i for i, r in enumerate(roles[:: 1 + single]) if r == stage]
            values, where = self._merged(
                stage, {names[i]: arrays[i * (1 + single) : (i + 1) * (1 + single)] for i in mine}
            )
            self._last.pop(stage, None)
            self.device.write(
                stage, {n: v.copy() for n, v in values.items()}, where=where if single else None, **options
            )
            self._last[stage] = values

    def _merged(self, stage: int, sent: dict[str, list[Array]]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Every value of the stage, and where those are that came."""
        spec = self.capabilities.stages[stage]
        known = {p.name: p for p in spec.parameters}
        if sorted(sent) != sorted(known):
            raise BadInput(f"stage {stage} has the parameters {sorted(known)}, {sorted(sent)} came")
        values, where = {}, {}
        for name, arrays in sent.items():
            if len(arrays) == 1:
                values[name], where[name] = arrays[0].copy(), np.arange(arrays[0].size)
            else:
                values[name], where[name] = self._changed(stage, name, *arrays), arrays[1].astype(np.intp)
            if values[name].shape != known[name].shape:
                raise BadInput(f"parameter {name!r} is {list(known[name].shape)}, {list(values[name].shape)} came")
        return values, where

    def _changed(self, stage: int, name: str, changed: Array, indices: Array) -> Array:
        last = self._last.get(stage, {}).get(name)
        if last is None:
            raise Stale(f"single values of parameter {name!r}, but the others are not known")
        if indices.shape != changed.shape or indices.dtype.kind not in "iu" or indices.ndim != 1:
            raise BadInput(
                f"parameter {name!r}: {changed.size} values at {indices.dtype} {list(indices.shape)} indices"
            )
        if len(indices) and (indices.min() < 0 or indices.max() >= last.size):
            raise BadInput(f"parameter {name!r}: an index outside its {last.size} values")
        merged = last.astype(changed.dtype, copy=True).reshape(-1)
        merged[indices] = changed
        return merged.reshape(last.shape)

    def read(self, job: Job) -> tuple[list[Array], list[int], bytes]:
        """(arrays, roles, META) of the answer."""
        what = job.options.get("what", "parameters")
        if what == "snapshot":
            return [], [], m.pack_json({str(k): _plain(v) for k, v in self.device.snapshot().items()})
        if what == "health":
            health = self.device.health()
            return [], [], m.pack_json({"ok": bool(health.ok), "detail": str(health.detail)})
        stage = m.whole(job.options, "stage", 0)
        if what != "parameters" or stage >= len(self.capabilities.stages):
            raise BadInput(f"nothing to read: {what!r} of stage {stage}")
        found = self.device.read(stage)
        arrays = [m.sendable(np.array(v), f"parameter {n!r}") for n, v in found.items()]
        return arrays, list(range(len(arrays))), m.pack_json({"names": list(found)})


def _result_meta(seconds: float, monitors: Mapping[str, float]) -> bytes:
    if not monitors:
        return b'{"seconds":%.7f}' % seconds
    named = {str(k): float(v) for k, v in monitors.items() if np.isfinite(v)}
    return m.pack_json({"seconds": seconds, "monitors": named})


def _mean(parts: list[Array], repeats: int) -> Array:
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    mean: Array = whole.reshape(-1, repeats, whole.shape[-1]).mean(axis=1)
    return mean


def _finite(values: Array) -> bool:
    # A sum of squares is much cheaper than a mask; it may also overflow.
    return values.dtype.kind != "f" or math.isfinite(np.vdot(values, values)) or bool(np.isfinite(values).all())


def _only_ours(values: Any, references: int, reply_references: int, inputs: Array) -> bool:
    """Whether a driver kept no way to this memory, so that a large answer need not be copied to be kept.

    References counted in `Driver._once`: a new array is held by its reply, a variable and the count itself; the inputs
    handed back also by three of our own variables.
    """
    if type(values) is not np.ndarray or values.nbytes < COPIED_BYTES or reply_references > 2:
        return False
    if not values.flags.c_contiguous:
        return False
    return references <= 6 if values is inputs else references <= 3 and values.base is None and values.flags.owndata


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
