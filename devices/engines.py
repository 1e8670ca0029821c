"""What a simulated device computes with: numpy and the kernels in C, or torch on a CPU or GPU.

Moves arrays there and back. Loads torch only for an engine of torch, and knows no physics.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hzo_hil.devices.errors import CapabilityError
from hzo_hil.simulators import native

Array = NDArray[Any]
KNOWN = "native, torch, cuda or cuda:N (cuda+tf32 or cuda:N+tf32 for tensor cores)"
NAMES = r"(native|torch|cuda(:\d+)?(\+tf32)?)"


class Engine(Protocol):
    """Rows there, answers back as C-contiguous numpy arrays, which may be those that were put."""

    def put(self, inputs: Array) -> Any: ...
    def keys(self, keys: NDArray[np.uint64]) -> Any: ...
    def scaled(self, values: Any, gains: Array) -> Any:
        """Values `[batch, width]` times gains `[batch]`, or `[1]` for all rows, in the precision of values."""

    def get(self, values: Any) -> Array: ...

    def holds(self, values: Any) -> bool:
        """Whether values are tensors of its own, that need not be put."""

    def arithmetic(self) -> AbstractContextManager[None]:
        """Within which it computes as precisely as its name says."""

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

    def holds(self, values: Any) -> bool:
        return False

    def arithmetic(self) -> AbstractContextManager[None]:
        return nullcontext()


class Torch:
    """Tensors on `place`. Results leave the GPU with every call, but where the host sent tensors.

    `tf32`: convolutions and products of matrices round what they multiply to 10 bits behind the point, as tensor cores
    do. torch has it so for convolutions unless told otherwise, and a probe of 0.001 is lost in it.
    """

    def __init__(self, torch: Any, place: str, tf32: bool = False) -> None:
        self._torch, self._place, self._tf32 = torch, torch.device(place), tf32

    @property
    def place(self) -> Any:
        return self._place

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        cudnn, matmul = self._torch.backends.cudnn, self._torch.backends.cuda.matmul
        before = matmul.allow_tf32
        matmul.allow_tf32 = self._tf32
        try:
            with self._torch.no_grad(), cudnn.flags(enabled=True, deterministic=True, allow_tf32=self._tf32):
                yield
        finally:
            matmul.allow_tf32 = before

    def holds(self, values: Any) -> bool:
        return isinstance(values, self._torch.Tensor)

    def put(self, inputs: Any) -> Any:
        return inputs if self.holds(inputs) else self._torch.tensor(inputs, device=self._place)

    def keys(self, keys: NDArray[np.uint64]) -> Any:
        return self._torch.tensor(np.ascontiguousarray(keys).view(np.int64), device=self._place)

    def scaled(self, values: Any, gains: Array) -> Any:
        return values * self._torch.as_tensor(gains, dtype=values.dtype, device=self._place)[:, None]

    def get(self, values: Any) -> Array:
        return np.ascontiguousarray(values.detach().cpu().numpy())

    @property
    def route(self) -> str:
        return f"torch on {self._place}{', tf32' * self._tf32}"


def engine(name: str, device: str) -> Engine:
    """The engine of a name, for a device. Raises CapabilityError where there is no such engine here."""
    if name == "native":
        return Native()
    if not re.fullmatch(NAMES, name):
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
    place, _, arithmetic = name.partition("+")
    _, _, number = place.partition(":")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= found:
        seen = f"torch sees {found} GPU{'s' * (found != 1)}" + (f", cuda:0 to cuda:{found - 1}" if found else "")
        raise CapabilityError(f"{device}: engine {name!r}: {seen}. Take one of those, or engine 'native' or 'torch'")
    return Torch(torch, place, tf32=arithmetic == "tf32")
