"""The two transposes of a convolution of flat images, by torch's kernels: to its inputs and to its kernel.

Knows layouts and padding; nothing of stages, nor where a kernel comes from. Images are flat [samples, channels x
positions], a kernel is [out channels, in channels / groups, *taps]. On the CPU, in the inputs' dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional, grad

from hzo_hil.devices.api import Local


def to_inputs(local: Local, kernel: Tensor, targets: Tensor) -> Tensor:
    """Targets at the outputs [samples, out channels x positions] through the kernel: those at the inputs."""
    back = grad.conv1d_input if len(local.shape) == 1 else grad.conv2d_input
    padding = _padding(local)
    driven = tuple(n + 2 * (p - q) for n, p, q in zip(local.shape, local.padding, padding, strict=True))
    images = targets.reshape(len(targets), local.out_channels, *local.out_shape)
    size = (len(images), local.in_channels, *driven)
    found = back(size, kernel, images, local.stride, padding, local.dilation, local.groups)
    if local.circular:
        found = _folded(local, found)
    return found.reshape(len(found), -1)


def to_kernel(local: Local, inputs: Tensor, targets: Tensor) -> Tensor:
    """Gradient of the kernel, summed over samples, from what was driven and the targets at the outputs."""
    back = grad.conv1d_weight if len(local.shape) == 1 else grad.conv2d_weight
    images = inputs.reshape(len(inputs), local.in_channels, *local.shape)
    if local.circular:
        images = functional.pad(images, [p for p in reversed(local.padding) for _ in (0, 1)], mode="circular")
    size = (local.out_channels, local.in_channels // local.groups, *local.kernel)
    wanted = targets.reshape(len(targets), local.out_channels, *local.out_shape)
    found: Tensor = back(images, size, wanted, local.stride, _padding(local), local.dilation, local.groups)
    return found


def _padding(local: Local) -> tuple[int, ...]:
    """What torch adds as zeros. Round a circle values are repeated beforehand instead."""
    return (0,) * len(local.shape) if local.circular else local.padding


def _folded(local: Local, images: Tensor) -> Tensor:
    """What was repeated at the ends goes back to where it was repeated from."""
    for axis, (size, padding) in enumerate(zip(local.shape, local.padding, strict=True), start=2):
        places = torch.arange(-padding, size + padding) % size
        whole = images.new_zeros(*images.shape[:axis], size, *images.shape[axis + 1 :])
        images = whole.index_add_(axis, places, images)
    return images
