"""Serves any device over HZO/1: one thread, everything in order; the device is parked when its host falls silent.

What a driver need not know is added by `driver`. Knows no training and needs no torch.
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hzo_hil.devices import manifest
from hzo_hil.devices.api import Device
from hzo_hil.devices.driver import Driver, Stale
from hzo_hil.devices.errors import BadInput, BadReply, ConfigError, DeviceError, WireError
from hzo_hil.devices.wire.hzo1_served import Frames, Hzo1Served, Job

SLICE_S = 0.2


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
        """Serve until `stop` is set or Ctrl-C (KeyboardInterrupt). The device is parked and closed on the way out."""
        try:
            self.open()
            self.log.info("serving %s at %s", self.capabilities.identity, self.url)
            while stop is None or not stop.is_set():
                self.step(SLICE_S)
        except KeyboardInterrupt:
            self.log.info("stopped from outside")
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
