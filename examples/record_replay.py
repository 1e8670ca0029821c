"""A lab session becomes a regression test: record it once, train against the recording ever after, without the lab.

The replay answers to the bit, so the same code reaches the same parameters; code that asks anything else is told where
it first differs. HZO_EXAMPLE_QUICK in the environment makes it a few steps.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch

import hzo_hil
from hzo_hil.devices.adapters.function import FunctionDevice
from hzo_hil.devices.errors import BadInput
from hzo_hil.devices.recorded import Recorder, Replay

STEPS = 3 if os.environ.get("HZO_EXAMPLE_QUICK") else 30
noise = np.random.default_rng()  # not seeded: every session in the lab is another


def measure(x, weight):
    return np.tanh(x @ weight.T) + 0.01 * noise.normal(size=(len(x), 2))


def train(device, lr=0.1):
    """The code under test: the parameters after a few steps."""
    torch.manual_seed(0)
    model = hzo_hil.Opaque(device)
    x, wanted = torch.rand(32, 3) * 2 - 1, torch.rand(32, 2) - 0.5
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(STEPS):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), wanted).backward()
        optimizer.step()
    return next(model.parameters()).detach()


def lab():
    return FunctionDevice(measure, 3, 2, {"weight": ((2, 3), -1.0, 1.0)}, low=-1.0, high=1.0, identity="bench-1")


with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "session.rec"
    recorder = Recorder(lab(), path)
    session = train(recorder)
    recorder.close()
    print(f"recorded {path.stat().st_size:,} bytes")
    print("replayed: same parameters to the bit:", torch.equal(train(Replay(path)), session))
    print("another session in the lab:", torch.equal(train(lab()), session))
    try:
        train(Replay(path), lr=0.2)
    except BadInput as error:
        print("with another learning rate:", str(error).partition("): ")[2])
