"""A device of a plain Python callable y = f(x): the shortest way from a bench script to training.

It knows nothing of f but what it is told; f may do anything that takes less than `longest_call_s` a call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hzo_hil.devices.adapters.one_stage import Given, OneStage
from hzo_hil.devices.api import Array
from hzo_hil.devices.errors import BadReply, CapabilityError


class FunctionDevice(OneStage):
    """y = f(x, **parameters), with x `[batch, in_width]` and y `[batch, out_width]`.

    With `batch=False` f takes one row `[in_width]` and gives `[out_width]` (a number, if that is 1). `parameters`:
    name -> (shape, low, high), handed to f as arrays by name; `program(**parameters)`, if given, is called once a
    write instead and f gets x alone. `low`, `high` bound the inputs. `park()` becomes the device's, if given. All
    else: see OneStage.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        in_width: int,
        out_width: int,
        parameters: Mapping[str, Given] | None = None,
        *,
        batch: bool = True,
        program: Callable[..., None] | None = None,
        park: Callable[[], None] | None = None,
        identity: str = "",
        **declared: Any,
    ) -> None:
        if not callable(f):
            raise CapabilityError(f"a function device is made of a callable y = f(x), not of {type(f).__name__}")
        name = identity or str(getattr(f, "__name__", type(f).__name__))
        super().__init__(name, in_width, out_width, parameters, **declared)
        self._f, self._batch, self._program = f, batch, program
        if park is not None:
            self.park = park

    def _respond(self, inputs: Array) -> Array:
        arguments = {} if self._program else {name: value.copy() for name, value in self._values.items()}
        if self._batch:
            return self._numbers(self._f(inputs.copy(), **arguments), (len(inputs), self.capabilities.width(1)))
        width = self.capabilities.width(1)
        rows = [self._f(row.copy(), **arguments) for row in inputs]
        return np.stack([self._numbers(np.reshape(y, -1) if np.ndim(y) == 0 else y, (width,)) for y in rows])

    def _numbers(self, answer: Any, shape: tuple[int, ...]) -> Array:
        found = np.asarray(answer)
        if found.shape != shape or found.dtype.kind not in "fiu":
            kind = f"{found.dtype} {list(found.shape)}" if found.dtype != object else type(answer).__name__
            hint = " (one row at a time: batch=False)" if self._batch else " (a whole batch at once: batch=True)"
            raise BadReply(f"{self._name}: f answered {kind}, declared were real numbers {list(shape)}{hint}")
        return found

    def _written(self) -> None:
        if self._program is not None:
            self._program(**{name: value.copy() for name, value in self._values.items()})
