"""A model that is partly on a chip: host encoder, opaque stages with a skip around them, host head. All of it learns.

Autograd takes the host's layers, queries the chip's; torch does not see the difference. The chip here is an emulated
low-precision accelerator with 7/9-bit converters and read noise. HZO_EXAMPLE_QUICK in the environment makes it one
epoch.
"""

import os

import torch
from torch import nn

import hzo_hil
from hzo_hil.data import load
from hzo_hil.layers import Residual
from hzo_hil.updates.delta import DeltaRule

EPOCHS = 1 if os.environ.get("HZO_EXAMPLE_QUICK") else 8
WIDTH = 32

torch.manual_seed(0)
digits = load("digits", flatten=True)
x, y, x_test, y_test = map(torch.as_tensor, (digits.x_train, digits.y_train, digits.x_test, digits.y_test))

layers = {"layers": 3, "width": WIDTH, "activation": "tanh", "last_activation": True}
chip = hzo_hil.open_device({"kind": "emulator", "preset": "aihwkit", "options": layers, "max_batch": 8192})
# Of each stage tanh(W a + b) only the slope of tanh is used, which follows from the output that was read.
stages = [hzo_hil.Stage(chip, k, leaf=DeltaRule("tanh")) for k in range(3)]
onn = hzo_hil.Opaque(stages, tree="bisect", probes="hadamard")
model = nn.Sequential(nn.Linear(64, WIDTH), nn.Tanh(), Residual(onn), nn.Linear(WIDTH, 10))

optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(EPOCHS):
    for rows in torch.randperm(len(x)).split(64):
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

with torch.no_grad():
    accuracy = (model(x_test).argmax(1) == y_test).double().mean().item()
on_chip = sum(p.numel() for p in onn.parameters())
total = sum(p.numel() for p in model.parameters())
print(f"test accuracy {accuracy:.3f}; {on_chip:,} of {total:,} parameters on the chip")
