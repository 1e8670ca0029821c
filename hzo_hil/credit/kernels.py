"""Targets back through a convolution with one kernel for every place: its transpose, by torch. Knows no rule."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import grad

from hzo_hil.credit.rule import Array
from hzo_hil.devices.api import Local


def shape_of(reach: Local) -> tuple[int, ...]:
    """Of the kernel, as torch lays it out: `[out channels, in channels / groups, *kernel]`."""
    return (reach.out_channels, reach.in_channels // reach.groups, *reach.kernel)


def transposed(target: Array, kernel: Array, reach: Local) -> Array:
    """`[samples, in channels x shape]` from `target` `[samples, out channels x out shape]`, in the target's dtype."""
    outputs = torch.as_tensor(target).reshape(len(target), reach.out_channels, *reach.out_shape)
    around = reach.padding if reach.circular else (0,) * len(reach.shape)
    size = [len(target), reach.in_channels, *(n + 2 * p for n, p in zip(reach.shape, around, strict=True))]
    padding = tuple(p - q for p, q in zip(reach.padding, around, strict=True))
    back = grad.conv1d_input if len(reach.shape) == 1 else grad.conv2d_input
    weight = torch.as_tensor(kernel).to(outputs)
    inputs = back(size, weight, outputs, reach.stride, padding, reach.dilation, reach.groups)  # type: ignore[operator]
    for axis, p in enumerate(around, start=2):
        inputs = _wrapped(inputs, axis, p)
    found: Array = inputs.reshape(len(target), -1).numpy()
    return found


def _wrapped(images: Tensor, axis: int, padding: int) -> Tensor:
    """What lies in the padding at either end of an axis, added to what it is a copy of."""
    if not padding:
        return images
    count = images.shape[axis] - 2 * padding
    places = (torch.arange(images.shape[axis]) - padding) % count
    shape = list(images.shape)
    shape[axis] = count
    return images.new_zeros(shape).index_add(axis, places, images)
