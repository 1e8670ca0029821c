"""Your own instrument as a device: y = f(x) with knobs, and nothing else known. It learns by parameter probing.

The class is all a driver needs: what it is (`capabilities`) and how to ask and set it (`run`, `write`). Replace
`respond` by calls to your hardware. A chip without inner boundaries is one stage. HZO_EXAMPLE_QUICK in the
environment makes it a few steps.
"""

import os

import numpy as np
import torch

import hzo_hil
from hzo_hil.devices.api import BoundarySpec, Capabilities, Health, ParameterSpec, Reply, StageSpec

STEPS = 5 if os.environ.get("HZO_EXAMPLE_QUICK") else 150


def respond(volts: np.ndarray, phases: np.ndarray) -> np.ndarray:
    """Stands for the laboratory: three fields interfere at each of two detectors, each under a phase of its own."""
    fields = volts @ np.exp(1j * phases.reshape(2, 3)).T
    return np.abs(fields) ** 2 / 3


class Instrument:
    """Six phases between three driven voltages and two detectors."""

    capabilities = Capabilities(
        identity="bench-1",
        stages=(StageSpec("interferometer", 3, 2, (ParameterSpec("phases", (6,), 0, 2 * np.pi, 2 * np.pi, "wrap"),)),),
        boundaries=(BoundarySpec(low=-1, high=1), BoundarySpec()),
    )
    phases = np.zeros(6)

    def run(self, segment, inputs):
        return Reply(respond(inputs, self.phases).astype(np.float32))

    def write(self, stage, parameters, where=None):
        self.phases = np.array(parameters["phases"], dtype=float)

    def read(self, stage):
        return {"phases": self.phases.copy()}

    def snapshot(self):
        return {"phases": self.phases.tolist()}

    def health(self):
        return Health(True)

    def open(self):
        """Connect here."""

    def close(self):
        """Switch off here."""


torch.manual_seed(0)
x = torch.rand(64, 3) * 2 - 1
wanted = torch.as_tensor(respond(x.numpy(), np.random.default_rng(1).uniform(0, 2 * np.pi, 6))).float()
model = hzo_hil.Opaque(Instrument())
optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
losses = []
for _ in range(STEPS):
    loss = torch.nn.functional.mse_loss(model(x), wanted)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
writes = model.ledger.total.writes
print(f"mean squared error {losses[0]:.4f} at first, {losses[-1]:.6f} after {STEPS} steps; {writes} writes")
