"""A layer of Hodgkin-Huxley neurons: constant currents in, firing rates out, integrated by scipy.

    C dV/dt = I - g_Na m^3 h (V - E_Na) - g_K n^4 (V - E_K) - g_L (V - E_L) + gap (V_left + V_right - 2 V)

with the rates of m, h and n of Hodgkin and Huxley (J. Physiol. 117, 500, 1952), V in today's sign, rest at -65 mV.
`gap` couples each neuron with its neighbours on a ring, as electrical synapses do. All start at rest. The rate is one
over the mean interval between spikes, 0 where there were fewer than two: neurons fire from about 50 Hz on, or not at
all. It knows no network and no training.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import RK23

Array = NDArray[np.float64]

CAPACITANCE = 1.0  # uF/cm^2
SODIUM, POTASSIUM, LEAK = (120.0, 50.0), (36.0, -77.0), (0.3, -54.387)  # mS/cm^2, mV
REST = (-65.0, 0.05293, 0.59612, 0.31768)  # V, m, h, n
WINDOW_MS, STEP_MS = 50.0, 0.05
SPIKE_MV = -20.0
LOWEST, HIGHEST = -10.0, 80.0  # uA/cm^2; below, steps are too long for the fast gate; far above, neurons fall silent
RATE = 100.0  # Hz: a rate of 1
# Steps of one length whatever the error: with control, all rows of a batch would share steps that each of them bends.
NO_CONTROL = 1e9


def rates(currents: Array, gap: float = 0.0) -> Array:
    """Of currents [rows, neurons] in uA/cm^2, in units of RATE, [rows, neurons]. `gap` in mS/cm^2."""
    start = np.stack([np.full(currents.shape, value) for value in REST])

    def slope(_: float, flat: Array) -> Array:
        return _slope(flat.reshape(start.shape), currents, gap).ravel()

    solver = RK23(
        slope, 0.0, start.ravel(), WINDOW_MS, first_step=STEP_MS, max_step=STEP_MS, rtol=NO_CONTROL, atol=NO_CONTROL
    )
    spikes = np.zeros(currents.shape, dtype=int)
    first, last = np.zeros(currents.shape), np.zeros(currents.shape)
    before, v = start[0], start[0]
    while solver.status == "running":
        then, before = solver.t, v
        solver.step()
        v = solver.y.reshape(start.shape)[0]
        fired = (before < SPIKE_MV) & (v >= SPIKE_MV)
        if fired.any():
            part = (SPIKE_MV - before[fired]) / (v[fired] - before[fired])
            last[fired] = then + part * (solver.t - then)
            first = np.where(fired & (spikes == 0), last, first)
            spikes += fired
    if solver.status != "finished":
        raise ArithmeticError(
            f"neurons: the integration failed after {solver.t:.3g} of {WINDOW_MS:g} ms. Currents begin at"
            f" {currents.min():g} uA/cm^2; steps of {STEP_MS:g} ms are short enough from {LOWEST:g} on"
        )
    span = np.where(spikes > 1, last - first, np.inf)
    return 1000 / RATE * np.maximum(spikes - 1, 0) / span


def _slope(state: Array, currents: Array, gap: float) -> Array:
    """d/dt of [V, m, h, n], each [rows, neurons], per ms."""
    v, m, h, n = state
    current = currents - LEAK[0] * (v - LEAK[1])
    current -= SODIUM[0] * m**3 * h * (v - SODIUM[1])
    current -= POTASSIUM[0] * (n * n) ** 2 * (v - POTASSIUM[1])
    if gap:
        current += gap * (np.roll(v, 1, axis=-1) + np.roll(v, -1, axis=-1) - 2 * v)
    u = v + 65
    return np.stack(
        [
            current / CAPACITANCE,
            _ramp((v + 40) / 10) * (1 - m) - 4 * np.exp(-u / 18) * m,
            0.07 * np.exp(-u / 20) * (1 - h) - h / (1 + np.exp(-(v + 35) / 10)),
            0.1 * _ramp((v + 55) / 10) * (1 - n) - 0.125 * np.exp(-u / 80) * n,
        ]
    )


def _ramp(x: Array) -> Array:
    """x / (1 - exp(-x)), which is 1 at 0."""
    x = np.where(x == 0, 1e-9, x)
    return x / (1 - np.exp(-x))
