"""Convolutions of flat images, by torch's kernels whatever the images are: on patches numpy takes ten times as long.

Knows layouts and padding, nothing of stages. Loads torch when it is first called.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hzo_hil.simulators.arrays import is_numpy
from hzo_hil.simulators.model import Reach


def convolve(inputs: Any, weight: Any, reach: Reach) -> Any:
    """Outputs `[batch, out channels x out shape]` of `inputs` `[batch, in channels x shape]`, as numpy or torch.

    `weight` `[out channels, in channels / groups, *kernel]`, of the same kind and precision.
    """
    import torch
    from torch.nn import functional

    values, filters = torch.as_tensor(inputs), torch.as_tensor(weight)
    images = values.reshape(len(values), reach.in_channels, *reach.shape)
    padding = reach.padding
    if reach.circular:
        both = [side for p in reversed(reach.padding) for side in (p, p)]
        images, padding = functional.pad(images, both, mode="circular"), (0,) * len(reach.padding)
    if values.is_cuda and _pointwise(reach):
        # As a product of matrices: the library's kernels for convolutions turn every image round, twice.
        return torch.matmul(filters.flatten(1), images.flatten(2)).flatten(1)
    conv = functional.conv1d if len(reach.shape) == 1 else functional.conv2d
    outputs = conv(images, filters, None, reach.stride, padding, reach.dilation, reach.groups)
    outputs = outputs.reshape(len(values), -1)
    return np.asarray(outputs.numpy()) if is_numpy(inputs) else outputs


def _pointwise(reach: Reach) -> bool:
    """Whether it is a product over channels alone, the same at every pixel."""
    return {*reach.kernel, *reach.stride} == {1} and {*reach.padding} == {0} and reach.groups == 1


def per_channel(values: Any, xp: Any, reach: Reach) -> Any:
    """One value a channel `[out channels]` as flat outputs `[out channels x out shape]`."""
    count = int(np.prod(reach.out_shape))
    return values.repeat_interleave(count) if xp is not np else np.repeat(values, count)
