"""What a protocol's host side is to `RemoteDevice`: requests become frames, frames become events.

Each implementation is sans-IO: it sends nothing, waits for nothing, knows no time and no transport. `RemoteDevice`
owns the `Window` (what is in flight, when to send again) and treats every protocol alike.

The life of a session, as RemoteDevice drives it:

    new or lost --open transport, send hello()--> greeting
    greeting    --event "more"                 --> greeting   its `more` requests are sent, repeated while unanswered
    greeting    --event "ready", resumed       --> up         everything unanswered is sent again, same frames
    greeting    --event "ready", not resumed   --> up         everything unanswered fails with DeviceRebooted
    greeting    --event "refused"              --> (closed)   its exception is raised to the caller
    up          --event "answer"/"part"        --> up
    up          --event "stranger"             --> greeting   the device has forgotten the session: hello() again
    up          --window says "lost"           --> lost       transport closed and opened, hello() again
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from hzo_hil.devices.api import Capabilities, Query

Array = NDArray[Any]
Buffer = Any
"""Anything with the buffer interface: bytes, memoryview, a C-contiguous array."""

Kind = Literal["answer", "part", "more", "ready", "refused", "stranger", "pong"]


class Request:
    """One message to the device, kept until it is answered: a resend sends the very same frames.

    `seq` ascends by at least 1 from numbered request to numbered request and never repeats in the life of a
    conversation; the window's span counts it. `job` is what the asker waits for; several requests may serve one job.
    """

    __slots__ = ("frames", "job", "seq", "size")

    def __init__(self, seq: int, job: int, frames: Sequence[Buffer], size: int) -> None:
        self.seq = seq
        self.job = job
        self.frames = frames
        self.size = size
        """Bytes on the wire, near enough: for the window's byte limit."""


class Event:
    """What a received message means.

    kind       seq                   job            result
    "answer"   the request answered  the job, now   Reply (run), None (write, do), Mapping (read), or an exception:
                                     finished       DeviceRebooted, BadInput, CapabilityError, DeviceError, BadReply
    "part"     the request answered  -1             None: its job waits for other requests
    "more"     -1, or the one        -1             None; `more` are requests of the greeting to send now
               answered (greeting)
    "ready"    -1, or as above       -1             Welcome
    "refused"  -1                    -1             the exception to raise: Busy, or DeviceError naming both versions
    "stranger" -1                    -1             None
    "pong"     -1                    -1             None
    """

    __slots__ = ("job", "kind", "more", "result", "seq")

    def __init__(
        self, kind: Kind, seq: int = -1, job: int = -1, result: Any = None, more: Sequence[Request] = ()
    ) -> None:
        self.kind = kind
        self.seq = seq
        self.job = job
        self.result = result
        self.more = more


@dataclass(frozen=True)
class Welcome:
    """What the device says of itself. `resumed`: it is the same boot and still knows this session's answers."""

    capabilities: Capabilities
    boot: int
    resumed: bool
    credit: int
    features: frozenset[str]
    longest_call_s: float
    details: Mapping[str, Any] = field(default_factory=dict)


class Conversation(Protocol):
    """The host's half of one protocol. Jobs are numbers the caller chooses, 0 and above.

    `run`, `write`, `read` and `do` raise BadInput for what cannot be put on this wire. `write` counts the parameter
    version (epoch) up; every `run` after it carries the new one. Reading `capabilities` before "ready" is an error.
    """

    probes: bool
    """True: ask with a ping before repeating a silent request (large frames, reliable stream). False: repeat it."""

    credit: int
    """The device's credit as it last stated it; 1 before "ready"."""

    place: str
    """The device's name and URL, set by the caller, for error texts."""

    def hello(self, takeover: bool, run_id: str, ping_s: float) -> Request:
        """A greeting (seq -1, outside the window). The session's random id or nonce stays the conversation's own."""
        ...

    def run(self, job: int, query: Query) -> list[Request]: ...

    def write(
        self,
        job: int,
        stage: int,
        values: Mapping[str, Array],
        where: Mapping[str, Array] | None = None,
        key: int | None = None,
    ) -> list[Request]:
        """`where`: parameter name -> flat indices that changed (sorted); only those may travel. `key`: noise key."""
        ...

    def read(self, job: int, what: Literal["parameters", "snapshot", "health"], stage: int = 0) -> list[Request]:
        """The answer's result is a Mapping: arrays by parameter name; named values; {"ok": bool, "detail": str}."""
        ...

    def do(self, job: int, action: Literal["park", "maintain"]) -> list[Request]:
        """Parking forgets the parameters: `forget()` is implied when it is answered."""
        ...

    def ping(self) -> Request:
        """seq -1, outside the window; answered by a "pong"."""
        ...

    def bye(self) -> Request | None:
        """seq -1; None where the protocol knows no farewell. Never answered."""
        ...

    def receive(self, frames: Sequence[Buffer]) -> list[Event]:
        """What one message means. WireError: no message of this protocol; the caller counts and drops it.

        An answer to a request that nobody waits for any more gives an event all the same: the window knows.
        """
        ...

    def drop(self, jobs: Sequence[int]) -> None:
        """These jobs are given up or cancelled: their late answers are no events with a job any more."""
        ...

    def forget(self) -> None:
        """The device lost its parameters: runs before the next write must be refused by it (STALE) if anything
        was ever written."""
        ...


def flat_changes(values: Array, indices: Array) -> tuple[Array, Array]:
    """(the changed values in order of `indices`, int32 indices): what a write of single values carries."""
    flat = np.ascontiguousarray(indices, dtype=np.int32).reshape(-1)
    return np.ascontiguousarray(values).reshape(-1)[flat], flat
