"""A data set as training takes it: tensors on the host device, and how many steps an epoch over them has."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hzo_hil.config import Config
from hzo_hil.data import Dataset
from hzo_hil.preprocess import Levels, standardised


@dataclass
class Tensors:
    """A data set on the host device. `levels`: what makes floats of it, batch by batch, where it is kept as bytes."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    levels: Levels | None = None

    @classmethod
    def of(cls, data: Dataset, host: str, standardise: bool = False) -> Tensors:
        parts = (data.x_train, data.y_train, data.x_test, data.y_test)
        x_train, y_train, x_test, y_test = (torch.as_tensor(p).to(host) for p in parts)
        found = cls(x_train, y_train, x_test, y_test)
        if found.x_train.dtype == torch.uint8:
            found.levels = Levels(found.x_train, standardise)
        elif standardise:
            found.x_train, found.x_test = standardised(found.x_train, found.x_test)
        return found

    def inputs(self, rows: Tensor) -> Tensor:
        """Rows of x as the network takes them."""
        return rows if self.levels is None else self.levels(rows)


def steps_of(config: Config, rows: int) -> int:
    """Of an epoch over so many training rows."""
    return -(-rows // config.train.batch_size)
