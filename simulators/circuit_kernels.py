"""The C kernels of meshes under numpy's types. Call them only where `native.library()` is not None.

Knows the arrays the kernels want, not what they mean; `circuit` has the same functions in numpy and torch.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.simulators import native

Array = NDArray[Any]
LANES = 16  # fields that walk together, as in native/mesh.h
_LEAST = 1 << 20  # steps of single fields through single nodes that are worth a thread
_LONG, _POINTER, _UNSIGNED = ctypes.c_int64, ctypes.c_void_p, ctypes.c_uint64
_KINDS = {"f": "float32", "F": "float32", "d": "float64", "D": "float64"}  # by numpy's short names, which are quick
_COMPLEX = {"float32": np.complex64, "float64": np.complex128}


@cache
def _kernel(name: str, kind: str) -> Any:
    p, n, u, real = _POINTER, _LONG, _UNSIGNED, native.REALS[kind]
    types = {
        "mesh_parts": (p, p, n, n, p, p, p),
        "mesh_walk": (p, n, p, p, n, n, p, n, n, p, p, p, p),
        "mesh_noisy": (p, u, u, real, real, p, p, p, n, n, p, n, n, p, p),
        "mesh_record": (p, p, p, p, n, n, p, n, n, n, n, p, p, p),
        "mesh_reach": (p, p, p, p, n, n, p, p),
        "mesh_update": (p, p, p, p, n, p, p, n, n, n, n, p),
    }
    library = native.library()
    assert library is not None
    return library.kernel(f"{name}_{native.SUFFIXES[kind]}", *types[name])


def _at(array: Array) -> int:
    return int(array.ctypes.data)


def _fields(x: Array) -> tuple[str, Array, int]:
    """Precision, contiguous array and the numbers to an element."""
    planes = 2 if x.dtype.kind == "c" else 1
    return _KINDS[x.dtype.char], np.ascontiguousarray(x), planes


def _tile(ports: int, kind: str) -> Array:
    return np.empty(2 * LANES * ports, kind)


def parts(layout: Any, couplers: Array, phases: Array, kind: str) -> tuple[Array, Array]:
    """Constants of every node `[nodes, 8]` and every end `[ports, 2]` at these phases."""
    nodes, ports = layout.nodes, layout.ports
    made, ends = np.empty((nodes, 8), kind), np.empty((ports, 2), kind)
    turns = np.empty(2 * layout.phases)
    kernel = _kernel("mesh_parts", kind)
    kernel(_at(phases), _at(couplers), nodes, ports, _at(turns), _at(made), _at(ends))
    return made, ends


def walk(layout: Any, couplers: Array, phases: Array, x: Array, out: Array) -> None:
    """Fill `out` `[vectors, rows, ports]`, complex, with `x` `[rows, ports]` at each of `phases`."""
    kind, x, planes = _fields(x)
    nodes, ports, (vectors, rows) = layout.nodes, layout.ports, out.shape[:2]
    kernel = _kernel("mesh_walk", kind)

    def work(which: slice, some: slice) -> None:
        told, fields, into = phases[which], x[some], out[which, some]
        turns, elements, tile = np.empty(2 * layout.phases), np.empty(8 * nodes + 2 * ports, kind), _tile(ports, kind)
        kernel(
            _at(told), len(told), _at(couplers), _at(layout.pairs), nodes, ports, _at(fields), planes, len(fields),
            _at(into), _at(turns), _at(elements), _at(tile),
        )  # fmt: skip

    if vectors > 1:
        native.over_rows(lambda which: work(which, slice(None)), vectors, _LEAST // (nodes * max(rows, 1)) + 1)
    elif vectors:
        native.over_rows(lambda some: work(slice(None), some), rows, _LEAST // nodes + 1)


def noisy(
    layout: Any, made: Array, ends: Array, x: Array, keys: Array, streams: tuple[int, int], std: float, lost: float
) -> Array:
    """Complex fields `[rows, ports]` behind a mesh whose phases are off by draws of each row's key."""
    kind, x, planes = _fields(x)
    nodes, ports = layout.nodes, layout.ports
    keys = np.ascontiguousarray(keys, np.uint64)
    out: Array = np.empty(x.shape, _COMPLEX[kind])
    kernel = _kernel("mesh_noisy", kind)

    def work(some: slice) -> None:
        tile = _tile(ports, kind)
        kernel(
            _at(keys[some]), *streams, std, lost, _at(made), _at(ends), _at(layout.pairs), nodes, ports, _at(x[some]),
            planes, len(x[some]), _at(out[some]), _at(tile),
        )  # fmt: skip

    native.over_rows(work, len(x), _LEAST // (8 * nodes) + 1)
    return out


def record(
    layout: Any, made: Array, ends: Array, slots: Array, count: int, x: Array, inject: bool = False
) -> tuple[Array, Array]:
    """Fields behind the shifters of `slots`, `[tiles, count, LANES]`, and behind the mesh, `[rows, ports]`."""
    kind, x, planes = _fields(x)
    nodes, ports = layout.nodes, layout.ports
    kept: Array = np.empty((-(-len(x) // LANES), count, LANES), _COMPLEX[kind])
    out: Array = np.empty(x.shape, _COMPLEX[kind])
    tile = _tile(ports, kind)
    _kernel("mesh_record", kind)(
        _at(made), _at(ends), _at(layout.pairs), _at(slots), nodes, ports, _at(x), planes, len(x), count, int(inject),
        _at(kept), _at(out), _at(tile),
    )  # fmt: skip
    return kept, out


def reach(layout: Any, made: Array, ends: Array, slots: Array, count: int) -> Array:
    """What light behind each shifter of `slots` becomes at the outputs, `[count, ports]`."""
    kind = made.dtype.name
    kept, tile = np.empty((count, layout.ports), _COMPLEX[kind]), _tile(layout.ports, kind)
    _kernel("mesh_reach", kind)(
        _at(made), _at(ends), _at(layout.pairs), _at(slots), layout.nodes, layout.ports, _at(kept), _at(tile)
    )
    return kept


def update(base: Array, reached: Array, slot: Array, light: Array, source: Array, steps: Array, out: Array) -> None:
    """Fill `out` `[probes, rows, ports]`. `base` `[rows, ports]`, `reached` `[slots, 2, ports]` (times 1 and times i),
    `light` `[tiles, lights, LANES]`; `slot` and `source` (both int32) and `steps` `[probes, rank]`. All contiguous."""
    kernel = _kernel("mesh_update", _KINDS[base.dtype.char])
    rows, ports = base.shape
    rank, lights = slot.shape[1], light.shape[1]

    def work(some: slice) -> None:
        kernel(
            _at(base), _at(reached), _at(slot[some]), _at(light), lights, _at(source[some]), _at(steps[some]),
            len(slot[some]), rank, rows, ports, _at(out[some]),
        )  # fmt: skip

    native.over_rows(work, len(slot), _LEAST // (rows * ports) + 1)
