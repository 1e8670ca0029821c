"""The protocol's test vectors, as the firmware sees them. They are files beside the protocol's description.

`hzos.c` is built as it is, before small devices of these tests, at the sizes that the vectors ask for.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.firmware.conftest import FIRMWARE, WARNINGS, needs
from tests.firmware.line import RUN, WRITE, cobs, frame, uncobs

VECTORS = FIRMWARE.parents[1] / "docs" / "vectors" / "hzos"
HERE = Path(__file__).parent
Board = Callable[[int], Path]


def vectors(name: str) -> Any:
    found = json.loads((VECTORS / name).read_text(encoding="utf-8"))
    assert found
    return found


def built(folder: Path, device: str, **sizes: int | str) -> Path:
    """The protocol before a device of these tests, with its own network.h."""
    needs("gcc")
    folder.mkdir(exist_ok=True)
    for name in ("hzos.c", "hzos.h", "device.h"):
        shutil.copy(FIRMWARE / name, folder)
    given = {"HZOS_WINDOW": 8, "DEVICE_SEGMENTS": 1, "DEVICE_PARAMETER_BYTES": 78, "BOOT": 7, **sizes}
    (folder / "network.h").write_text("".join(f"#define {k} {v}\n" for k, v in given.items()), encoding="utf-8")
    sources = [str(folder / "hzos.c"), str(HERE / "stdio_board.c"), str(HERE / device)]
    command = ["gcc", *WARNINGS, f"-I{folder}", *sources, "-o", str(folder / "board")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "board"


@pytest.fixture(scope="session")
def board(tmp_path_factory: pytest.TempPathFactory) -> Board:
    """The parser before a device that echoes, built for an MTU."""
    known: dict[int, Path] = {}

    def build(mtu: int) -> Path:
        if mtu not in known:
            known[mtu] = built(tmp_path_factory.mktemp("echo"), "echo_device.c", HZOS_MTU=mtu)
        return known[mtu]

    return build


def heard(program: Path, line: bytes) -> tuple[list[bytes], int]:
    """Bodies of the answers, and the count of bad frames."""
    done = subprocess.run([str(program)], input=line, capture_output=True, timeout=30, check=True)
    return [uncobs(part)[:-4] for part in done.stdout.split(b"\0") if part], int(done.stderr)


@pytest.mark.parametrize("vector", vectors("streams.json"), ids=lambda v: v["name"])
def test_streams(board: Board, vector: dict[str, Any]) -> None:
    """Every body is answered, in order; every damaged frame is counted and nothing else happens."""
    answers, bad = heard(board(vector["mtu"]), bytes.fromhex(vector["bytes"]))
    bodies = [bytes.fromhex(b) for b in vector["bodies"]]
    assert [(a[0], a[1]) for a in answers] == [(b[0] | 8, b[1]) for b in bodies]
    assert bad == vector["bad_frames"]


@pytest.mark.parametrize("vector", vectors("frames.json"), ids=lambda v: v["name"])
def test_frames(board: Board, vector: dict[str, Any]) -> None:
    """A request is answered; a reply, which a line may echo, is not. The encoder of these tests agrees."""
    line, data = bytes.fromhex(vector["line"]), bytes.fromhex(vector["data"])
    head = vector.get("version", 1) << 4 | vector["type"]
    assert frame(head, vector["seq"], vector["status"], vector["region"], vector["offset"], data) == line
    assert uncobs(line[1:-1])[:-4][8:] == data
    answers, bad = heard(board(512), line)
    if vector["type"] & 8:
        assert (answers, bad) == ([], 0)
    else:
        assert bad == 0
        assert [(a[0], a[1]) for a in answers] == [(16 | vector["type"] | 8, vector["seq"])]


def test_long_answers_are_encoded_as_cobs_says(board: Board) -> None:
    """Blocks of 254 bytes without a zero, and their neighbours, there and back."""
    begin = frame(WRITE, 1, 0x71, 2)
    for count in (1, 52, *range(225, 260), *range(480, 501)):
        for data in (b"\xff" * count, bytes(count), bytes(i & 255 for i in range(count))):
            request = begin + frame(RUN, 255, 0x71, 0, 0x01010101, data)
            done = subprocess.run([str(board(512))], input=request, capture_output=True, timeout=30, check=True)
            parts = [p for p in done.stdout.split(b"\0") if p]
            body = uncobs(parts[1])
            assert body[8:-4] == data
            assert parts[1] == cobs(body)


def test_a_session_byte_for_byte(tmp_path: Path) -> None:
    """Restarts, repeats, parks and another host: what the dialogue says the device sends, and nothing else."""
    session = vectors("session.json")
    device = session["device"]
    manifest = ", ".join(str(b) for b in device["manifest"].encode())
    program = built(
        tmp_path / "matrix", "matrix_device.c", HZOS_MTU=device["mtu"], HZOS_WINDOW=device["window"],
        BOOT=f"UINT32_C({device['boot']})", DEVICE_PARAMETER_BYTES=8, MANIFEST=manifest,
    )  # fmt: skip
    said = b"".join(bytes.fromhex(step["host"]) for step in session["steps"])
    done = subprocess.run([str(program)], input=said, capture_output=True, timeout=30, check=True)
    expected = [part for step in session["steps"] for part in bytes.fromhex(step["device"]).split(b"\0") if part]
    assert [part for part in done.stdout.split(b"\0") if part] == expected
    assert done.stdout == b"".join(b"\0" + part + b"\0" for part in expected)
