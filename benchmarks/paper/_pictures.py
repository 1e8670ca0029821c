"""Pictures kept as bytes; batches of them standardised and, for training, mirrored and zoomed into at random.

What a picture goes through depends on seed, epoch and its row alone, not on batches or on where a run was stopped.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hzo_hil.data import Dataset
from hzo_hil.streams import generator

CHUNK = 256


class Pictures:
    """x uint8 `[n, 3, height, width]` of a `Dataset`. `zoom`: the shortest side of a training window, as a part of the
    picture's (1: the whole picture). Batches come out flat, float32, each channel with mean 0 and deviation 1 over the
    training pictures.
    """

    def __init__(self, data: Dataset, zoom: float, seed: int) -> None:
        self.data, self.zoom, self.seed = data, zoom, seed
        self.count, self.classes = len(data.x_train), data.classes
        self.size = data.x_train.shape[-1]
        sums = np.zeros((2, data.x_train.shape[1]))
        for first in range(0, self.count, CHUNK):
            x = data.x_train[first : first + CHUNK].astype(np.float64)
            sums += [x.sum((0, 2, 3)), (x**2).sum((0, 2, 3))]
        mean, square = sums / (data.x_train.size / data.x_train.shape[1])
        self._drawn: tuple[int, np.ndarray] | None = None
        self.place = torch.device("cpu")
        self._mean = torch.from_numpy(mean).float()[:, None, None]
        self._scale = torch.from_numpy(1 / np.sqrt(square - mean**2).clip(1e-6)).float()[:, None, None]

    def on(self, place: str) -> Pictures:
        """Batches come out there from now on, and are made there."""
        self.place = torch.device(place)
        self._mean, self._scale = self._mean.to(self.place), self._scale.to(self.place)
        return self

    def training(self, rows: np.ndarray, epoch: int) -> tuple[Tensor, Tensor]:
        """`[batch, 3 x height x width]` and labels of training rows, as this epoch shows them."""
        x = self._floats(self.data.x_train[rows])
        if self.zoom < 1:
            windows = functional.affine_grid(
                self._windows(rows, epoch).to(self.place), list(x.shape), align_corners=False
            )
            x = functional.grid_sample(x, windows, align_corners=False, padding_mode="border")
        return x.flatten(1), torch.from_numpy(self.data.y_train[rows]).to(self.place)

    def first(self, count: int) -> Tensor:
        """Training pictures as they are."""
        return self._floats(self.data.x_train[:count]).flatten(1)

    def test(self, rows: slice) -> tuple[Tensor, Tensor]:
        return self._floats(self.data.x_test[rows]).flatten(1), torch.from_numpy(self.data.y_test[rows]).to(self.place)

    def _floats(self, x: np.ndarray) -> Tensor:
        return (torch.from_numpy(x).to(self.place).float() - self._mean) * self._scale

    def _draws(self, epoch: int) -> np.ndarray:
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, generator(self.seed, "pictures", epoch).random((self.count, 4))
        return self._drawn[1]

    def _windows(self, rows: np.ndarray, epoch: int) -> Tensor:
        """`[batch, 2, 3]`: from places in the window to places in the picture, both -1..1."""
        draws = self._draws(epoch)[rows]
        side = self.zoom + (1 - self.zoom) * draws[:, 0]
        maps = np.zeros((len(rows), 2, 3))
        maps[:, 0, 0] = side * np.where(draws[:, 1] < 0.5, -1, 1)
        maps[:, 1, 1] = side
        maps[:, :, 2] = (1 - side)[:, None] * (2 * draws[:, 2:] - 1)
        return torch.from_numpy(maps).float()
