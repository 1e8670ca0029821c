"""A board that restarts while nobody looks: what is asked in the middle of greeting it anew. In virtual time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from hzo_hil.devices.api import Segment
from hzo_hil.devices.errors import DeviceGone, DeviceRebooted
from hzo_hil.devices.remote import RemoteDevice
from hzo_hil.devices.wire.hzos_host import HzosHost
from hzo_hil.devices.wire.hzos_served import HzosServed
from tests.wire.hzos_parts import matrix_device

INPUTS = np.ones((2, 3), np.float32)
WEIGHT = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3)}


class Board:
    """A `Transport` with the board at its other end. `answers`: how many more messages it will answer (None: all)."""

    problem, bad_frames = "", 0

    def __init__(self) -> None:
        self.now = 0.0
        self.answers: int | None = None
        self._replies: list[list[bytes]] = []
        self._boots = 0
        self.restart()

    def restart(self) -> None:
        self._boots += 1
        self.served = HzosServed(matrix_device(3, 2), mtu=64, window=4, encoding="f4", boot=self._boots)

    def open(self) -> None:
        self._replies.clear()

    close = open

    def send(self, frames: Sequence[Any]) -> bool:
        if self.answers is None or self.answers > 0:
            self.answers = None if self.answers is None else self.answers - 1
            reply = self.served.receive(bytes(frames[0]))
            if reply is not None:
                self._replies.append([reply])
        return True

    def receive(self, timeout: float) -> list[list[bytes]]:
        found, self._replies = self._replies, []
        if not found:
            self.now += max(timeout, 1e-3)
        return found


@pytest.fixture
def connected() -> tuple[Board, RemoteDevice]:
    board = Board()
    device = RemoteDevice(
        "serial+tcp://board:1", transport=board, conversation=lambda: HzosHost(nonce=1, first_id=1),
        clock=lambda: board.now, patience_s=5.0,
    )  # fmt: skip
    device.open()
    device.write(0, WEIGHT)
    board.restart()
    return board, device


def kept(board: Board, device: RemoteDevice, until: Callable[[], bool]) -> None:
    """What the keeper's thread does between two calls of the caller."""
    for _ in range(1000):
        if until():
            return
        board.now += 0.3
        device.keep()
    raise AssertionError("never came about")


@pytest.mark.parametrize("answers", [2, 3, 4])  # of a ping, the HELLO, and of the manifest's first parts
def test_what_is_asked_in_the_middle_of_a_greeting_waits_for_its_end(
    connected: tuple[Board, RemoteDevice], answers: int
) -> None:
    board, device = connected
    board.answers = answers
    kept(board, device, lambda: board.answers == 0)
    board.answers = None
    with pytest.raises(DeviceRebooted, match="restarted: what it held is lost"):
        device.write(0, WEIGHT)
    assert device.counters["reboots"] == 1
    device.write(0, WEIGHT)
    np.testing.assert_array_equal(device.run(Segment(0, 1), INPUTS).outputs, INPUTS @ WEIGHT["weight"].T)


@pytest.mark.parametrize("answers", [1, 2, 3])
def test_a_board_that_falls_silent_in_the_middle_of_a_greeting_is_lost_and_not_waited_for_for_ever(
    connected: tuple[Board, RemoteDevice], answers: int
) -> None:
    board, device = connected
    board.answers = answers
    kept(board, device, lambda: board.answers == 0)
    started = board.now
    with pytest.raises(DeviceGone, match="has not answered for"):
        device.run(Segment(0, 1), INPUTS)
    assert board.now - started < device.capabilities.longest_call_s + 2 + 5 + 1
    board.answers = None
    with pytest.raises(DeviceRebooted):
        device.run(Segment(0, 1), INPUTS)
    device.write(0, WEIGHT)
    device.run(Segment(0, 1), INPUTS)
    assert device.state == "up"
