"""What is declared about Jacobians, and what that leaves to be probed.

A structure composes along a segment: diagonal with diagonal stays diagonal, anything with dense is dense.
"""

from __future__ import annotations

from collections.abc import Iterable

from hzo_hil.devices.api import Structure


def compose(structures: Iterable[Structure]) -> Structure:
    """Structure of the Jacobian of stages in sequence."""
    return "dense" if any(s == "dense" for s in structures) else "diagonal"


def colours(structure: Structure, width: int) -> int:
    """Coordinate probes needed per sample: inputs whose outputs never meet share one (Curtis, Powell, Reid 1974)."""
    return 1 if structure == "diagonal" else width
