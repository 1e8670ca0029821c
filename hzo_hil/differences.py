"""Finite differences: which rows a probe becomes, how their answers combine, and how large the step is.

A scheme lists levels (multiplier m, weight w): the derivative along u is sum_w w (f(a + m eps u) - f(a - m eps u)) / (2
m eps). `forward` has no minus rows: one reference per sample and cut instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hzo_hil.devices.errors import BadInput


@dataclass(frozen=True)
class Scheme:
    """`paired` schemes send + and - of every level; `order` is the truncation error's power of eps."""

    name: str
    levels: tuple[tuple[float, float], ...]
    paired: bool
    order: int

    def queries(self, probes: int) -> int:
        """Queries per sample and cut."""
        return 2 * len(self.levels) * probes if self.paired else probes + 1

    @property
    def noise(self) -> float:
        """Variance of a derivative at eps = 1 whose answers are read with unit noise."""
        return sum(w**2 / (2 * m**2) for m, w in self.levels) if self.paired else 2.0


SCHEMES = {
    "central": Scheme("central", ((1.0, 1.0),), True, 2),
    "forward": Scheme("forward", ((1.0, 1.0),), False, 1),
    # Richardson extrapolation of central differences at eps and eps / 2.
    "richardson": Scheme("richardson", ((1.0, -1 / 3), (0.5, 4 / 3)), True, 4),
}


def scheme(name: str) -> Scheme:
    if name not in SCHEMES:
        raise BadInput(f"unknown differences {name!r}: choose {', '.join(SCHEMES)}")
    return SCHEMES[name]


def default_step(scheme_: Scheme, dtype: str, noise: float | None, converter_step: float, span: float) -> float:
    """A step that balances read-out noise s against truncation, for unit curvature: (3 s)^(1 / (order + 1)).

    (More and Wild, "Estimating derivatives of noisy simulations", 2012, with the constant left at 3.) Noise is at least
    the dtype's rounding. The step is raised to whole converter steps and kept within a quarter of the boundary's span.
    """
    rounding = 6e-8 if dtype == "float32" else 1.1e-16
    step = (3 * max(rounding, noise or 0.0)) ** (1 / (scheme_.order + 1))
    step = min(step, span / 4)
    return snap(step, converter_step / min(m for m, _ in scheme_.levels))


def largest_step(scheme_: Scheme, converter_step: float, span: float) -> float:
    """The largest step that fits, in whole converter steps: of a linear segment, where truncation is no matter and read
    noise falls with it. 1 where the boundary's span has no end.
    """
    unit = converter_step / min(m for m, _ in scheme_.levels)
    if not math.isfinite(span):
        return snap(1.0, unit)
    return unit * max(1, math.floor(span / 2 / unit * (1 + 1e-9))) if unit else span / 2


def snap(step: float, converter_step: float) -> float:
    """`step` raised to a whole number of converter steps, so that the realised perturbation is exact."""
    if not converter_step:
        return step
    return converter_step * max(1, math.ceil(step / converter_step * (1 - 1e-9)))


def check_step(scheme_: Scheme, eps: float, converter_step: float, span: float, boundary: int) -> float:
    """A step the caller asked for, snapped to the converter; an error if the device would not see it."""
    if not (math.isfinite(eps) and eps > 0):
        raise BadInput(f"eps at boundary {boundary} is {eps}: a step must be positive and finite")
    smallest = eps * min(m for m, _ in scheme_.levels)
    if smallest < converter_step * (1 - 1e-9):
        raise BadInput(
            f"the probe at boundary {boundary} moves an input by {smallest:g}, less than the input converter's step of"
            f" {converter_step:g}: the device would not see it. Use eps of at least"
            f" {converter_step * eps / smallest:g}, or leave eps out"
        )
    if 2 * eps > span:
        raise BadInput(
            f"eps {eps:g} at boundary {boundary} does not fit into the drivable range: it may be at most {span / 2:g}"
            " with these probes. Use a smaller eps, or leave eps out"
        )
    return snap(eps, converter_step * eps / smallest)
