"""A rectangular mesh of Mach-Zehnder nodes (Clements et al., Optica 3, 1460, 2016): layout, nodes, propagation.

Ports come first in every array and trailing axes are free (a batch of fields, a phase of its own for every
row). Fields are complex amplitudes, phases rad. The functions take the module `xp` (numpy or torch) and know
nothing of converters, noise or detectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Walk = Callable[[Any, Any, Any, Any, Any], Any]
TWO_PI = 2 * math.pi


@dataclass(frozen=True)
class Layout:
    """Which node sits where. Column c holds nodes on ports (m, m+1) for m = c mod 2, c mod 2 + 2, ...

    Nodes are numbered column by column, from the first port down. `phi` shifts the upper port before a node,
    `theta` the upper arm inside it; `out_phase` shifts every port behind the last column.
    """

    ports: int

    def __post_init__(self) -> None:
        if self.ports < 2:
            raise ValueError(f"a mesh needs at least 2 ports, not {self.ports}")

    @property
    def columns(self) -> int:
        return self.ports

    @property
    def nodes(self) -> int:
        return self.ports * (self.ports - 1) // 2

    @property
    def phases(self) -> int:
        """Number of phase shifters: theta of every node, phi of every node, out_phase of every port."""
        return 2 * self.nodes + self.ports

    @cached_property
    def places(self) -> Array:
        """Column and upper port of every node, `[nodes, 2]`."""
        found = [(c, m) for c in range(self.columns) for m in range(c % 2, self.ports - 1, 2)]
        return np.array(found, dtype=np.int64).reshape(-1, 2)

    @cached_property
    def gather(self) -> tuple[Array, Array]:
        """`[columns, ports]` each: where a port's coefficient lies in (upper, lower, pass), and its partner."""
        index = np.full((self.columns, self.ports), 2 * self.nodes, dtype=np.int64)
        partner = np.tile(np.arange(self.ports), (self.columns, 1))
        column, upper = self.places.T
        node = np.arange(self.nodes)
        index[column, upper], index[column, upper + 1] = node, self.nodes + node
        partner[column, upper], partner[column, upper + 1] = upper + 1, upper
        return index, partner

    def split(self, phases: Any) -> tuple[Any, Any, Any]:
        """theta, phi, out_phase out of one array `[phases, ...]`."""
        return phases[: self.nodes], phases[self.nodes : 2 * self.nodes], phases[2 * self.nodes :]


def nodes(xp: Any, theta: Any, phi: Any, errors: tuple[Any, Any] | None = None) -> tuple[Any, Any, Any, Any]:
    """Elements t11, t12, t21, t22 of coupler(second) diag(e^{i theta}, 1) coupler(first) diag(e^{i phi}, 1).

    A coupler is [[cos g, i sin g], [i sin g, cos g]] with g = pi/4 + its own error (rad); `errors` are those of
    the first and the second coupler, None for perfect ones.
    """
    inner, outer = phasor(xp, theta), phasor(xp, phi)
    if errors is None:
        minus, plus = (inner - 1) * 0.5, (inner + 1) * 0.5j
        return minus * outer, plus, plus * outer, -minus
    first, second = math.pi / 4 + errors[0], math.pi / 4 + errors[1]
    c1, s1, c2, s2 = xp.cos(first), xp.sin(first), xp.cos(second), xp.sin(second)
    return (
        (inner * (c1 * c2) - s1 * s2) * outer,
        (inner * (s1 * c2) + c1 * s2) * 1j,
        (inner * (c1 * s2) + s1 * c2) * outer * 1j,
        c1 * c2 - inner * (s1 * s2),
    )


def phasor(xp: Any, phase: Any) -> Any:
    """e^{i phase}, complex in the precision of the phase."""
    return xp.exp(phase * 1j)


def coefficients(xp: Any, elements: tuple[Any, Any, Any, Any], index: Any) -> tuple[Any, Any]:
    """What each port keeps and what it takes from its partner, both `[columns, ports, ...]`."""
    t11, t12, t21, t22 = elements
    blank = t11[:1] * 0
    keep = xp.concatenate([t11, t22, blank + 1])
    take = xp.concatenate([t12, t21, blank])
    return keep[index], take[index]


def walk(xp: Any, keep: Any, take: Any, partner: Any, fields: Any) -> Any:
    """Send `fields` `[ports, ...]` through all columns: x becomes keep x + take x[partner], column by column."""
    for column in range(len(keep)):
        fields = keep[column] * fields + take[column] * fields[partner[column]]
    return fields


def unitary(
    xp: Any,
    gather: tuple[Any, Any],
    theta: Any,
    phi: Any,
    out_phase: Any,
    errors: Any = None,
    loss: Any = None,
    walk: Walk = walk,
) -> Any:
    """Matrix `[ports, ports]` of the mesh, from phases `[nodes]`, `[nodes]` and `[ports]`.

    `gather` is the layout's, in arrays of `xp`; `loss` `[nodes]` the amplitude each node lets through.
    """
    elements = nodes(xp, theta, phi, errors)
    if loss is not None:
        elements = tuple(t * loss for t in elements)
    index, partner = gather
    keep, take = coefficients(xp, elements, index)
    start = xp.eye(len(out_phase), dtype=keep.dtype, **({} if xp is np else {"device": keep.device}))
    return phasor(xp, out_phase)[:, None] * walk(xp, keep[..., None], take[..., None], partner, start)


def gather_for(xp: Any, layout: Layout, like: Any) -> tuple[Any, Any]:
    """The layout's gather indices as arrays of `xp`, where `like` lives; kept with the layout."""
    if xp is np:
        return layout.gather
    store = layout.__dict__.setdefault("_gathers", {})
    place = str(like.device)
    if place not in store:
        store[place] = tuple(xp.asarray(part, device=like.device) for part in layout.gather)
    found: tuple[Any, Any] = store[place]
    return found
