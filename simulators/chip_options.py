"""What the builders of chips share: options by name, with defaults taken from the models that they describe.

Knows no chip and no preset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from hzo_hil.simulators.converters import uniform_port
from hzo_hil.simulators.detector import Detector
from hzo_hil.simulators.drift import Wander
from hzo_hil.simulators.elementwise import Elementwise
from hzo_hil.simulators.model import Port, StageModel

Options = Mapping[str, Any]
Make = Callable[[Options, int], list[StageModel]]


@dataclass(frozen=True)
class Kind:
    """One kind of chip: how options and a seed become stages, what its presets set, every option with its default."""

    make: Make
    presets: Mapping[str, Options]
    defaults: Options


def defaults_of(made: Any, *, without: Sequence[str] = ()) -> dict[str, Any]:
    """Fields of a dataclass with their defaults."""
    return {
        f.name: f.default_factory() if f.default_factory is not MISSING else f.default
        for f in fields(made)
        if f.name not in without
    }


def taken(o: Options, names: Mapping[str, Any]) -> dict[str, Any]:
    """The options of these names."""
    return {name: o[name] for name in names}


DETECTOR = defaults_of(Detector, without=["kind"])
PORTS = {"in_bits": None, "in_bound": math.inf, "signed_inputs": True, "out_bits": None, "out_bound": math.inf}
ACTIVATION: dict[str, Any] = {
    "activation": "electro_optic", "activation_options": {}, "gain": 1.0, "last_activation": False,
}  # fmt: skip
WANDER = {f"drift_{name}": value for name, value in defaults_of(Wander).items()}

# Photodetector of photontorch (Laporte et al., Sci. Rep. 9, 5918, 2019): its defaults.
PHOTODETECTOR = {
    "responsivity": 1.0, "dark_current": 1e-10, "load": 166.0, "temperature": 300.0, "bandwidth": 20e9,
    "full_scale": 1e-3,
}  # fmt: skip


def detector(o: Options, kind: Any) -> Detector:
    return Detector(kind, **taken(o, DETECTOR))


def wander(o: Options) -> Wander:
    return Wander(**{name: o[f"drift_{name}"] for name in defaults_of(Wander)})


def input_port(o: Options) -> Port:
    return uniform_port(o["in_bits"], -o["in_bound"] if o["signed_inputs"] else 0.0, o["in_bound"])


def output_port(o: Options, signed: bool) -> Port:
    return uniform_port(o["out_bits"], -o["out_bound"] if signed else 0.0, o["out_bound"])


def activation(o: Options, width: int, layer: int, layers: int, reader: Detector | None = None) -> list[StageModel]:
    """The activation behind a layer, read by `reader`, or by none: digital; no stage where none is wanted."""
    if o["activation"] == "none" or (layer == layers - 1 and not o["last_activation"]):
        return []
    name = f"{o['activation']}{layer + 1}"
    reader = reader or Detector("homodyne")
    return [Elementwise(width, o["activation"], o["gain"], reader, name=name, options=dict(o["activation_options"]))]


def count(o: Options, name: str, least: int = 1) -> int:
    value = o[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}")
    return value


def widths(o: Options) -> Sequence[int]:
    """`widths`; where they are empty, one `width` for all `layers`, if the kind has these options."""
    found = o["widths"]
    if not found and "layers" in o:
        return [count(o, "width")] * (count(o, "layers") + 1)
    if len(found) < 2 or any(not isinstance(w, int) or w < 1 for w in found):
        raise ValueError(f"widths must be at least two integers of at least 1, not {found!r}")
    return list(found)
