"""Frames on a serial line: the published vectors, in pieces of any size, and memory that stays bounded."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from cobs import cobs
from hypothesis import given
from hypothesis import strategies as st

from hzo_hil.devices.errors import WireError
from hzo_hil.devices.wire import hzos_frames as f

VECTORS = Path(__file__).resolve().parents[2] / "docs" / "vectors" / "hzos"


def vectors(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))


def fed(stream: bytes, mtu: int, piece: int) -> tuple[list[bytes], int]:
    """Bodies and bad frames of a stream that comes in pieces of `piece` bytes."""
    splitter, bodies = f.Splitter(mtu), []
    for at in range(0, len(stream), piece):
        bodies += splitter.feed(stream[at : at + piece])
    return bodies, splitter.bad_frames


@pytest.mark.parametrize("vector", vectors("frames"), ids=lambda v: v["name"][:40])
def test_frames_have_exactly_the_published_bytes(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["data"])
    frame = f.parse(f.checked(bytes.fromhex(vector["line"])[1:-1]) or b"")
    named = {k: vector[k] for k in ("type", "seq", "status", "region", "offset")}
    assert {k: getattr(frame, k) for k in named} == named
    assert frame.data == data
    again = f.Frame(**named, data=data, version=frame.version)
    assert f.on_line(again.body()).hex() == vector["line"]
    assert vector["line"].startswith("00") and bytes.fromhex(vector["line"])[1:-1].count(0) == 0


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("vector", vectors("streams"), ids=lambda v: v["name"][:40])
def test_streams_are_cut_into_the_published_bodies(vector: dict[str, Any], piece: int) -> None:
    bodies, bad = fed(bytes.fromhex(vector["bytes"]), vector["mtu"], piece)
    assert [b.hex() for b in bodies] == vector["bodies"]
    assert bad == vector["bad_frames"]


@given(st.lists(st.binary(min_size=8, max_size=508), max_size=5), st.integers(1, 600))
def test_what_goes_in_comes_out(bodies: list[bytes], piece: int) -> None:
    stream = b"".join(f.on_line(b) for b in bodies)
    assert fed(stream, f.MOST_MTU, piece) == (bodies, 0)


@given(st.binary(min_size=8, max_size=100), st.integers(0, 10_000), st.integers(0, 7))
def test_one_flipped_bit_never_passes(body: bytes, at: int, bit: int) -> None:
    stream = bytearray(f.on_line(body))
    stream[at % len(stream)] ^= 1 << bit
    bodies, _ = fed(bytes(stream) + f.on_line(b"12345678"), f.MOST_MTU, 64)
    # A flipped outer zero joins or leaves the frame whole; nothing else is ever made of it.
    assert bodies in ([b"12345678"], [body, b"12345678"], [body], [])
    if 0 < at % len(stream) < len(stream) - 1:
        assert body not in bodies


def test_a_flood_without_zeros_takes_no_memory() -> None:
    splitter = f.Splitter(64)
    for _ in range(1000):
        assert splitter.feed(b"\x55" * 4096) == []
        assert len(splitter._begun) <= f.line_bytes(64)
    assert splitter.feed(b"\0" + f.on_line(b"12345678")) == [b"12345678"]
    assert splitter.bad_frames == 1


def test_the_most_bytes_of_a_frame_on_the_line_is_cobs_own_bound() -> None:
    rng = random.Random(0)
    for mtu in (64, 253, 254, 255, 508, 509, 512):
        worst = len(cobs.encode(bytes(rng.randrange(1, 256) for _ in range(mtu))))
        assert worst == f.line_bytes(mtu)


def test_an_unfinished_frame_is_forgotten_when_the_line_is_opened_again() -> None:
    splitter = f.Splitter()
    splitter.feed(f.on_line(b"12345678")[:7])
    splitter.reset()
    assert splitter.feed(f.on_line(b"87654321")) == [b"87654321"]
    assert splitter.bad_frames == 0


def test_a_body_without_a_whole_header_is_no_body() -> None:
    with pytest.raises(WireError, match="7 bytes is shorter than its header of 8"):
        f.parse(b"1234567")
