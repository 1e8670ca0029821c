"""Processes, signals and threads: what crosses them and what must not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]

MODULE = """
import json, os, signal, sys, time
import torch
from hzo_hil import Opaque, Stage
from hzo_hil.devices.fake import FakeDevice, Script
from hzo_hil.updates.delta import DeltaRule

def make(device, **options):
    return Opaque([Stage(device, k, leaf=DeltaRule("tanh")) for k in range(2)], probes="hadamard", **options)

def mlp(**options):
    return FakeDevice.mlp([5, 6, 5], **options)

def batch(count=8, dtype=torch.float32):
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
"""


def start(code: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", MODULE + code],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def results(*running: subprocess.Popen[str]) -> list[Any]:
    """The last line each wrote, as JSON."""
    found = []
    try:
        for process in running:
            out, err = process.communicate(timeout=100)
            assert process.returncode == 0, err
            found.append(json.loads(out.splitlines()[-1]))
    finally:
        for process in running:
            process.kill()
    return found


# ---- light imports


def test_it_trains_without_transports_and_plots(run_python: Any) -> None:
    code = MODULE + (
        "m = make(mlp()); (m(batch()) ** 2).sum().backward(); print(m.ledger.total.queries)\n"
        "assert 'torch._dynamo' not in sys.modules, 'importing the compiler takes seconds'\n"
    )
    found = run_python(
        code,
        without=["zmq", "serial", "cobs", "matplotlib", "tensorboard", "yaml", "pydantic", "click", "tqdm", "sklearn"],
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == [str(8 * 2 + 8 * 2 * 8)]


def test_importing_the_package_loads_no_torch(run_python: Any) -> None:
    found = run_python(
        "import hzo_hil; print(sorted(n for n in ('torch', 'zmq', 'scipy') if sys.modules.get(n)))",
        without=["zmq", "serial", "matplotlib", "tensorboard"],
    )
    assert (found.returncode, found.stdout.strip()) == (0, "[]"), found.stderr


# ---- forks


FORKED = """
from hzo_hil.devices.errors import DeviceError

def use_in_a_child(pipelined):
    device = mlp(pipelined=pipelined)
    m = make(device)
    with torch.no_grad():
        expected = m(batch(1))
    said, say = os.pipe()
    child = os.fork()
    if not child:
        text, asked = "no error", len(device.calls)
        device.cancel = lambda: os._exit(7)  # what is in flight is the parent's
        for attempt in (lambda: m(batch(1)), lambda: make(device)(batch(1)), m.close):
            try:
                with torch.no_grad():
                    attempt()
            except DeviceError as error:
                text = str(error)
        os.write(say, json.dumps([text, len(device.calls) - asked, device.closed]).encode())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    with torch.no_grad():
        alive = torch.equal(m(batch(1)), expected)
    return [status, alive, os.getpid(), child, *json.loads(os.read(said, 9999))]

def load_in_workers():
    device = mlp()
    m = make(device)
    m(batch())
    data = torch.utils.data.TensorDataset(batch(8))
    for (x,) in torch.utils.data.DataLoader(data, batch_size=4, num_workers=1, multiprocessing_context="fork"):
        m(x).sum().backward()
    return [m.forwards, len(device.calls)]

