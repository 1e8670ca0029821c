"""The arithmetic of keyed draws in torch, for simulators on a GPU: int64 tensors that hold the bits of the keys.

torch has no shifts or products of uint64; those of int64 have the same bits once shifts are masked.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hzo_hil.simulators.draws import GOLDEN, steps

_BITS = {"float32": (24, torch.float32), "float64": (53, torch.float64)}


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def derive(keys: Tensor, *path: int) -> Tensor:
    for step in steps(path):
        keys = _mix(keys + _signed(step))
    return keys


def _hashes(keys: Tensor, stream: int, count: int) -> Tensor:
    counter = torch.arange(1, count + 1, dtype=torch.int64, device=keys.device) * _signed(GOLDEN)
    return _mix(derive(keys, stream)[:, None] + counter)


def uniforms(keys: Tensor, stream: int, count: int, kind: str) -> Tensor:
    bits, dtype = _BITS[kind]
    return _shift(_hashes(keys, stream, count), 64 - bits).to(dtype) * 2.0**-bits


def normals(keys: Tensor, stream: int, count: int, kind: str) -> Tensor:
    dtype = _BITS[kind][1]
    hashes = _hashes(keys, stream, (count + 1) // 2)
    low = (hashes & 0xFFFFFFFF) ^ (1 << 31)
    angle = (low - (1 << 31)).to(dtype) * (math.pi * 2.0**-31)
    radius = torch.sqrt(-2.0 * torch.log((((hashes >> 32) & 0x7FFFFFFF).to(dtype) + 0.5) * 2.0**-31))
    return torch.cat([torch.cos(angle) * radius, (torch.sin(angle) * radius)[:, : count // 2]], dim=1)
