"""Which node of a mesh sits where: rectangular, triangular and butterfly meshes from one description.

Knows nothing of phases, light or errors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Scheme = Literal["clements", "reck", "butterfly"]
Step = tuple[slice, Any, Any]  # nodes of a column, their upper ports, their lower ports


def _clements(ports: int) -> list[tuple[int, int, int]]:
    return [(c, m, m + 1) for c in range(ports) for m in range(c % 2, ports - 1, 2)]


def _reck(ports: int) -> list[tuple[int, int, int]]:
    columns = 2 * ports - 3
    return [(c, m, m + 1) for c in range(columns) for m in range(c % 2, min(c, columns - 1 - c) + 1, 2)]


def _butterfly(ports: int) -> list[tuple[int, int, int]]:
    reach = [1 << k for k in range(ports.bit_length() - 1)]
    return [(k, m, m + far) for k, far in enumerate(reach) for m in range(ports) if not m & far]


_SCHEMES: dict[str, Callable[[int], list[tuple[int, int, int]]]] = {
    "clements": _clements,
    "reck": _reck,
    "butterfly": _butterfly,
}


@dataclass(frozen=True)
class Layout:
    """Columns of nodes that each couple an upper and a lower port.

    `scheme` "clements": a rectangle, N columns (Clements et al., Optica 3, 1460, 2016); "reck": a triangle, 2N - 3
    columns (Reck et al., PRL 73, 58, 1994); both reach every unitary. "butterfly": log2 N columns, the k-th couples
    ports m and m + 2^k, as a fast Fourier transform does; N must be a power of 2, and most unitaries are out of reach.

    Nodes are numbered column by column, from the first port down. `phi` shifts the upper port before a node,
    `theta` the upper arm inside it; `out_phase` shifts every port behind the last column.
    """

    ports: int
    scheme: Scheme = "clements"

    def __post_init__(self) -> None:
        if self.scheme not in _SCHEMES:
            raise ValueError(f"unknown scheme {self.scheme!r} of a mesh: known are {', '.join(_SCHEMES)}")
        if self.ports < 2:
            raise ValueError(f"a mesh needs at least 2 ports, not {self.ports}")
        if self.scheme == "butterfly" and self.ports & (self.ports - 1):
            near = 1 << (self.ports.bit_length() - 1)
            raise ValueError(
                f"a butterfly couples ports m and m + 2^k, so its ports are a power of 2, not {self.ports}:"
                f" take {near} or {2 * near}, or another scheme"
            )

    @property
    def universal(self) -> bool:
        """Whether every unitary can be programmed."""
        return self.scheme != "butterfly"

    @property
    def columns(self) -> int:
        return int(self.places[-1, 0]) + 1

    @property
    def nodes(self) -> int:
        return len(self._table)

    @property
    def phases(self) -> int:
        """Number of phase shifters: theta of every node, phi of every node, out_phase of every port."""
        return 2 * self.nodes + self.ports

    @cached_property
    def _table(self) -> Array:
        return np.array(_SCHEMES[self.scheme](self.ports), dtype=np.int32)

    @cached_property
    def places(self) -> Array:
        """Column and upper port of every node, `[nodes, 2]`."""
        return self._table[:, :2].astype(np.int64)

    @cached_property
    def pairs(self) -> Array:
        """Upper and lower port of every node, int32 `[nodes, 2]`."""
        return np.ascontiguousarray(self._table[:, 1:])

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """For each column its nodes, their upper and their lower ports, as slices where they are evenly spaced."""
        starts = np.searchsorted(self.places[:, 0], np.arange(self.columns + 1))
        found = []
        for first, last in zip(starts[:-1], starts[1:], strict=True):
            upper, lower = self.pairs[first:last].T
            found.append((slice(int(first), int(last)), _slice(upper), _slice(lower)))
        return tuple(found)

    @cached_property
    def gather(self) -> tuple[Array, Array]:
        """`[columns, ports]` each: where a port's coefficient lies in (upper, lower, pass), and its partner."""
        index = np.full((self.columns, self.ports), 2 * self.nodes, dtype=np.int64)
        partner = np.tile(np.arange(self.ports), (self.columns, 1))
        column, (upper, lower) = self.places[:, 0], self.pairs.T
        node = np.arange(self.nodes)
        index[column, upper], index[column, lower] = node, self.nodes + node
        partner[column, upper], partner[column, lower] = lower, upper
        return index, partner

    def split(self, phases: Any) -> tuple[Any, Any, Any]:
        """theta, phi, out_phase out of one array `[phases, ...]`."""
        return phases[: self.nodes], phases[self.nodes : 2 * self.nodes], phases[2 * self.nodes :]


def _slice(ports: Array) -> Any:
    """The ports as a slice if they are evenly spaced, which is faster to index with; else as they are."""
    gaps = np.diff(ports)
    if len(gaps) and (gaps != gaps[0]).any():
        return ports.astype(np.int64)
    step = int(gaps[0]) if len(gaps) else 1
    return slice(int(ports[0]), int(ports[-1]) + 1, step)