print(json.dumps([use_in_a_child(False), use_in_a_child(True), load_in_workers()]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_link_does_not_cross_a_fork_and_data_workers_do_no_harm() -> None:
    ((blocking, pipelined, workers),) = results(start(FORKED))
    for status, alive, parent, child, text, asked, closed in (blocking, pipelined):
        assert (status, alive, asked, closed) == (0, True, 0, 0)
        assert text == (
            f"the link to device 'fake' was opened by process {parent} and does not cross a fork to {child}."
            " Open the device in the process that uses it (start workers with 'spawn')"
        )
    assert workers == [3, 2 * 3 + 2]


# ---- several ranks


@pytest.mark.slow
def test_two_ranks_average_to_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    code = f"""
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
rank = int(os.environ["RANK"])
store = dist.FileStore({str(tmp_path / "store")!r}, 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
torch.manual_seed(rank)  # rank 0's values are the ones that count
model = nn.Sequential(make(mlp(dtype="float64"), seed=rank), nn.Linear(5, 2)).double()
wrapped = DistributedDataParallel(model)

def train(model, x):
    for _ in range(2):
        model.zero_grad()
        (model(x) ** 2).mean().backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
    return [p.grad.flatten().tolist() for p in model.parameters()]

grads = train(wrapped, batch(8, torch.float64).chunk(2)[rank])
expected = None
if rank == 0:
    torch.manual_seed(0)
    alone = nn.Sequential(make(mlp(dtype="float64"), seed=0), nn.Linear(5, 2)).double()
    expected = train(alone, batch(8, torch.float64))
dist.barrier()
dist.destroy_process_group()
print(json.dumps([grads, expected, model[0].ledger.total.queries]))
"""
    (first, expected, queries), (second, _, others) = results(start(code, RANK="0"), start(code, RANK="1"))
    assert first == second and queries == others == 2 * (4 * 2 + 4 * 2 * 8)
    for found, wanted in zip(first, expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12)


# ---- Ctrl-C

INTERRUPTED = """
from hzo_hil.devices.fake_pipelined import PipelinedFakeDevice
from hzo_hil.devices.fake_stages import mlp_stages

class Parking:
    parked = 0
    def park(self):
        self.parked += 1

class Blocking(Parking, FakeDevice): pass
class Pipelined(Parking, PipelinedFakeDevice): pass

def interrupted(kind):
    stages = mlp_stages([5, 6, 5], "tanh", seed=0, bias=True)
    device = kind(stages, max_batch=2, script=Script(latency_s=0.02))
    m = make(device)
    before = [p.clone() for p in m.parameters()]
    output = m(batch())
    print("asking", flush=True)
    try:
        while True:
            (output ** 2).sum().backward(retain_graph=True)
            m.zero_grad()
    except KeyboardInterrupt:
        asked = len(device.calls)
    time.sleep(0.1)
    quiet = len(device.calls) == asked and not m.dispatch._flying and not getattr(device, "in_flight", 0)
    kept = all(torch.equal(a, b) for a, b in zip(before, m.parameters()))
    device.script.latency_s = 0.0
    same = torch.equal(m(batch()), make(mlp())(batch()))
    return [device.parked, quiet, kept, same]

print(json.dumps([interrupted(Blocking), interrupted(Pipelined)]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to another process there")
def test_a_real_ctrl_c_leaves_nothing_in_flight() -> None:
    process = start(INTERRUPTED)
    assert process.stdout is not None
    for _ in range(2):
        assert process.stdout.readline() == "asking\n"
        time.sleep(0.4)  # well into the backward passes
        process.send_signal(signal.SIGINT)
    (ends,) = results(process)
    assert ends == [[1, True, True, True]] * 2


# ---- threads

THREADED = """
from torch import nn
import numpy as np
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

class Twin(nn.Module):
    def forward(self, inputs, weight, bias):
        return torch.tanh(inputs @ weight.T + bias)

device = FakeDevice.mlp([24, 32, 32, 16], script=Script(noise=0.01), keyed=True)
m = Opaque([Stage(device, k, leaf="autograd", twin=Twin()) for k in range(3)], probes="hadamard", tree="bisect")
x = torch.randn(64, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()
(m(x) ** 2).sum().backward()
grads = [x.grad, *(p.grad for p in m.parameters())]
print(json.dumps([torch.get_num_threads(), *(g.flatten().tolist() for g in grads)]))
"""


@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    running = [start(THREADED, OMP_NUM_THREADS=n, OPENBLAS_NUM_THREADS=n, MKL_NUM_THREADS=n) for n in ("1", "2")]
    (one, *single), (two, *double) = results(*running)
    assert (one, two) == (1, 2)
    assert len(single) == 7
    for a, b in zip(single, double, strict=True):
        assert np.linalg.norm(np.subtract(a, b)) <= 1e-6 * np.linalg.norm(b)
