"""Probe sets: directions in which a boundary is perturbed, and the decoder that turns answers into a target.

One file per set. A set knows widths and streams, never plans, devices or targets. Axes: [sample, probe, width].
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hzo_hil.devices.errors import BadInput

Array = NDArray[Any]


class ProbeSet(Protocol):
    """Directions U and a linear decoder D with D U = I (exact) or E[D U] = I (unbiased).

    `spread`: a probe moves several elements at once; `reach` bounds an element's move in units of eps. `directions`
    returns [1, probes, width] where all samples share them (not `per_sample`), else [last - first, probes, width] for
    samples first..last-1; `key` names the stream of random sets. `decode` takes directional derivatives [samples,
    probes] of the same samples to targets [samples, width].
    """

    name: str
    spread: bool
    per_sample: bool

    def count(self, width: int) -> int: ...
    def reach(self, width: int) -> float: ...
    def directions(self, width: int, key: int, first: int, last: int) -> Array: ...
    def decode(self, derivatives: Array, width: int, key: int, first: int) -> Array: ...


def probe_set(name: str, forward_differences: bool = False) -> ProbeSet:
    """By name: `coordinate`, `hadamard`, or a random set with its number of probes, `rademacher:q`, `gaussian:q`,
    `sphere:q`, or a learned subspace, `subspace`, `subspace:r`, `subspace:r+s`.
    """
    from hzo_hil.probes.coordinate import Coordinate
    from hzo_hil.probes.hadamard import Hadamard
    from hzo_hil.probes.random import KINDS, Random
    from hzo_hil.probes.subspace import Subspace

    kind, _, number = name.partition(":")
    if kind == "coordinate" and not number:
        return Coordinate()
    if kind == "hadamard" and not number:
        return Hadamard(drop_constant=forward_differences)
    if kind in KINDS and number.isdigit() and int(number) > 0:
        return Random(kind, int(number))
    if kind == "subspace" and name != "subspace:":
        return Subspace.named(number)
    raise BadInput(
        f"unknown probes {name!r}: choose coordinate, hadamard, or {', '.join(k + ':q' for k in KINDS)} with q probes,"
        " or a learned subspace, subspace, subspace:r or subspace:r+s"
    )


def exact(probes: ProbeSet) -> bool:
    """Whether D U = I: one measurement gives the whole Jacobian."""
    return probes.name in ("coordinate", "hadamard")


def working_dtype(derivatives: Array) -> Any:
    return np.result_type(derivatives.dtype, np.float32)
