"""HZO/1 messages: frames to `Message` and back. Knows bytes and limits, no sessions, no sockets, no time.

    HDR   <4sBBHQQII  "HZO\\x01" type flags arrays session seq version credit       32 bytes
    META  UTF-8 JSON object, or nothing
    DESC  32 bytes an array: <BBHff5I  dtype ndim role scale zero dims[5]
    one raw C-order little-endian frame for each array

Every size is checked against `Limits` before an array is made of it. `docs/wire-zeromq.md` is for implementers.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.devices.errors import BadInput, WireError

Array = NDArray[Any]
Buffer = Any

PROTOCOL = (1, 0)
MAGIC = b"HZO\x01"
HELLO, WRITE, RUN, READ, PING, BYE, DO = 1, 2, 3, 4, 5, 6, 7
READY, ACK, RESULT, SNAPSHOT, PONG, ERROR = 129, 130, 131, 132, 133, 192
KINDS = frozenset((HELLO, WRITE, RUN, READ, PING, BYE, DO, READY, ACK, RESULT, SNAPSHOT, PONG, ERROR))
NON_FINITE = 1
"""Flag of a RESULT: an output is NaN or infinite."""

HDR = struct.Struct("<4sBBHQQII")
ARR = struct.Struct("<BBHff5I")
DTYPES = {1: "<f4", 2: "<f8", 3: "<i1", 4: "<i2", 5: "<i4", 6: "<u1", 7: "<u2", 8: "<u8"}
_KINDS = {code: np.dtype(name) for code, name in DTYPES.items()}
_CODES = {kind: code for code, kind in _KINDS.items()}


@dataclass(frozen=True)
class Limits:
    """Most frames in a message, bytes in an array and in a message, bytes of META."""

    frames: int = 64
    array: int = 1 << 28
    total: int = 1 << 28
    meta: int = 1 << 22


LIMITS = Limits()


class OtherVersion(WireError):
    """A message of another major version of the protocol; `spoken` is that version."""

    def __init__(self, spoken: int) -> None:
        super().__init__(f"the other side speaks HZO/{spoken}, this one HZO/{PROTOCOL[0]}")
        self.spoken = spoken


class Message:
    """A decoded message. `meta` is the raw JSON: `options()` reads it."""

    __slots__ = ("arrays", "credit", "flags", "kind", "meta", "roles", "seq", "session", "version")

    def __init__(
        self,
        kind: int,
        flags: int,
        session: int,
        seq: int,
        version: int,
        credit: int,
        meta: Buffer,
        arrays: list[Array],
        roles: list[int],
    ) -> None:
        self.kind = kind
        self.flags = flags
        self.session = session
        self.seq = seq
        self.version = version
        self.credit = credit
        self.meta = meta
        self.arrays = arrays
        self.roles = roles

    def options(self) -> Mapping[str, Any]:
        """META as an object; not to be changed (short ones are shared). WireError where it is none."""
        return options_of(self.meta)


# --- writing ---------------------------------------------------------------------------------------------------


def encode(
    kind: int,
    session: int,
    seq: int,
    meta: bytes = b"",
    arrays: Sequence[Array] = (),
    roles: Sequence[int] = (),
    version: int = 0,
    credit: int = 0,
    flags: int = 0,
) -> list[Buffer]:
    """Frames of one message. Arrays are sent as they are: make them `sendable` first."""
    head = HDR.pack(MAGIC, kind, flags, len(arrays), session, seq, version, credit)
    if len(arrays) == 1:
        return [head, meta, describe(arrays[0], roles[0]), arrays[0]]
    if not arrays:
        return [head, meta, b""]
    desc = b"".join([describe(a, r) for a, r in zip(arrays, roles, strict=True)])
    return [head, meta, desc, *arrays]


_described: dict[tuple[Any, ...], bytes] = {}


def describe(array: Array, role: int) -> bytes:
    """The 32 bytes that go before a sendable array; kept, as the same shapes come again and again."""
    key = (array.dtype.char, array.shape, role)
    known = _described.get(key)
    if known is None:
        dims = array.shape + (0,) * (5 - array.ndim)
        known = ARR.pack(_CODES[array.dtype], array.ndim, role, 1.0, 0.0, *dims)
        if len(_described) > 4096:
            _described.clear()
        _described[key] = known
    return known


def sendable(values: Any, what: str) -> Array:
    """`values` as a C-contiguous little-endian array of a dtype that travels; BadInput otherwise.

    A float16 becomes a float32, a bool a uint8, other whole numbers a float64.
    """
    array = values if type(values) is np.ndarray else np.asarray(values)
    if array.dtype not in _CODES:
        kind = array.dtype.newbyteorder("<")
        if kind in _CODES:
            array = array.astype(kind)
        elif array.dtype.kind in "biuf":
            array = array.astype({"b": "u1", "f": "<f4"}.get(array.dtype.kind, "<f8"))
        else:
            raise BadInput(f"{what}: {array.dtype} cannot be sent to a device; give real numbers")
    if array.ndim > 5:
        raise BadInput(f"{what}: {array.ndim} dimensions, at most 5 can be sent to a device")
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def pack_json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


# --- reading ---------------------------------------------------------------------------------------------------


def decode(frames: Sequence[Buffer], limits: Limits = LIMITS) -> Message:
    """The message in `frames` (without a routing identity). WireError for anything else, before any allocation."""
    count = len(frames) - 3
    if count < 0 or count > limits.frames - 3:
        raise WireError(f"a message of {len(frames)} frames, not 3 to {limits.frames}")
    head, meta, desc = frames[:3]
    if len(head) != 32:
        raise WireError(f"a header of {len(head)} bytes, not 32")
    magic, kind, flags, arrays, session, seq, version, credit = HDR.unpack(head)
    if magic != MAGIC:
        if magic[:3] == MAGIC[:3]:
            raise OtherVersion(magic[3])
        raise WireError(f"a header that starts with {magic!r}, not {MAGIC!r}")
    if kind not in KINDS:
        raise WireError(f"unknown message type {kind}")
    if arrays != count or len(desc) != 32 * count:
        raise WireError(f"{arrays} arrays declared, {len(desc)} bytes describe them, {count} array frames came")
    if len(meta) > limits.meta:
        raise WireError(f"META of {len(meta)} bytes, at most {limits.meta} are read")
    if not count:
        return Message(kind, flags, session, seq, version, credit, meta, [], [])
    plan = (_plans.get(desc) if type(desc) is bytes else None) or _planned(bytes(desc), limits)
    if plan.total > limits.total or plan.longest > limits.array:
        raise WireError(f"arrays of {plan.total} bytes, the longest {plan.longest}, at most {limits.total} are read")
    made = []
    for i, (dtype, shape, size, scaling) in enumerate(plan.steps, 3):
        frame = frames[i]
        if len(frame) != size:
            raise WireError(f"an array frame of {len(frame)} bytes: {dtype} {list(shape)} takes {size}")
        array = np.ndarray(shape, dtype, frame) if size else np.zeros(shape, dtype)
        made.append(array if scaling is None else _scaled(array, *scaling))
    return Message(kind, flags, session, seq, version, credit, meta, made, plan.roles)


def _scaled(array: Array, scale: float, zero: float) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(np.float32) * np.float32(scale) + np.float32(zero)


class _Plan:
    """What a DESC says, checked: the same shapes come again and again, so it is kept."""

    __slots__ = ("longest", "roles", "steps", "total")

    def __init__(self, steps: list[tuple[Any, ...]], roles: list[int], total: int, longest: int) -> None:
        self.steps = steps
        self.roles = roles
        self.total = total
        self.longest = longest


_plans: dict[bytes, _Plan] = {}


def _planned(desc: bytes, limits: Limits) -> _Plan:
    steps: list[tuple[Any, ...]] = []
    roles, total, longest = [], 0, 0
    for i in range(len(desc) // 32):
        code, ndim, role, scale, zero, *dims = ARR.unpack_from(desc, 32 * i)
        kind = _KINDS.get(code)
        if kind is None or ndim > 5:
            raise WireError(f"array {i}: dtype code {code}, {ndim} dimensions")
        if not (math.isfinite(scale) and math.isfinite(zero)):
            raise WireError(f"array {i}: scale {scale}, zero {zero}")
        shape = tuple(dims[:ndim])
        size = math.prod([d or 1 for d in shape]) * kind.itemsize
        if size > limits.array:
            raise WireError(f"array {i}: {size} bytes, at most {limits.array} are read")
        total, longest = total + size, max(longest, size)
        scaling = None if scale == 1.0 and zero == 0.0 else (scale, zero)
        steps.append((kind, shape, 0 if 0 in shape else size, scaling))
        roles.append(role)
    plan = _Plan(steps, roles, total, longest)
    if len(desc) <= 256:
        if len(_plans) >= 1024:
            _plans.clear()
        _plans[desc] = plan
    return plan


_read: dict[bytes, Mapping[str, Any]] = {}
_NOTHING: Mapping[str, Any] = {}


def options_of(meta: Buffer) -> Mapping[str, Any]:
    """The JSON object in `meta` (nothing: an empty one). WireError where there is none."""
    if not len(meta):
        return _NOTHING
    raw = meta if type(meta) is bytes else bytes(meta)
    known = _read.get(raw)
    if known is not None:
        return known
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise WireError(f"META is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise WireError(f"META is a JSON {type(found).__name__}, not an object")
    if len(raw) <= 128:
        if len(_read) >= 1024:
            _read.clear()
        _read[raw] = found
    return found


def whole(options: Mapping[str, Any], name: str, default: int | None = None, most: int = 1 << 31) -> int:
    """A whole number from 0 to `most` out of META; WireError otherwise."""
    value = options.get(name, default)
    if type(value) is not int or not 0 <= value <= most:
        raise WireError(f"META: {name!r} is a whole number from 0 to {most}, not {value!r}")
    return value


def seconds(options: Mapping[str, Any], name: str, default: float, least: float, most: float) -> float:
    """A number of seconds out of META, brought between `least` and `most`; WireError where it is none."""
    value = options.get(name, default)
    if type(value) not in (int, float) or value != value:
        raise WireError(f"META: {name!r} is a number of seconds, not {value!r}")
    return min(most, max(least, float(value)))
