"""What is done to inputs between the data set and the network: standardising, varying images, bytes made floats.

Which draw an image gets depends on seed, epoch and its row alone: not on batches, and not on where a run was resumed.
Knows no network.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from hzo_hil.datasections import AugmentSection
from hzo_hil.devices.errors import ConfigError
from hzo_hil.streams import generator

IMAGE_AXES = 4
LEVELS = 255
ROWS = 256  # looked at together


def standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the training rows' mean and deviation taken out: of every channel of `[n, channels, ...]`, of every
    feature of `[n, features]`. What never varies becomes 0.
    """
    axes = [0, *range(2, train.ndim)]
    mean = train.double().mean(axes, keepdim=True)
    deviation = (train.double().var(axes, correction=0, keepdim=True)).sqrt()
    scale = torch.where(deviation > 0, 1 / deviation, 0).to(train)
    return (train - mean.to(train)) * scale, (test - mean.to(test)) * scale


class Levels:
    """Takes rows kept as bytes (uint8) to floats: 0..1, or standardised as `standardised` would have them."""

    def __init__(self, train: Tensor, standardise: bool) -> None:
        self.shift, self.scale = torch.tensor(0.0), torch.tensor(1 / LEVELS)
        if standardise:
            mean, deviation = _statistics(train)
            self.shift, self.scale = mean, torch.where(deviation > 0, 1 / deviation, 0)

    def __call__(self, rows: Tensor) -> Tensor:
        return (rows.float() - self.shift.to(rows.device).float()) * self.scale.to(rows.device).float()


def _statistics(train: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every channel, or feature, a few rows at a time: bytes are there for want of memory."""
    axes = [0, *range(2, train.ndim)]
    count = train.numel() / train.shape[1]
    mean = sum((part.double().sum(axes, keepdim=True) for part in train.split(ROWS)), torch.zeros(())) / count
    squares = ((part.double() - mean).square().sum(axes, keepdim=True) for part in train.split(ROWS))
    return mean, (sum(squares, torch.zeros(())) / count).sqrt()


class Augment:
    """Flips and moves of the training images of one run. `section` as configured; `rows`: how many images there are."""

    def __init__(self, section: AugmentSection, seed: int, images: Tensor, name: str) -> None:
        if images.ndim != IMAGE_AXES:
            raise ConfigError(
                f"data.augment moves images [channels, height, width], and data {name!r} has {list(images.shape[1:])}"
                " per row: leave augment out, or give images"
            )
        self.height, self.width = images.shape[2:]
        if section.crop >= min(self.height, self.width):
            raise ConfigError(
                f"data.augment.crop is {section.crop} and the images of {name!r} have {self.height} x {self.width}"
                " pixels: some would be moved out of sight. Give fewer"
            )
        self.section, self.seed, self.rows = section, seed, len(images)
        self._drawn: tuple[int, NDArray[np.int64]] = (-1, np.zeros((0, 3), np.int64))

    def __call__(self, images: Tensor, rows: Tensor, epoch: int) -> Tensor:
        """`images` `[batch, channels, height, width]`, which are these rows of the training set, in this epoch."""
        flips, down, right = torch.as_tensor(self._of(epoch)[rows.cpu().numpy()].T, device=images.device)
        pad = self.section.crop
        # The pixel that each place shows, before padding; a flip counts the columns backwards.
        columns = torch.arange(self.width, device=images.device)
        columns = torch.where(flips[:, None] > 0, self.width - 1 - columns, columns) + right[:, None]
        lines = torch.arange(self.height, device=images.device) + down[:, None]
        padded = functional.pad(images, (pad,) * 4)
        batch = torch.arange(len(images), device=images.device)[:, None, None]
        # Axes that are indexed come first, the channels after them.
        found = padded.permute(0, 2, 3, 1)[batch, lines[:, :, None], columns[:, None, :]]
        return found.permute(0, 3, 1, 2).contiguous()

    def _of(self, epoch: int) -> NDArray[np.int64]:
        """`[rows, 3]`: whether flipped, and where the window begins, down and to the right."""
        if self._drawn[0] != epoch:
            rng = generator(self.seed, "augment", epoch)
            flips = rng.integers(0, 2, self.rows) * self.section.flip
            moves = rng.integers(0, 2 * self.section.crop + 1, (self.rows, 2))
            self._drawn = epoch, np.column_stack([flips, moves])
        return self._drawn[1]
