"""Mach-Zehnder nodes and how light walks through columns of them, in numpy or torch.

Ports come first in every array and trailing axes are free (a batch of fields, a phase of its own for every
row). Fields are complex amplitudes, phases rad. The functions take the module `xp` (numpy or torch) and know
nothing of converters, noise or detectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from hzo_hil.simulators.layouts import Layout

Walk = Callable[[Any, Any, Any, Any, Any], Any]
TWO_PI = 2 * math.pi
__all__ = [
    "TWO_PI",
    "Layout",
    "Walk",
    "coefficients",
    "elements",
    "gather_for",
    "nodes",
    "phasor",
    "through",
    "unitary",
    "walk",
]


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
    return elements(inner, outer, xp.cos(first), xp.sin(first), xp.cos(second), xp.sin(second))


def elements(inner: Any, outer: Any, c1: Any, s1: Any, c2: Any, s2: Any) -> tuple[Any, Any, Any, Any]:
    """Elements of a node from its phasors e^{i theta} and e^{i phi} and the cosine and sine of both couplers."""
    return (
        (inner * (c1 * c2) - s1 * s2) * outer,
        (inner * (s1 * c2) + c1 * s2) * 1j,
        (inner * (c1 * s2) + s1 * c2) * outer * 1j,
        c1 * c2 - inner * (s1 * s2),
    )


def phasor(xp: Any, phase: Any) -> Any:
    """e^{i phase}, complex in the precision of the phase."""
    if xp is not np:
        return xp.exp(phase * 1j)
    turned = np.empty(np.shape(phase), np.result_type(phase, np.complex64))
    np.cos(phase, out=turned.real)
    np.sin(phase, out=turned.imag)
    return turned


def through(layout: Layout, elements: tuple[Any, Any, Any, Any], fields: Any) -> Any:
    """Send complex `fields` `[ports, ...]`, which are used up, through all columns; elements `[nodes, ...]`."""
    for nodes, upper, lower in layout.steps:
        t11, t12, t21, t22 = (t[nodes] for t in elements)
        up, low = fields[upper], fields[lower]
        fields[upper], fields[lower] = t11 * up + t12 * low, t21 * up + t22 * low
    return fields


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
