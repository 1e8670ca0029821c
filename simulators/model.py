"""What every simulated stage looks like: plain data, a way to program it and a way to run it.

Knows nothing of devices: whoever wraps these models decides what may be driven, read or seen.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Reach:
    """How far a convolution looks, in torch's words, one number an axis of `shape` (that of its input).

    Values are flat `[channels x shape]`. Output o of an axis sees inputs o stride - padding + k dilation, k < kernel.
    `uniform`: with the same weights at every position.
    """

    in_channels: int
    out_channels: int
    shape: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    circular: bool = False
    uniform: bool = False

    @property
    def out_shape(self) -> tuple[int, ...]:
        axes = zip(self.shape, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)

    @property
    def widths(self) -> tuple[int, int]:
        """Flat values (in, out)."""
        return self.in_channels * math.prod(self.shape), self.out_channels * math.prod(self.out_shape)


Structure = Literal["dense", "diagonal"] | Reach


@dataclass(frozen=True)
class Parameter:
    """One parameter array. `period` 0: does not wrap; `levels` None: no converter; `slew` 0: no limit; `harmonics`:
    the degree of the trigonometric polynomial that outputs are in one value, 0 where they are none.
    """

    name: str
    shape: tuple[int, ...]
    low: float = -np.inf
    high: float = np.inf
    period: float = 0.0
    edge: Literal["clip", "wrap", "reflect"] = "clip"
    levels: tuple[float, ...] | None = None
    slew: float = 0.0
    harmonics: int = 0


@dataclass(frozen=True)
class Port:
    """A converter at an input or output: values saturate at `low` and `high`, and sit on multiples of `step`.

    A step of 0 means no quantisation; infinite ends mean no saturation.
    """

    low: float = -np.inf
    high: float = np.inf
    step: float = 0.0

    def __post_init__(self) -> None:
        if not self.low < self.high or not self.step >= 0:
            raise ValueError(f"a port needs low < high and step >= 0, not {self.low}, {self.high}, {self.step}")


class StageModel(ABC):
    """One stage: a function of its inputs and its programmed values.

    With every imperfection at 0 and no converters, `run(program(values, key), x, keys)` equals
    `ideal(numpy, values, x)` to rounding. `read_noise` is the standard deviation of the output noise on a
    dark output, in output units.
    """

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    @abstractmethod
    def in_width(self) -> int: ...

    @property
    @abstractmethod
    def out_width(self) -> int: ...

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return ()

    @property
    def structure(self) -> Structure:
        return "dense"

    @property
    def linear(self) -> bool:
        return False

    @property
    def input(self) -> Port:
        return Port()

    @property
    def output(self) -> Port:
        return Port()

    @property
    def read_noise(self) -> float:
        return 0.0

    @property
    def draws(self) -> bool:
        """Whether `run` looks at its keys: those of a model that does not need not be made."""
        return True

    @abstractmethod
    def initial(self, rng: np.random.Generator) -> dict[str, Array]:
        """Good values to start training from, float64 arrays by parameter name."""

    @abstractmethod
    def program(self, values: Values, key: int) -> Any:
        """Apply converters, static errors, crosstalk and the programming noise of `key`; the state `run` needs."""

    @abstractmethod
    def run(self, state: Any, inputs: Array, keys: NDArray[np.uint64]) -> Array:
        """Outputs `[batch, out_width]` in the dtype of `inputs` `[batch, in_width]`; row i draws from keys[i].

        Also takes torch tensors, then with keys as int64 tensors of the same bits.
        """

    @property
    def drifts(self) -> bool:
        """Whether `at` gives different states at different times."""
        return False

    def at(self, state: Any, seconds: float) -> Any:
        """The state after `seconds` of device time: a function of the chip, `state` and the time, without memory."""
        return state

    @abstractmethod
    def ideal(self, xp: Any, values: Values, inputs: Any) -> Any:
        """The data-sheet function, without noise, errors or converters; `xp` is the numpy or the torch module."""

    def noiseless(self, xp: Any, values: Values, inputs: Any) -> Any:
        """What this specimen computes, fabrication errors included, without noise, drift, converters and number
        formats; `xp` is the numpy or the torch module. ValueError where no differentiable form of it is known.
        """
        raise ValueError(f"no differentiable copy of a {type(self).__name__} with its fabrication errors is known")

    def settings(self) -> dict[str, Any]:
        """Everything that defines this model, as plain data; infinite numbers as text, which JSON lacks."""
        plain: dict[str, Any] = _plain(asdict(self)) if is_dataclass(self) else {}
        return {"model": type(self).__name__, **plain}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def check_values(model: StageModel, values: Values) -> None:
    """Raise ValueError unless `values` holds exactly this model's parameters, in shape and finite."""
    expected = {p.name: p.shape for p in model.parameters}
    if set(values) != set(expected):
        raise ValueError(f"stage {model.name!r} takes parameters {sorted(expected)}, not {sorted(values)}")
    for name, shape in expected.items():
        array = np.asarray(values[name])
        if array.shape != shape:
            raise ValueError(f"stage {model.name!r}: parameter {name!r} has shape {shape}, not {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"stage {model.name!r}: parameter {name!r} holds NaN or infinity")
