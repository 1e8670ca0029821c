"""Messages of the wrong number of frames, over real sockets: each is dropped alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zmq

from hzo_hil.devices.transports.zeromq import ZmqListener, ZmqTransport
from hzo_hil.devices.wire import messages as m

X = np.arange(8, dtype=np.float32).reshape(2, 4)


def run(arrays: int) -> list[bytes]:
    """A query's frames, of which the header announces `arrays` arrays; it has one."""
    head, *rest = m.encode(m.RUN, 1, 2, meta=b"{}", arrays=[X], roles=[0])
    return [head[:6] + arrays.to_bytes(2, "little") + head[8:], *rest[:2], X.tobytes()]


GOOD = run(1)
BAD: dict[str, list[bytes]] = {
    "too many announced": run(2),
    "many too many announced": run(5),
    "all there can be announced": run(65535),
    "too few announced": run(0),
    "one frame": [b"x"],
    "a header alone": GOOD[:1],
    "two frames": GOOD[:2],
    "no arrays": GOOD[:3],
    "a short header": [GOOD[0][:31], *GOOD[1:]],
    "a long tail": [*GOOD, *[b"more"] * 90],
    "empty frames": [b""] * 4,
}


def collect(receive: Any, count: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(20):
        found += receive(0.25)
        if len(found) >= count:
            break
    return found


@pytest.mark.parametrize("name", BAD)
def test_a_bad_message_does_not_swallow_the_next_one(name: str) -> None:
    listener = ZmqListener("tcp://127.0.0.1:0")
    dealer = zmq.Context().socket(zmq.DEALER)
    dealer.linger = 0
    dealer.connect(listener.url)
    messages = [GOOD, BAD[name], GOOD, BAD[name], BAD[name], GOOD]
    for message in messages:
        dealer.send_multipart(message)
    found = collect(listener.receive, len(messages))
    dealer.context.destroy()
    listener.close()
    check([frames for _, frames in found], messages)
    assert len({peer for peer, _ in found}) == 1


@pytest.mark.parametrize("name", BAD)
def test_nor_on_the_host(name: str) -> None:
    router = zmq.Context().socket(zmq.ROUTER)
    router.linger = 0
    port = router.bind_to_random_port("tcp://127.0.0.1")
    transport = ZmqTransport(f"tcp://127.0.0.1:{port}")
    transport.open()
    transport.send([b"hello"])
    peer = router.recv_multipart()[0]
    messages = [GOOD, BAD[name], GOOD, BAD[name], BAD[name], GOOD]
    for message in messages:
        router.send_multipart([peer, *message])
    found = collect(transport.receive, len(messages))
    transport.close()
    router.context.destroy()
    check(found, messages)


def check(found: list[Any], messages: list[list[bytes]]) -> None:
    assert len(found) == len(messages)
    for frames, sent in zip(found, messages, strict=True):
        if sent is GOOD:
            np.testing.assert_array_equal(m.decode(frames).arrays[0], X)
        else:
            with pytest.raises(m.WireError):
                m.decode(frames)
