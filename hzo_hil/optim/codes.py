"""Perturbation codes of multiplexed gradient descent: a signal in time for each parameter, orthogonal over a period.

    time        one parameter after another is on                        period d
    walsh       parameter i has Walsh sequence i, +-1                    the power of two above d
    frequency   sine or cosine of whole frequencies                      2 ceil(d/2) + 1
    random      independent signs, orthogonal on average only            d (no period of its own)

It knows neither losses nor amplitudes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hzo_hil.optim.directions import draw
from hzo_hil.optim.flat import Flat

CODES = ("time", "walsh", "frequency", "random")


def period(code: str, size: int) -> int:
    """Time steps after which all codes are orthogonal.

    >>> [period(code, 4) for code in CODES]
    [4, 8, 5, 4]
    """
    if code == "walsh":
        return 1 << size.bit_length()
    if code == "frequency":
        return 2 * math.ceil(size / 2) + 1
    return size


def signal(code: str, at: Flat, time: int, generator: torch.Generator) -> Tensor:
    """Every parameter's code [size] at a time step, within [-1, 1]. `generator` is drawn from by `random` alone."""
    if code == "random":
        return draw("rademacher", at, generator)
    if code == "time":
        on = torch.zeros(at.size, device=at.device, dtype=at.dtype)
        on[time % at.size] = 1.0
        return on
    index = torch.arange(at.size, device=at.device)
    if code == "walsh":
        return 1 - 2 * _parity((index + 1) & (time % period(code, at.size))).to(at.dtype)
    cycles = (index // 2 + 1) * time % period(code, at.size)  # whole numbers: late in a run as exact as early
    angle = cycles.to(torch.float64) * (2 * math.pi / period(code, at.size))
    return torch.where(index % 2 == 0, angle.sin(), angle.cos()).to(at.dtype)


def _parity(number: Tensor) -> Tensor:
    """0 or 1: whether the number of bits set is odd."""
    for shift in (32, 16, 8, 4, 2, 1):
        number = number ^ (number >> shift)
    return number & 1
