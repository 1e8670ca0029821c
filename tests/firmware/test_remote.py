"""The firmware as a device of the framework: certified, trained on, and reset while it is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hzo_hil import Opaque, Stage
from hzo_hil.data import load
from hzo_hil.devices.api import Segment
from hzo_hil.devices.conformance.kit import check
from hzo_hil.devices.remote import RemoteDevice
from hzo_hil.link import link_to
from hzo_hil.updates.delta import DeltaRule
from tests.firmware.arithmetic import Network

pytest.importorskip("serial")


def url(port: int) -> str:
    return f"serial+tcp://127.0.0.1:{port}"


@contextmanager
def connected(port: int) -> Iterator[RemoteDevice]:
    device = RemoteDevice(url(port))
    try:
        yield device
    finally:
        device.close()


def test_values_arrive_as_the_reference_says(start_host: Callable[..., int], describe: Any) -> None:
    rng = np.random.default_rng(0)
    with connected(start_host(noise=0)) as device:
        device.open()
        assert device.capabilities == describe.capabilities()
        codes = []
        for k, (_, n_in, n_out, kind) in enumerate(describe.STAGES):
            weight, bias = rng.integers(-127, 128, (n_out, n_in)), rng.integers(-128, 129, n_out)
            codes.append((kind, weight, bias))
            device.write(k, {"weight": weight / np.float32(128), "bias": bias / np.float32(128)})
            held = device.read(k)
            np.testing.assert_array_equal(held["weight"] * 128, weight)
            np.testing.assert_array_equal(held["bias"] * 128, bias)
        rows = rng.integers(-8192, 8192, (31, 4))
        reply = device.run(Segment(0, 2), (rows / 4096).astype(np.float32))
        np.testing.assert_array_equal(reply.outputs * 4096, Network(codes, noise=0).run(1, 0, 2, rows)[0])
        assert device.snapshot()["runs"] == 1


def test_the_emulated_board_is_certified(start_emulator: Callable[..., Any]) -> None:
    """False-alarm rate of the kit's statistical checks together: 1e-3."""
    port = start_emulator().port
    report = check(lambda: RemoteDevice(url(port)), quick=True)
    assert [(row.name, row.detail) for row in report.rows if row.outcome == "fail"] == []
    assert report.passed
    passed = {row.name for row in report.rows if row.outcome == "pass"}
    assert {"repeats", "park", "inner boundaries", "partial writes", "linear", "declared noise"} <= passed


def trained(
    device: RemoteDevice, steps: int, before_step: Callable[[int], None]
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Parameters and losses after some steps on Iris."""
    iris = load("iris")
    x, y = torch.as_tensor(iris.x_train), torch.as_tensor(iris.y_train)
    torch.manual_seed(0)
    opaque = Opaque(
        [Stage(device, 0, leaf=DeltaRule("relu")), Stage(device, 1, leaf=DeltaRule())],
        tree="chain", probes="hadamard", eps=0.25, seed=1,
    )  # fmt: skip
    optimizer = torch.optim.Adam(opaque.parameters(), lr=0.05)
    losses = []
    for step in range(steps):
        before_step(step)
        rows = torch.randperm(len(x))[:20]
        loss = nn.functional.cross_entropy(4 * opaque(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return {n: p.detach().clone() for n, p in opaque.named_parameters()}, losses


def test_resets_of_the_board_leave_no_trace_in_what_is_learnt(start_emulator: Callable[..., Any]) -> None:
    """Without noise: parameters equal those of an undisturbed run bit for bit, and each reset was noticed."""
    board = start_emulator("-DNET_NOISE=0")
    with connected(board.port) as device:
        undisturbed, losses = trained(device, 24, lambda step: None)
        link_to(device).close()
    assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:6])

    with connected(board.port) as device:
        disturbed, _ = trained(device, 24, lambda step: board.reset() if step in (5, 6, 15) else None)
        assert device.counters["reboots"] == 3
        link_to(device).close()
    for name, values in undisturbed.items():
        assert torch.equal(values, disturbed[name]), name


def test_both_builds_teach_the_same(start_emulator: Callable[..., Any], start_host: Callable[..., int]) -> None:
    """The Cortex-M3 and this machine: without noise the same parameters bit for bit."""
    found = []
    for port in (start_emulator("-DNET_NOISE=0").port, start_host(noise=0)):
        with connected(port) as device:
            found.append(trained(device, 6, lambda step: None)[0])
            link_to(device).close()
    for name, values in found[0].items():
        assert torch.equal(values, found[1][name]), name
