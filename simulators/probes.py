"""A mesh probed by changes of single phases, or of a few at once, without walking it again for each.

A change of one phase shifter by d adds (e^{i d} - 1) times the field behind that shifter, carried on to the outputs: an
exact update of rank 1 (of rank 2 counted in real numbers). One walk finds the fields behind all shifters, one walk
backwards what light behind each of them becomes at the outputs. A block of k shifters is k such updates, once the
changed light that passes from one to the next is accounted for. Knows no detectors, nor noise beyond the phases.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.simulators import circuit_kernels as kernels
from hzo_hil.simulators import native
from hzo_hil.simulators.circuit import Setting
from hzo_hil.simulators.mesh import phasor

Array = NDArray[Any]
_CHUNK_BYTES = 1 << 22  # of results handed out at once: about what stays in a core's cache
_HELD_BYTES = 1 << 26  # of what is kept of the shifters of one group of probes
_BLOCK_SHIFTERS = 1024  # at most so many shifters in a group where blocks need every pair's transfer


@dataclass(frozen=True)
class Factors:
    """What all shifters of `which` (S numbers in the order theta, phi, out_phase) meet and reach.

    `base` `[B, N]` is the fields behind the mesh, `met` `[S, B]` those behind each shifter, `reached` `[S, N]` what
    light of amplitude 1 behind it becomes at the outputs. Shifter s changed by d gives
    base + (e^{i d} - 1) met[s][:, None] * reached[s].
    """

    which: Array
    base: Array
    tiles: Array  # met as the kernels keep it: [B / LANES, S, LANES]
    reached: Array

    @property
    def met(self) -> Array:
        return self.tiles.transpose(1, 0, 2).reshape(len(self.which), -1)[:, : len(self.base)]

    def weighed(self, weights: Array) -> Array:
        """Sum over b and n of weights[b, n] met[s, b] reached[s, n], complex `[S]`.

        Times e^{i d} - 1 it is what each change adds to the sum of weights * fields, times i its derivative: all probes
        of a linear functional in two products of matrices.
        """
        return np.asarray(((self.met @ weights) * self.reached).sum(axis=1))


def factors(setting: Setting, which: Array, inputs: Array) -> Factors:
    """The factors of these shifters for `inputs` `[B, N]`, real or complex, in their precision."""
    layout = setting.circuit.layout
    which = np.asarray(which, np.int64)
    if which.ndim != 1 or (which.size and not 0 <= which.min() <= which.max() < layout.phases):
        raise ValueError(f"shifters are numbered 0 to {layout.phases - 1}, not {which.min()} to {which.max()}")
    slots = _slots(layout.phases, which)
    if native.library() is None:
        tiles, base = record_numpy(setting, slots, inputs)
        return Factors(which, base, tiles, reach_numpy(setting, slots).astype(base.dtype))
    kind = np.dtype(inputs.real.dtype).name
    tiles, base = kernels.record(layout, *setting.parts(kind), slots, len(which), inputs)
    reached = kernels.reach(layout, *setting.parts("float64"), slots, len(which))
    return Factors(which, base, tiles, reached.astype(base.dtype))


def _slots(phases: int, which: Array) -> Array:
    slots = np.full(phases, -1, np.int32)
    slots[which] = np.arange(len(which), dtype=np.int32)
    return slots


def chunks(
    setting: Setting, which: Array, changes: Array, inputs: Array, chunk_bytes: int = _CHUNK_BYTES
) -> Iterator[tuple[slice, Array]]:
    """Fields behind the mesh for one probe after another, as (probes, complex fields `[some, B, N]`).

    Probe q changes shifter `which` `[Q]` by `changes` `[Q]` rad, or several at once with `[Q, k]` each. The fields are
    valid until the next chunk is asked for. Equal to walks at the changed phases, to rounding.
    """
    which, changes = _checked(setting, which, changes)
    rank = which.shape[1]
    rows, ports = inputs.shape
    item = np.result_type(inputs, np.complex64).itemsize
    held = max(1, _HELD_BYTES // (item * (rows + 4 * ports)))
    step = max(1, chunk_bytes // max(1, item * rows * ports))
    # A group of probes has at most as many shifters as may be kept.
    for group in _runs(0, len(which), max(1, (held if rank == 1 else min(held, _BLOCK_SHIFTERS)) // rank)):
        start, stop = group.start, group.stop
        shifters, slot = np.unique(which[start:stop], return_inverse=True)
        made = factors(setting, shifters, inputs)
        slot = slot.reshape(stop - start, rank).astype(np.int32)
        passed = None if rank == 1 else transfers(setting, shifters)
        both = np.ascontiguousarray(np.stack([made.reached, 1j * made.reached], axis=1, dtype=made.base.dtype))
        out = np.empty((min(step, stop - start), rows, ports), made.base.dtype)
        for part in _runs(start, stop, step):
            here, found = slot[part.start - start : part.stop - start], out[: part.stop - part.start]
            update(made.base, both, here, *_added(made, here, changes[part], passed), found)
            yield part, found


def fields(setting: Setting, which: Array, changes: Array, inputs: Array) -> Array:
    """All of `chunks` at once, `[Q, B, N]`."""
    shape = (len(which), *inputs.shape)
    out = np.empty(shape, np.result_type(inputs, np.complex64))
    for some, found in chunks(setting, which, changes, inputs):
        out[some] = found
    return out


def _checked(setting: Setting, which: Array, changes: Array) -> tuple[Array, Array]:
    which, changes = np.asarray(which, np.int64), np.asarray(changes, np.float64)
    if which.shape != changes.shape or which.ndim not in (1, 2):
        raise ValueError(
            f"probes need shifters and changes of one shape, [probes] or [probes, block], not {list(which.shape)}"
            f" and {list(changes.shape)}"
        )
    if which.ndim == 1:
        which, changes = which[:, None], changes[:, None]
    layout = setting.circuit.layout
    # In a block, light meets the shifters in this order.
    place = light_order(layout)
    if which.size and not 0 <= which.min() <= which.max() < layout.phases:
        raise ValueError(f"shifters are numbered 0 to {layout.phases - 1}, not {which.min()} to {which.max()}")
    order = np.argsort(place[which], axis=1, kind="stable")
    which, changes = np.take_along_axis(which, order, 1), np.take_along_axis(changes, order, 1)
    if (which[:, 1:] == which[:, :-1]).any():
        raise ValueError("a probe changes the same shifter twice: add the changes up")
    return which, changes


def light_order(layout: Any) -> Array:
    """Place of every shifter in the order in which light meets them, `[phases]`: node by node, phi before theta."""
    node = np.arange(layout.nodes)
    return np.concatenate([2 * node + 1, 2 * node, 2 * layout.nodes + np.arange(layout.ports)])


def _runs(start: int, stop: int, step: int) -> Iterator[slice]:
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))


def _added(made: Factors, slot: Array, changes: Array, passed: Array | None) -> tuple[Array, Array, Array]:
    """What the changes of each probe add behind its shifters: light `[tiles, lights, LANES]`, and, `[probes, rank]`
    each, which of it and the factor on it."""
    steps = (phasor(np, changes) - 1).astype(made.base.dtype)
    if passed is None:
        return made.tiles, slot, steps
    light = made.tiles[:, slot]
    for j in range(slot.shape[1]):
        for k in range(j):
            # What was added behind shifter k before it came here.
            onward = passed[slot[:, j], slot[:, k]] * steps[:, k]
            light[:, :, j] += onward.astype(light.dtype)[:, None] * light[:, :, k]
    source = np.arange(slot.size, dtype=np.int32).reshape(slot.shape)
    return np.ascontiguousarray(light).reshape(len(light), -1, kernels.LANES), source, steps


def transfers(setting: Setting, which: Array) -> Array:
    """Field behind shifter j for light of amplitude 1 behind shifter k, complex128 `[S, S]`; 0 unless j comes later."""
    layout, dark = setting.circuit.layout, np.zeros((len(which), setting.circuit.layout.ports))
    slots = _slots(layout.phases, which)
    if native.library() is None:
        tiles = record_numpy(setting, slots, dark, inject=True)[0]
    else:
        tiles = kernels.record(layout, *setting.parts("float64"), slots, len(which), dark, inject=True)[0]
    return tiles.transpose(1, 0, 2).reshape(len(which), -1)[:, : len(which)]


def update(base: Array, reached: Array, slot: Array, light: Array, source: Array, steps: Array, out: Array) -> None:
    """Fill `out` `[probes, B, N]` with base + sum over j of steps[probe, j] light[source[probe, j], b]
    reached[slot[probe, j], 0, n]; row b of `light` `[tiles, lights, LANES]` lies in tile b // LANES."""
    if native.library() is not None:
        kernels.update(base, reached, slot, light, source, steps, out)
    else:
        update_numpy(base, reached, slot, light, source, steps, out)


