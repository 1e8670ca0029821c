"""A device reached by URL: the device contract on top of any transport and protocol, with many queries in flight.

What keeps the way to it open is `connection`. Knows no protocol's bytes, no sockets, no training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.devices.api import Capabilities, Health, Query, Reply, Segment
from hzo_hil.devices.connection import Connection
from hzo_hil.devices.errors import BadInput, CapabilityError
from hzo_hil.devices.transports import Transport, transport_to
from hzo_hil.devices.wire.conversation import Conversation, Welcome

Array = NDArray[Any]


def conversation_for(url: str) -> Conversation:
    """The protocol a URL's device speaks."""
    if url.startswith("serial"):
        from hzo_hil.devices.wire.hzos_host import HzosHost

        return HzosHost()
    from hzo_hil.devices.wire.hzo1_host import Hzo1Host

    return Hzo1Host()


class RemoteDevice(Connection):
    """A `Device` that is also `Pipelined`. Opens on first use.

    `connect_s`: how long the first answer may take. `patience_s`: without the device for so long, what was asked fails
    with DeviceGone; until then it is kept, and sent again once the device is back. `ping_s`: how often an idle device
    is asked whether it lives. `takeover`: end another host's session. `run_id`: a restarted host with the same one
    takes over by itself. `conversation`: makes the protocol's host side, one for each session.
    """

    def __init__(
        self,
        url: str,
        *,
        keys: Path | None = None,
        patience_s: float = 30.0,
        ping_s: float = 1.0,
        connect_s: float = 5.0,
        takeover: bool = False,
        run_id: str = "",
        clock: Callable[[], float] = time.monotonic,
        transport: Transport | None = None,
        conversation: Callable[[], Conversation] | None = None,
    ) -> None:
        if not (ping_s > 0 and patience_s > 0 and connect_s > 0):
            raise BadInput(f"{url}: ping_s, patience_s and connect_s are above 0 s")
        self._options = {
            "keys": keys, "patience_s": patience_s, "ping_s": ping_s, "connect_s": connect_s,
            "takeover": takeover, "run_id": run_id,
        }  # fmt: skip
        line = transport if transport is not None else transport_to(url, keys)
        make = conversation or (lambda: conversation_for(url))
        super().__init__(url, line, make, patience_s, ping_s, connect_s, takeover, run_id, clock)

    # --- what is known of it -----------------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        return self._known().capabilities

    @property
    def window(self) -> int:
        """Queries worth keeping in flight: the device's credit."""
        self._known()
        return max(1, self._talk.credit)

    @property
    def features(self) -> frozenset[str]:
        return self._known().features

    def _known(self) -> Welcome:
        if self._welcome is None:
            self.open()
        assert self._welcome is not None
        return self._welcome

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, **self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __deepcopy__(self, memo: dict[int, Any]) -> RemoteDevice:
        return self  # one device, however many modules

    # --- queries -----------------------------------------------------------------------------------------------

    def run(
        self, segment: Segment, inputs: Array, taps: Sequence[int] = (), repeats: int = 1, keys: Any = None
    ) -> Reply:
        """One query, waited for."""
        query = Query(segment, inputs, taps, repeats, keys)
        reply = self._ask(lambda job: self._talk.run(job, query))
        assert isinstance(reply, Reply)
        return reply

    def submit(self, query: Query) -> int:
        with self._lock:
            if self.state != "up" and self.state != "lost":
                self.open()
            job = self._next_job
            self._next_job += 1
            requests = self._talk.run(job, query)
            self._live.add(job)
            self._send_new(requests)
            return job

    def poll(self, timeout: float) -> list[tuple[int, Reply | Exception]]:
        """What has arrived; waits at most `timeout` seconds. DeviceGone comes after `patience_s` without a device."""
        with self._lock:
            if not self._done and self.state in ("up", "lost"):
                self._step(timeout if self._live else 0.0)
                if not self._done and timeout > 0:
                    deadline = self._stepped + timeout
                    while not self._done and (left := deadline - self._clock()) > 0 and self._live:
                        self._step(left)
            found, self._done = self._done, []
            return found

    # --- everything else waits for its answer ------------------------------------------------------------------

    def write(
        self,
        stage: int,
        parameters: Mapping[str, Array],
        where: Mapping[str, Array] | None = None,
        key: int | None = None,
    ) -> None:
        """Returns once the device holds it. DeviceRebooted: it lost the rest; DeviceGone: who knows what it holds."""
        self._check_stage(stage)
        changed = where if "where" in self.features else None
        noise = key if self.capabilities.keyed else None
        self._ask(lambda job: self._talk.write(job, stage, parameters, changed, noise))

    def read(self, stage: int) -> Mapping[str, Array]:
        self._check_stage(stage)
        found: Mapping[str, Array] = self._ask(lambda job: self._talk.read(job, "parameters", stage))
        return found

    def _check_stage(self, stage: int) -> None:
        stages = self.capabilities.stages
        if not isinstance(stage, (int, np.integer)) or isinstance(stage, bool) or not 0 <= stage < len(stages):
            known = ", ".join(f"{k} ({spec.name})" for k, spec in enumerate(stages))
            raise BadInput(f"{self.name} has no stage {stage!r}; its stages are {known}")

    def snapshot(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._ask(lambda job: self._talk.read(job, "snapshot"))
        return found

    def health(self) -> Health:
        found = self._ask(lambda job: self._talk.read(job, "health"))
        return Health(bool(found.get("ok", False)), str(found.get("detail", "")))

    def park(self) -> None:
        """Bring the device to its safe state; nothing where it has none. Its parameters are lost."""
        if "park" in self.features:
            self._ask(lambda job: self._talk.do(job, "park"))

    def maintain(self) -> None:
        """Let the device re-lock or re-bias itself. CapabilityError where it cannot."""
        if "maintain" not in self.features:
            raise CapabilityError(f"{self.name} has no maintain(): its driver does not offer re-locking or re-biasing")
        self._ask(lambda job: self._talk.do(job, "maintain"))
