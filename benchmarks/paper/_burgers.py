"""Viscous Burgers on a circle: a coarse upwind solver in numpy, the same in torch, and a spectral fine solution.

    u_t + (u^2 / 2)_x = nu u_xx on [0, 2 pi)

The coarse step is Godunov's flux with explicit diffusion, first order in space and time: its numerical viscosity is
several times nu. Max and min choose the upwind side, so it has kinks. The fine solution is pseudo-spectral (two thirds
rule), by Runge-Kutta of order 4 with the diffusion as an exact factor.
"""

from __future__ import annotations

import numpy as np
import torch
from _loop import Array, Problem
from torch import Tensor

CELLS, FINER = 48, 4
NU, DT, SUBSTEPS = 0.05, 0.05, 10
DX = 2 * np.pi / CELLS


def burgers() -> Problem:
    return Problem("Burgers", (CELLS,), step, copy, draw, truth)


def step(u: Array) -> Array:
    """One coarse step of [rows, cells]."""
    right = np.roll(u, -1, axis=-1)
    flux = np.maximum(np.maximum(u, 0) ** 2, np.minimum(right, 0) ** 2) / 2  # through each cell's right side
    flux = flux - NU * (right - u) / DX
    return u - DT / DX * (flux - np.roll(flux, 1, axis=-1))


def copy(u: Tensor) -> Tensor:
    right = u.roll(-1, dims=-1)
    flux = torch.maximum(u.clamp(min=0) ** 2, right.clamp(max=0) ** 2) / 2
    flux = flux - NU * (right - u) / DX
    return u - DT / DX * (flux - flux.roll(1, dims=-1))


def draw(rng: np.random.Generator, samples: int) -> Array:
    """Waves 1 to 4 of random phase, [samples, fine points], with a largest speed of 0.7 to 1.5."""
    x = (np.arange(CELLS * FINER) + 0.5) * DX / FINER
    waves = np.arange(1, 5)[:, None]
    size, phase = rng.normal(size=(samples, 4, 1)) / waves, rng.uniform(0, 2 * np.pi, (samples, 4, 1))
    u = (size * np.sin(waves * x + phase)).sum(axis=1)
    return u / np.abs(u).max(axis=1, keepdims=True) * rng.uniform(0.7, 1.5, (samples, 1))


def truth(start: Array, steps: int) -> Array:
    """[samples, steps + 1, cells] from starts on any finer grid [samples, points]."""
    points = start.shape[-1]
    k = np.fft.rfftfreq(points, 1 / points)
    kept = k <= points / 3
    dt = DT / SUBSTEPS
    half = np.exp(-NU * k**2 * dt / 2)

    def slope(waves: Array) -> Array:
        u = np.fft.irfft(waves * kept, points)
        return -0.5j * k * np.fft.rfft(u * u) * kept

    found, waves = [start], np.fft.rfft(start)
    for _ in range(steps):
        for _ in range(SUBSTEPS):
            a = slope(waves)
            b = slope(half * (waves + dt / 2 * a))
            c = slope(half * waves + dt / 2 * b)
            d = slope(half * (half * waves + dt * c))
            waves = half**2 * waves + dt / 6 * (half**2 * a + 2 * half * (b + c) + d)
        found.append(np.fft.irfft(waves, points))
    return np.stack(found, axis=1).reshape(len(start), steps + 1, CELLS, -1).mean(axis=-1)
