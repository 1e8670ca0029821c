"""A device of QCoDeS parameters: some are driven, some are weights, some are read.

It knows no instruments; ranges come from the parameters' validators. QCoDeS is imported only where parameters are
given by name, to load the station they are in.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hzo_hil.devices.adapters.one_stage import OneStage, needed
from hzo_hil.devices.api import Array, Health, ParameterSpec
from hzo_hil.devices.errors import CapabilityError, ConfigError, DeviceError, HzoError

Parameter = Any
"""A QCoDeS parameter, or the full name of one in the station."""


class QcodesDevice(OneStage):
    """`inputs`: settable parameters, one a number driven; `outputs`: gettable ones, read in their order.

    `weights`: name -> settable parameters (a list, or nested lists for a matrix). Validators with `min_value` and
    `max_value` give the ranges (the narrowest of an array's); others leave them open. Values are set where they differ
    from those last set. `settle_s` passes between driving and reading. `station`: a YAML file for QCoDeS, or a
    Station, in which names are looked up. `weights_held` reads the weights from the instruments in `read`.
    """

    def __init__(
        self,
        inputs: Sequence[Parameter],
        outputs: Sequence[Parameter],
        weights: Mapping[str, Any] | None = None,
        *,
        station: Any = None,
        settle_s: float = 0.0,
        weights_held: bool = False,
        park: Mapping[Any, float] | None = None,
        identity: str = "qcodes",
        dtype: Literal["float32", "float64"] = "float64",
        **declared: Any,
    ) -> None:
        self._station = station
        self._inputs = [self._settable(p, "inputs") for p in inputs]
        self._outputs = [self._gettable(p) for p in outputs]
        self._weights = {name: self._array(name, given) for name, given in (weights or {}).items()}
        self._settle_s, self._weights_held = settle_s, weights_held
        self._last: dict[int, float] = {}
        low, high = _common_range(self._inputs, "inputs")
        specs = {
            n: ParameterSpec(n, a.shape, *_common_range(list(a.flat), f"weights {n!r}"))
            for n, a in self._weights.items()
        }
        super().__init__(
            identity, len(self._inputs), len(self._outputs), specs, low=max(low, declared.pop("low", low)),
            high=min(high, declared.pop("high", high)), dtype=dtype, **declared,
        )  # fmt: skip
        if park:
            safe = [(self._settable(p, "park"), float(v)) for p, v in park.items()]
            self.park = lambda: self._park(safe)

    def read(self, stage: int) -> Mapping[str, Array]:
        if not self._weights_held:
            return super().read(stage)
        self._check_stage(stage)
        dtype = self.capabilities.dtype
        return {n: np.array([self._get(p) for p in a.flat], dtype).reshape(a.shape) for n, a in self._weights.items()}

    def snapshot(self) -> Mapping[str, Any]:
        used = [*self._inputs, *self._outputs, *(p for a in self._weights.values() for p in a.flat)]
        return {
            "identity": self.capabilities.identity,
            "values": {str(p.full_name): p.cache.get(get_if_invalid=False) for p in used},
        }

    def health(self) -> Health:
        try:
            for parameter in self._outputs:
                self._get(parameter)
        except DeviceError as error:
            return Health(False, str(error))
        return Health(True)

    # --- instruments -------------------------------------------------------------------------------------------------

    def _respond(self, inputs: Array) -> Array:
        found = []
        for row in inputs.tolist():
            for parameter, value in zip(self._inputs, row, strict=True):
                self._put(parameter, value)
            if self._settle_s:
                time.sleep(self._settle_s)
            found.append([self._get(p) for p in self._outputs])
        return np.array(found)

    def _set(self, name: str, index: int, value: float) -> None:
        self._put(self._weights[name].flat[index], value)

    def _written(self) -> None:
        if self._settle_s:
            time.sleep(self._settle_s)

    def _put(self, parameter: Any, value: float) -> None:
        if self._last.get(id(parameter)) == value:
            return
        self._last.pop(id(parameter), None)
        # A float32 that was rounded beyond an end is the end.
        low, high = _range(parameter)
        self._guarded(parameter, lambda: parameter.set(_whole(parameter, min(max(value, low), high))))
        self._last[id(parameter)] = value

    def _get(self, parameter: Any) -> float:
        value = self._guarded(parameter, parameter.get)
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise DeviceError(f"{self._name}: {parameter.full_name} gave {value!r}, which is no number") from error

    def _guarded(self, parameter: Any, action: Any) -> Any:
        try:
            return action()
        except HzoError:
            raise
        except Exception as error:
            raise DeviceError(f"{self._name}: {parameter.full_name}: {type(error).__name__}: {error}") from error

    def _park(self, safe: Sequence[tuple[Any, float]]) -> None:
        for parameter, value in safe:
            self._last.pop(id(parameter), None)
            self._put(parameter, value)

    # --- finding parameters -----------------------------------------------------------------------------------------

    def _array(self, name: str, given: Any) -> Array:
        """An array of parameters, in the shape of the nested lists."""
        shape: list[int] = []
        level = given
        while isinstance(level, (list, tuple)):
            if not level:
                raise CapabilityError(f"weights {name!r}: an empty list")
            shape.append(len(level))
            level = level[0]
        flat = _flat(given)
        if len(flat) != int(np.prod(shape, dtype=int)):
            raise CapabilityError(f"weights {name!r}: {len(flat)} parameters do not fill an array of shape {shape}")
        found = np.empty(len(flat), dtype=object)
        found[:] = [self._settable(p, f"weights {name!r}") for p in flat]
        return found.reshape(shape or (1,))

    def _settable(self, given: Parameter, where: str) -> Any:
        parameter = self._found(given)
        if not callable(getattr(parameter, "set", None)):
            raise CapabilityError(f"{where}: QCoDeS parameter {parameter.full_name} cannot be set")
        return parameter

    def _gettable(self, given: Parameter) -> Any:
        parameter = self._found(given)
        if not callable(getattr(parameter, "get", None)):
            raise CapabilityError(f"outputs: QCoDeS parameter {parameter.full_name} cannot be read")
        return parameter

    def _found(self, given: Parameter) -> Any:
        if not isinstance(given, str):
            if not (hasattr(given, "full_name") and (hasattr(given, "get") or hasattr(given, "set"))):
                raise CapabilityError(f"{given!r} is no QCoDeS parameter: it has no full name, and no get or set")
            return given
        if self._station is None:
            raise ConfigError(f"QCoDeS parameter {given!r} is given by name: name the station it is in (station=)")
        if isinstance(self._station, (str, Path)):
            self._station = _loaded(Path(self._station))
        try:
            return self._station.get_component(given.replace(".", "_"))
        except KeyError as error:
            raise ConfigError(f"the QCoDeS station has no parameter {given!r} ({error})") from error


def _loaded(path: Path) -> Any:
    try:
        from qcodes.station import Station
    except ImportError as error:
        raise needed("qcodes", "qcodes", error) from error
    if not path.is_file():
        raise ConfigError(f"there is no QCoDeS station file {path}")
    try:
        station = Station(config_file=str(path))
        station.load_all_instruments()
    except Exception as error:  # whatever its instruments' drivers raise
        raise ConfigError(
            f"the QCoDeS station of {path} does not load ({type(error).__name__}: {error}). If it is loaded already,"
            f" give the"
            " Station itself (station=)"
        ) from error
    return station


def _flat(given: Any) -> list[Any]:
    return [p for part in given for p in _flat(part)] if isinstance(given, (list, tuple)) else [given]


def _range(parameter: Any) -> tuple[float, float]:
    validator = getattr(parameter, "vals", None)
    low, high = getattr(validator, "min_value", None), getattr(validator, "max_value", None)
    return (-np.inf if low is None else float(low)), (np.inf if high is None else float(high))


def _common_range(parameters: Sequence[Any], what: str) -> tuple[float, float]:
    ranges = [_range(p) for p in parameters]
    low, high = max((r[0] for r in ranges), default=-np.inf), min((r[1] for r in ranges), default=np.inf)
    if not low < high:
        raise CapabilityError(f"{what}: the validators of these parameters have no range in common ({ranges})")
    return low, high


def _whole(parameter: Any, value: float) -> float | int:
    """Validators of whole numbers take no floats."""
    return round(value) if type(getattr(parameter, "vals", None)).__name__ == "Ints" else value
