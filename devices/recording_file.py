"""The file of a recorded session: framed records, each a JSON head and raw arrays under one checksum.

A record is complete or it is not there: whatever a crash leaves at the end is found and named. The module knows the
frames, not what the records mean. Nothing in a file is ever executed; sizes are checked before memory is taken.

    file    "HZOREC1\\n" record*
    record  <II head_bytes, array_bytes> <I crc32(head + arrays)> head arrays      little endian
    head    UTF-8 JSON object; its "arrays" lists [name, dtype, shape] in the order of the raw C-order bytes
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hzo_hil.devices.api import Array
from hzo_hil.devices.errors import DataError

MAGIC = b"HZOREC1\n"
FRAME = struct.Struct("<III")
MOST_HEAD = 16 * 2**20


@dataclass(frozen=True)
class Record:
    """One record without its arrays; `place` is the byte at which its arrays begin."""

    head: Mapping[str, Any]
    place: int
    size: int


def packed(head: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """The bytes of a record, to be written at once."""
    raw = {name: np.ascontiguousarray(a, dtype=np.asarray(a).dtype.newbyteorder("<")) for name, a in arrays.items()}
    listed = [[name, a.dtype.str, list(a.shape)] for name, a in raw.items()]
    text = json.dumps({**head, "arrays": listed}, separators=(",", ":")).encode()
    body = b"".join([text, *(a.tobytes() for a in raw.values())])
    return FRAME.pack(len(text), len(body) - len(text), zlib.crc32(body)) + body


def records(path: Path, *, cut: bool = False) -> Iterator[tuple[Record, bytes]]:
    """Every record with its raw arrays, checked. With `cut` an incomplete last record ends the file in silence.

    Raises DataError for a file that is missing, foreign, damaged or (without `cut`) ends within a record.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"recording {path} cannot be read: {error.strerror or error}") from error
    with file:
        _check_magic(file, path)
        yield from _complete_records(file, path, cut)


def _check_magic(file: BinaryIO, path: Path) -> None:
    begin = file.read(len(MAGIC))
    if begin == MAGIC:
        return
    if begin[:6] == MAGIC[:6]:
        raise DataError(
            f"recording {path} is of format {begin[6:7]!r}; this version reads {MAGIC[6:7]!r}. Update hzo-hil"
        )
    raise DataError(f"{path} is no recording of a device: it begins with {begin!r}, not with {MAGIC!r}")


def _complete_records(file: BinaryIO, path: Path, cut: bool) -> Iterator[tuple[Record, bytes]]:
    end = path.stat().st_size
    number = 0
    while (start := file.tell()) < end:
        frame = file.read(FRAME.size)
        if len(frame) < FRAME.size:
            if cut:
                return
            raise _ended(path, number, start)
        head_size, size, checksum = FRAME.unpack(frame)
        if head_size > MOST_HEAD:
            raise DataError(
                f"recording {path} is damaged at record {number} (byte {start}): its head claims {head_size} bytes"
            )
        if file.tell() + head_size + size > end:
            if cut:
                return
            raise _ended(path, number, start)
        body = file.read(head_size + size)
        if zlib.crc32(body) != checksum:
            raise DataError(
                f"recording {path} is damaged at record {number} (byte {start}): its checksum does not fit. The file"
                f" was"
                " changed or copied badly"
            )
        yield Record(_head(body[:head_size], path, number), start + FRAME.size + head_size, size), body[head_size:]
        number += 1


def _ended(path: Path, number: int, start: int) -> DataError:
    return DataError(
        f"recording {path} ends within record {number} (byte {start}): the recorder was interrupted, or the file was"
        f" copied"
        " in part. What comes before is whole: Replay(..., cut=True) uses it, Recorder(..., append=True) goes on"
        " from it"
    )


def _head(text: bytes, path: Path, number: int) -> Mapping[str, Any]:
    try:
        head = json.loads(text)
    except ValueError as error:
        raise DataError(f"recording {path}, record {number}: no JSON ({error})") from error
    if not isinstance(head, dict) or not isinstance(head.get("arrays"), list):
        raise DataError(f"recording {path}, record {number}: its head is no object with a list of arrays")
    return head


def unpacked(record: Record, raw: bytes, path: Path) -> dict[str, Array]:
    """The arrays of a record by name, writable copies."""
    found: dict[str, Array] = {}
    place = 0
    for entry in record.head["arrays"]:
        try:
            name, code, shape = entry
            dtype = np.dtype(code)
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            if dtype.kind not in "fiubc" or size < 0 or any(int(n) < 0 for n in shape):
                raise ValueError(f"an array of {code} {shape}")
            values = np.frombuffer(raw[place : place + size], dtype).reshape(shape)
        except (ValueError, TypeError) as error:
            raise DataError(f"recording {path}: a record lists {entry!r}, which is no array ({error})") from error
        found[str(name)] = values.astype(dtype.newbyteorder("="), copy=True)
        place += size
    return found


def whole_size(path: Path) -> int:
    """Bytes up to the end of the last complete record."""
    size = len(MAGIC)
    for record, _ in records(path, cut=True):
        size = record.place + record.size
    return size
