"""Small host layers that optical networks need at their ends. Ordinary torch modules, without parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.fft import dct
from torch import Tensor, nn


class CosineFeatures(nn.Module):
    """An image as its lowest spatial frequencies: `[batch, height * width]` to `[batch, keep]`.

    Orthonormal 2-D cosine transform (type II), the `keep` lowest by row + column, scaled by `gain`. Fixed: nothing is
    learnt on the host.
    """

    matrix: Tensor

    def __init__(self, shape: Sequence[int], keep: int, gain: float = 1.0) -> None:
        super().__init__()
        height, width = shape
        if not 0 < keep <= height * width:
            raise ValueError(f"keep={keep} of {height * width} frequencies")
        rows = torch.as_tensor(dct(torch.eye(height).double().numpy(), axis=0, norm="ortho"))
        columns = torch.as_tensor(dct(torch.eye(width).double().numpy(), axis=0, norm="ortho"))
        order = sorted((i + j, i, j) for i in range(height) for j in range(width))[:keep]
        basis = [torch.outer(rows[i], columns[j]).reshape(-1) for _, i, j in order]
        self.register_buffer("matrix", (gain * torch.stack(basis)).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.reshape(len(images), -1)
        if pixels.shape[1] != self.matrix.shape[1]:
            raise ValueError(
                f"CosineFeatures was made for {self.matrix.shape[1]} pixels and gets {pixels.shape[1]}: see its shape"
            )
        return pixels @ self.matrix.to(images.dtype).T


class Complement(nn.Module):
    """Values in 0..1 beside what they lack to 1: bright and dark both carry light. `[batch, n]` to `[batch, 2 n]`."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, values: Tensor) -> Tensor:
        return self.gain * torch.cat([values, 1 - values], dim=-1)


class Readout(nn.Module):
    """The first `classes` ports as logits, times `gain`: `[batch, ports]` -> `[batch, classes]`."""

    def __init__(self, classes: int, gain: float = 1.0) -> None:
        super().__init__()
        self.classes = classes
        self.gain = gain

    def forward(self, ports: Tensor) -> Tensor:
        if ports.shape[-1] < self.classes:
            raise ValueError(
                f"Readout of {self.classes} classes gets {ports.shape[-1]} ports: use as many ports or more"
            )
        return self.gain * ports[..., : self.classes]


class Residual(nn.Module):
    """skip(x) + body(x): a skip the host knows; x itself where none is given."""

    def __init__(self, body: nn.Module, skip: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.skip = skip or nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.skip(inputs) + self.body(inputs)
        return outputs
