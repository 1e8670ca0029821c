"""The firmware's fixed-point arithmetic in NumPy, written from its description: exact integers of 64 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
LOW, HIGH = -32768, 32767


def mix(value: Array) -> Array:
    """The finaliser of MurmurHash3 on 32 bits."""
    value = np.asarray(value, np.uint64) & 0xFFFFFFFF
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        value = ((value ^ (value >> np.uint64(shift))) * np.uint64(factor)) & 0xFFFFFFFF
    return value ^ (value >> np.uint64(16))


class Network:
    """`stages`: (kind, weight codes [out, in], bias codes [out])."""

    def __init__(
        self, stages: list[tuple[str, Array, Array]], noise: int, activation_shift: int = 12, weight_shift: int = 7
    ) -> None:
        self.stages = stages
        self.noise = noise
        self.activation_shift, self.weight_shift = activation_shift, weight_shift

    def run(self, number: int, lo: int, hi: int, rows: Array, repeats_log2: int = 0) -> tuple[Array, bool]:
        """int16 codes [rows, out], and whether a shot had a value at an end of the read-out."""
        shots = 1 << repeats_log2
        row_keys = mix(mix(np.array(number)) + np.arange(len(rows), dtype=np.uint64))
        total, saturated = None, False
        for shot in range(shots):
            keys = mix(row_keys + np.uint64(shot))
            values = rows.astype(np.int64)
            for k in range(lo, hi):
                values = self._stage(k, values, mix(keys ^ np.uint64(k)))
            saturated |= bool(np.isin(values, (LOW, HIGH)).any())
            total = values if total is None else total + values
        assert total is not None
        return np.floor_divide(total + shots // 2, shots).astype(np.int16), saturated

    def _stage(self, k: int, values: Array, keys: Array) -> Array:
        kind, weight, bias = self.stages[k]
        half = 1 << (self.weight_shift - 1)
        sums = values @ weight.T.astype(np.int64) + (bias.astype(np.int64) << self.activation_shift)
        sums = np.floor_divide(sums + half, 1 << self.weight_shift) + self._drawn(keys, len(bias))
        low, high = {"relu": (0, HIGH), "hard_tanh": (-1 << self.activation_shift, 1 << self.activation_shift)}.get(
            kind, (LOW, HIGH)
        )
        return np.clip(sums, low, high)

    def _drawn(self, keys: Array, width: int) -> Array:
        drawn = mix(keys[:, None] + np.arange(width, dtype=np.uint64) * np.uint64(0x9E3779B9)).astype(np.int64)
        return np.floor_divide(self.noise * ((drawn & 0xFFFF) + (drawn >> 16) - 65535), 1 << 16)
