"""Advection and diffusion of a tracer in a steady swirl, periodic in two dimensions: a coarse solver in numpy, the same
in torch, and a spectral fine solution.

    c_t + div(v c) = kappa laplace(c) on [0, 1)^2,   v = a drift + a cell of swirl, free of divergence

The coarse step is the donor-cell scheme with explicit diffusion: first order, linear in c, and it smears. The fine
solution is pseudo-spectral, by Runge-Kutta of order 4.
"""

from __future__ import annotations

import numpy as np
import torch
from _loop import Array, Problem
from torch import Tensor

CELLS, FINER = 18, 4
KAPPA, DT, SUBSTEPS = 0.002, 0.02, 4
DRIFT, SWIRL = (0.5, 0.3), 1.0
DX = 1 / CELLS


def advection() -> Problem:
    known = torch.as_tensor(np.stack(_velocity(*_places(CELLS))))
    return Problem("advection-diffusion", (CELLS, CELLS), step, copy, draw, truth, linear=True, known=known)


def _places(cells: int, shift_x: float = 0.5, shift_y: float = 0.5) -> tuple[Array, Array]:
    """x and y, [cells, cells], x along the first axis."""
    x, y = np.meshgrid(np.arange(cells) + shift_x, np.arange(cells) + shift_y, indexing="ij")
    return x / cells, y / cells


def _velocity(x: Array, y: Array) -> tuple[Array, Array]:
    """Of the stream function SWIRL / (2 pi) sin(2 pi x) sin(2 pi y), and the drift."""
    x, y = 2 * np.pi * x, 2 * np.pi * y
    return DRIFT[0] + SWIRL * np.sin(x) * np.cos(y), DRIFT[1] - SWIRL * np.cos(x) * np.sin(y)


def _through(k: int) -> Array:
    """Mean velocity through each cell's upper side along axis k; their sum round a cell is 0."""
    here = _velocity(*_places(CELLS, *((1.0, 0.5) if k == 0 else (0.5, 1.0))))[k] - DRIFT[k]
    return DRIFT[k] + here * np.sinc(1 / CELLS)


SPEED = [_through(k) for k in (0, 1)]
UP, DOWN = [np.maximum(s, 0) for s in SPEED], [np.minimum(s, 0) for s in SPEED]


def step(c: Array) -> Array:
    """One coarse step of [rows, cells * cells]."""
    c = c.reshape(-1, CELLS, CELLS)
    new = c.copy()
    for k in (0, 1):
        above = np.roll(c, -1, axis=1 + k)
        flux = UP[k] * c + DOWN[k] * above - KAPPA / DX * (above - c)
        new -= DT / DX * (flux - np.roll(flux, 1, axis=1 + k))
    return new.reshape(len(c), -1)


def copy(c: Tensor) -> Tensor:
    new = c = c.view(-1, CELLS, CELLS)
    for k in (0, 1):
        above = c.roll(-1, dims=1 + k)
        flux = torch.as_tensor(UP[k]) * c + torch.as_tensor(DOWN[k]) * above - KAPPA / DX * (above - c)
        new = new - DT / DX * (flux - flux.roll(1, dims=1 + k))
    return new.reshape(len(c), -1)


def draw(rng: np.random.Generator, samples: int) -> Array:
    """Waves of up to 3 periods a side, [samples, fine points, fine points], of standard deviation 1."""
    x, y = _places(CELLS * FINER)
    found = np.zeros((samples, *x.shape))
    for kx in range(-3, 4):
        for ky in range(4):
            size, phase = rng.normal(size=(samples, 1, 1)), rng.uniform(0, 2 * np.pi, (samples, 1, 1))
            found += size * np.cos(2 * np.pi * (kx * x + ky * y) + phase)
    found -= found.mean(axis=(1, 2), keepdims=True)
    return found / found.std(axis=(1, 2), keepdims=True)


def truth(start: Array, steps: int) -> Array:
    """[samples, steps + 1, cells * cells] from starts on any finer grid [samples, points, points]."""
    points = start.shape[-1]
    k = 2 * np.pi * np.fft.fftfreq(points, 1 / points)
    kx, ky = k[:, None], 2 * np.pi * np.fft.rfftfreq(points, 1 / points)
    u, v = _velocity(*_places(points))
    dt = DT / SUBSTEPS

    def slope(c: Array) -> Array:
        flow = 1j * kx * np.fft.rfft2(u * c) + 1j * ky * np.fft.rfft2(v * c)
        return np.fft.irfft2(-flow - KAPPA * (kx**2 + ky**2) * np.fft.rfft2(c), s=c.shape[1:])

    found, c = [start], start
    for _ in range(steps):
        for _ in range(SUBSTEPS):
            first = slope(c)
            second = slope(c + dt / 2 * first)
            third = slope(c + dt / 2 * second)
            c = c + dt / 6 * (first + 2 * second + 2 * third + slope(c + dt * third))
        found.append(c)
    blocks = np.stack(found, axis=1).reshape(len(start), steps + 1, CELLS, points // CELLS, CELLS, points // CELLS)
    return blocks.mean(axis=(3, 5)).reshape(len(start), steps + 1, -1)
