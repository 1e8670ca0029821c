"""A bench script's y = f(x), trained: the function becomes a device, the device a layer of an ordinary torch loop.

Put calls to your instruments into `measure`. HZO_EXAMPLE_QUICK in the environment makes it a few steps.
"""

import os

import numpy as np
import torch

import hzo_hil
from hzo_hil.devices.adapters.function import FunctionDevice


def measure(volts, heaters):
    """Four driven voltages [batch, 4] to two detected powers [batch, 2], under eight heater settings [2, 4]."""
    return np.tanh(volts @ np.sin(heaters).T) ** 2


bench = FunctionDevice(measure, 4, 2, {"heaters": ((2, 4), -1.5, 1.5)}, low=-1.0, high=1.0)
model = hzo_hil.Opaque(bench)

torch.manual_seed(0)
x = torch.rand(64, 4) * 2 - 1
wanted = torch.as_tensor(measure(x.numpy(), np.random.default_rng(1).uniform(-1.5, 1.5, (2, 4)))).float()
torch.nn.init.uniform_(next(model.parameters()), -0.5, 0.5)
optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
losses = []
for _ in range(10 if os.environ.get("HZO_EXAMPLE_QUICK") else 200):
    loss = torch.nn.functional.mse_loss(model(x), wanted)
    optimizer.zero_grad()
    loss.backward()  # asks the bench
    optimizer.step()
    losses.append(loss.item())
print(f"mean squared error {losses[0]:.4f} at first, {losses[-1]:.6f} after {len(losses)} steps")