def update_numpy(
    base: Array, reached: Array, slot: Array, light: Array, source: Array, steps: Array, out: Array
) -> None:
    probes, rank = slot.shape
    rows = (light[:, source] * steps[..., None]).transpose(1, 0, 3, 2).reshape(probes, -1, rank)[:, : len(base)]
    np.matmul(rows, reached[:, 0][slot], out=out)
    out += base


# --- the walks that take notes, without kernels ------------------------------------------------------------------


def record_numpy(setting: Setting, slots: Array, inputs: Array, inject: bool = False) -> tuple[Array, Array]:
    """Fields behind the shifters of `slots` (in tiles) and behind the mesh; `inject`: row s is lit behind shifter s."""
    layout = setting.circuit.layout
    x = np.array(inputs.T, np.result_type(inputs, np.complex64))
    tiles = -(-len(inputs) // kernels.LANES)
    kept = np.zeros((int(slots.max(initial=-1)) + 1, tiles * kernels.LANES), x.dtype)
    turned = [t.astype(x.dtype) for t in layout.split(phasor(np, setting.phases)[:, None])]
    inner_slot, outer_slot, end_slot = layout.split(slots)
    c1, s1, c2, s2 = (c.astype(x.real.dtype) for c in setting.circuit.couplers.T[:, :, None])

    def note(field: Array, slot: Array) -> None:
        found = slot >= 0
        kept[slot[found], : len(inputs)] = field[found]
        if inject:
            field[found, slot[found]] += 1

    for nodes, upper, lower in layout.steps:
        up, low = x[upper] * turned[1][nodes], x[lower]
        note(up, outer_slot[nodes])
        up, low = _couple(c1[nodes], s1[nodes], up, low)
        up = up * turned[0][nodes]
        note(up, inner_slot[nodes])
        x[upper], x[lower] = _couple(c2[nodes], s2[nodes], up, low)
    x *= turned[2]
    note(x, end_slot)
    blocked = kept.reshape(-1, tiles, kernels.LANES).transpose(1, 0, 2)
    return np.ascontiguousarray(blocked), np.ascontiguousarray(x.T)


def reach_numpy(setting: Setting, slots: Array) -> Array:
    """What light behind the shifters of `slots` becomes at the outputs, complex128 `[S, N]`."""
    layout = setting.circuit.layout
    x = np.eye(layout.ports, dtype=np.complex128)
    kept = np.empty((int(slots.max(initial=-1)) + 1, layout.ports), x.dtype)
    inner, outer, ends = layout.split(phasor(np, setting.phases)[:, None])
    inner_slot, outer_slot, end_slot = layout.split(slots)
    c1, s1, c2, s2 = setting.circuit.couplers.T[:, :, None]

    def note(field: Array, slot: Array) -> None:
        kept[slot[slot >= 0]] = field[slot >= 0]

    note(x, end_slot)
    x *= ends
    for nodes, upper, lower in reversed(layout.steps):
        up, low = _couple(c2[nodes], s2[nodes], x[upper], x[lower])
        note(up, inner_slot[nodes])
        up, low = _couple(c1[nodes], s1[nodes], up * inner[nodes], low)
        note(up, outer_slot[nodes])
        x[upper], x[lower] = up * outer[nodes], low
    return kept


def _couple(c: Array, s: Array, up: Array, low: Array) -> tuple[Array, Array]:
    return c * up + 1j * s * low, 1j * s * up + c * low
