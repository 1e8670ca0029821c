"""What one writes without a simulator: a rectangular mesh in plain torch and in plain numpy, to compare with.

Batch last, all nodes of a column at once, phase noise by the library's own generator. It shares no code with hzo_hil.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def by_torch(theta: Any, phi: Any, out_phase: Any, light: Any, std: float = 0.0) -> Any:
    """Fields `[ports, batch]`; phases `[nodes]` and `[ports]`, each column of light with its own noise of `std`."""
    ports, batch = light.shape
    if std:
        theta, phi, out_phase = (p[:, None] + std * torch.randn(len(p), batch) for p in (theta, phi, out_phase))
    else:
        theta, phi, out_phase = theta[:, None], phi[:, None], out_phase[:, None]
    inner, outer = torch.polar(torch.ones_like(theta), theta), torch.polar(torch.ones_like(phi), phi)
    minus, plus = (inner - 1) * 0.5, (inner + 1) * 0.5j
    fields, first = light.clone(), 0
    for column in range(ports):
        start = column % 2
        count = (ports - start) // 2
        pairs = fields[start : start + 2 * count].view(count, 2, batch)
        some = slice(first, first + count)
        up, low = pairs[:, 0] * outer[some], pairs[:, 1]
        top = minus[some] * up + plus[some] * low
        pairs[:, 1] = plus[some] * up - minus[some] * low
        pairs[:, 0] = top
        first += count
    return torch.polar(torch.ones_like(out_phase), out_phase) * fields


def by_numpy(theta: Any, phi: Any, out_phase: Any, light: Any, std: float = 0.0, rng: Any = None) -> Any:
    """The same in numpy."""
    ports, batch = light.shape
    if std:
        theta, phi, out_phase = (
            p[:, None] + np.float32(std) * rng.standard_normal((len(p), batch), np.float32)
            for p in (theta, phi, out_phase)
        )
    else:
        theta, phi, out_phase = theta[:, None], phi[:, None], out_phase[:, None]
    inner, outer = np.exp(1j * theta), np.exp(1j * phi)
    minus, plus = (inner - 1) * 0.5, (inner + 1) * 0.5j
    fields, first = light.copy(), 0
    for column in range(ports):
        start = column % 2
        count = (ports - start) // 2
        pairs = fields[start : start + 2 * count].reshape(count, 2, batch)
        some = slice(first, first + count)
        up, low = pairs[:, 0] * outer[some], pairs[:, 1].copy()
        pairs[:, 0] = minus[some] * up + plus[some] * low
        pairs[:, 1] = plus[some] * up - minus[some] * low
        first += count
    return np.exp(1j * out_phase) * fields
