"""What a simulated device computes with: numpy and the kernels in C, or torch on a CPU or GPU.

Moves arrays there and back. Loads torch only for an engine of torch, and knows no physics.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hzo_hil.devices.errors import CapabilityError
from hzo_hil.simulators import native

Array = NDArray[Any]
KNOWN = "native, torch, cuda or cuda:N"


class Engine(Protocol):
    """Rows there, answers back as C-contiguous numpy arrays, which may be those that were put."""

    def put(self, inputs: Array) -> Any: ...
    def keys(self, keys: NDArray[np.uint64]) -> Any: ...
    def scaled(self, values: Any, gains: Array) -> Any:
        """Values `[batch, width]` times gains `[batch]`, or `[1]` for all rows, in the precision of values."""

    def get(self, values: Any) -> Array: ...

    @property
    def route(self) -> str:
        """What computes, for people."""


class Native:
    """Numpy arrays as they are."""

    @property
    def route(self) -> str:
        return native.route()

    def put(self, inputs: Array) -> Array:
        return inputs

    def keys(self, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return keys

    def scaled(self, values: Array, gains: Array) -> Array:
        return np.asarray(values * gains.astype(values.dtype)[:, None])

    def get(self, values: Array) -> Array:
        return np.ascontiguousarray(values)


class Torch:
    """Tensors on `place`. Results leave the GPU with every call: a device answers in numpy."""

    def __init__(self, torch: Any, place: str) -> None:
        self._torch, self._place = torch, torch.device(place)

    def put(self, inputs: Array) -> Any:
        return self._torch.tensor(inputs, device=self._place)

    def keys(self, keys: NDArray[np.uint64]) -> Any:
        return self._torch.tensor(np.ascontiguousarray(keys).view(np.int64), device=self._place)

    def scaled(self, values: Any, gains: Array) -> Any:
        return values * self._torch.as_tensor(gains, dtype=values.dtype, device=self._place)[:, None]

    def get(self, values: Any) -> Array:
        return np.ascontiguousarray(values.detach().cpu().numpy())

    @property
    def route(self) -> str:
        return f"torch on {self._place}"


def engine(name: str, device: str) -> Engine:
    """The engine of a name, for a device. Raises CapabilityError where there is no such engine here."""
    if name == "native":
        return Native()
    if not re.fullmatch(r"torch|cuda(:\d+)?", name):
        raise CapabilityError(f"{device}: unknown engine {name!r}: choose {KNOWN}")
    try:
        import torch
    except ImportError as error:
        raise CapabilityError(
            f"{device}: engine {name!r} needs torch, which does not load here ({error}): install it, or take engine"
            " 'native'"
        ) from error
    if name == "torch":
        return Torch(torch, "cpu")
    _, _, number = name.partition(":")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= found:
        seen = f"torch sees {found} GPU{'s' * (found != 1)}" + (f", cuda:0 to cuda:{found - 1}" if found else "")
        raise CapabilityError(f"{device}: engine {name!r}: {seen}. Take one of those, or engine 'native' or 'torch'")
    return Torch(torch, name)
