"""The main idea in an ordinary torch loop: a simulated optical chip with a real chip's imperfections learns digits.

The chip is only ever asked; what is known of it is the ideal, therefore wrong, model of each single stage.
HZO_EXAMPLE_QUICK in the environment makes it one epoch.
"""

import os

import torch
from torch import nn

import hzo_hil
from hzo_hil.data import load
from hzo_hil.layers import CosineFeatures, Readout
from hzo_hil.simulators.twins import Twin

EPOCHS = 1 if os.environ.get("HZO_EXAMPLE_QUICK") else 10

torch.manual_seed(0)
digits = load("digits")
x, y, x_test, y_test = map(torch.as_tensor, (digits.x_train, digits.y_train, digits.x_test, digits.y_test))

physics = {"layers": 4, "ports": 32, "activation": "tanh", "gain": 2.0}
chip = hzo_hil.open_device({"kind": "onn", "preset": "calibrated_chip", "options": physics, "max_batch": 8192})
stages = [hzo_hil.Stage(chip, k, twin=Twin(ideal)) for k, ideal in enumerate(chip.models)]
onn = hzo_hil.Opaque(stages, tree="chain", probes="hadamard", eps=0.1)
model = nn.Sequential(CosineFeatures((8, 8), keep=32, gain=1.3), onn, Readout(classes=10, gain=10.0))

optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
batches = [rows for _ in range(EPOCHS) for rows in torch.randperm(len(x)).split(64)]
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=len(batches))
for rows in batches:
    loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()  # asks the chip
    optimizer.step()
    schedule.step()

with torch.no_grad():
    accuracy = (model(x_test).argmax(1) == y_test).double().mean().item()
print(f"test accuracy {accuracy:.3f} after {EPOCHS} epochs and {onn.ledger.total.queries:,} queries")
